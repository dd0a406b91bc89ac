"""Commands are written down before they are carried out, each once."""
