"""Two targets with a defect each, to see it found."""

from typing import Final

from tests.fuzz.target import Target, spoil_bytes


class PlantedDefect(Exception):
    """What no parser may raise."""


def check(data: bytes) -> bool:
    """Raises PlantedDefect for input that is not ASCII."""
    if not data.isascii():
        raise PlantedDefect(repr(data))
    return True


def check_slowly(data: bytes) -> bool:
    """Takes seconds for input that has a comma; in a loop, since only processor time counts."""
    if b"," in data:
        for _ in range(50_000_000):
            pass
    return True


DEFECT: Final = Target(seeds=(b"abc",), check=check, mutate=spoil_bytes)
SLOW: Final = Target(seeds=(b"abc",), check=check_slowly, mutate=spoil_bytes)
