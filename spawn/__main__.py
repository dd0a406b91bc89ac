"""`python -m spawn` is the `spawn` command."""

from spawn.cli import main

main()
