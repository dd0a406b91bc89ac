"""Two targets with a defect each, to see it found."""

import time
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
    """Takes seconds for input that has a comma: of processor time, since only that counts, whatever the machine."""
    if b"," in data:
        end_s = time.process_time() + 2
        while time.process_time() < end_s:
            pass
    return True


DEFECT: Final = Target(seeds=(b"abc",), check=check, mutate=spoil_bytes)
SLOW: Final = Target(seeds=(b"abc",), check=check_slowly, mutate=spoil_bytes)
