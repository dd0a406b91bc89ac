"""Docker, as `machines` wants it; everything to adopt a container is in its labels."""
