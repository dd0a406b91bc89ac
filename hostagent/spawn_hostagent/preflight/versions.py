"""Which versions of the programs under tenants are safe enough, as numbers that can be compared.

Invariant: a version below its floor is never called safe, unless the distribution's own changelog names the fix.
"""

import re
from typing import Final

Version = tuple[int, int, int, int]
"""Major, minor, patch, and the number of a release candidate; `RELEASE` for none."""

RELEASE: Final = 1_000_000
RUNC_FIX: Final = "CVE-2025-31133"
"""The first of three escapes that were fixed together (with CVE-2025-52565 and -52881): a distribution's changelog
that names it has the fix in an older version."""
RUNC_FLOORS: Final[tuple[Version, ...]] = ((1, 2, 8, RELEASE), (1, 3, 3, RELEASE), (1, 4, 0, 3))
"""The first fixed one of each line, the lines in order."""
TOOLKIT_FLOOR: Final[Version] = (1, 17, 8, RELEASE)
TOOLKIT_FIX: Final = "CVE-2025-23266"
"""What NVIDIA's container toolkit is fixed of there: an escape by a hook that a tenant's image could steer."""
DOCKER_API_FLOOR: Final = (1, 41)
"""Docker 20.10: the oldest that this program is tested with."""

_VERSION: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:[-~.]?rc[-.]?(\d+))?")


def parse_version(text: str) -> Version | None:
    """The first version in a text, None without one."""
    found = _VERSION.search(text)
    if found is None:
        return None
    major, minor, patch, candidate = found.groups()
    return int(major), int(minor), int(patch or 0), RELEASE if candidate is None else int(candidate)


def runc_is_fixed(version: Version) -> bool:
    """Whether this version of runc has the fix of its line; lines before the first never got one."""
    if version[:2] > RUNC_FLOORS[-1][:2]:
        return True
    return any(version[:2] == floor[:2] and version >= floor for floor in RUNC_FLOORS)


def toolkit_is_fixed(text: str) -> bool:
    """Whether this version of NVIDIA's container toolkit has the fix; what is no version has not."""
    version = parse_version(text)
    return version is not None and version >= TOOLKIT_FLOOR


def parse_api(text: str) -> tuple[int, int]:
    """Docker's API version, `1.41`; (0, 0) for what is none."""
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
