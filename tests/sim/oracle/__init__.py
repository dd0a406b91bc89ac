"""What must be true, told by whoever shares no code with the service."""
