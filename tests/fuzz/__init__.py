"""Coverage-guided fuzzing (atheris) of everything that reads what a stranger wrote.

`make fuzz SECONDS=600` gives each target its share of that time; the test suite gives each a second or two.
Seeds are made by code from the tables of bad input that the unit tests use, so no corpus is kept.
"""
