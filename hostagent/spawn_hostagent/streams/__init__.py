"""Streams of tenants' ports, each a socket of its own."""
