"""Hetzner Cloud as a provider.

Importing this package imports no HTTP client: whoever does not deliver from Hetzner does not pay for one.
"""
