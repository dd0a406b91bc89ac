"""The service's end of the link to lent machines: their sessions, the streams of their tenants, their speed tests."""
