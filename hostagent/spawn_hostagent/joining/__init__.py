"""The host's key, where it is kept, and how it is registered and changed."""
