"""All parts of the oracle, in the order in which they are asked."""

import importlib
from functools import cache
from typing import Final

from tests.sim.oracle.part import Part

ORACLE: Final = (
    "books",
    "bills",
    "overage",
    "runways",
    "payments",
    "answers",
    "access",
    "machines",
    "boots",
    "warnings",
    "events",
    "prices",
    "holders",
    "starving",
)
"""Modules of the oracle, in the order in which they are asked."""


@cache
def part_types() -> tuple[type[Part], ...]:
    found: list[type[Part]] = []
    for name in ORACLE:
        found += importlib.import_module(f"tests.sim.oracle.{name}").PARTS
    return tuple(found)
