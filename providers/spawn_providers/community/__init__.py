"""Machines that their owners lend."""
