"""The socket to the service: dialled out, signed login, heartbeats; plain HTTP where there is no socket."""
