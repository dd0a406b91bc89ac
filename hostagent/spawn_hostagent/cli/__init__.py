"""What each command of `spawn-host` does; a command imports what it needs when it runs."""
