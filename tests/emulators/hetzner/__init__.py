"""Hetzner Cloud on loopback, from its public description: a provider is tested against it without an account."""
