"""The locks pin every package by hash and name no place to get it from: the machine's own index serves.

Invariant: a lock consists of pinned requirements and their hashes, and of nothing else; so no option,
address, path or comment can smuggle one in.
"""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.engines import ROOT

LOCKS: Final = sorted((ROOT / "requirements").glob("*.lock"))

REQUIREMENT: Final = re.compile(
    r"""
    [a-z0-9]+(?:[-._][a-z0-9]+)*          # the name
    (?:\[[a-z0-9,-]+\])?                  # its extras
    ==[0-9][0-9a-z.!+]*                   # the version
    (?:\ ;\ [\w\ .'"<>=!()]+)?            # the machines it is for
    """,
    re.VERBOSE,
)
HASH: Final = re.compile(r" {4}--hash=sha256:[0-9a-f]{64}")


def faults(text: str) -> list[str]:
    """Whatever in a lock is not a pinned requirement followed by at least one hash."""
    found = []
    for block in re.split(r"(?<!\\)\n", text.removesuffix("\n")):
        requirement, *hashes = block.split(" \\\n")
        if not REQUIREMENT.fullmatch(requirement):
            found.append(f"no pinned requirement: {requirement}")
        elif not hashes:
            found.append(f"no hash: {requirement}")
        found += [f"no hash: {line}" for line in hashes if not HASH.fullmatch(line)]
    return found


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_is_pins_and_hashes_only(lock: Path) -> None:
    assert faults(lock.read_text()) == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_direct_requirement_is_locked(lock: Path) -> None:
    locked = set(re.findall(r"^([a-z0-9._-]+)", lock.read_text(), re.MULTILINE))
    wanted = set(re.findall(r"^([a-z0-9-]+)", lock.with_suffix(".in").read_text(), re.MULTILINE))
    assert wanted
    assert wanted - locked == set()


GOOD: Final = "msgspec==0.22.0 ; python_version >= '3.11' \\\n    --hash=sha256:" + "0" * 64 + "\n"


@pytest.mark.parametrize(
    "planted",
    [
        "--index-url https://packages.example/simple\n",
        "--find-links ../wheels\n",
        "# from https://packages.example/simple\n",
        "msgspec==0.22.0\n",
        "msgspec>=0.22.0 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "msgspec @ https://packages.example/msgspec.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "msgspec==0.22.0 \\\n    --hash=md5:" + "0" * 32 + "\n",
        "./msgspec.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "\n",
    ],
)
def test_a_planted_fault_is_seen(planted: str) -> None:
    assert faults(GOOD) == []
    assert faults(GOOD + planted) != []
    assert faults(planted + GOOD) != []
