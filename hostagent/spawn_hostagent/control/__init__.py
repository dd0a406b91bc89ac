"""One daemon a machine, and how commands reach it."""
