"""The canaries' image: two whole programs of a few dozen instructions, so that nothing has to be pulled to try a host.

Invariant: they need no library, file or argument, and never end by themselves.
"""

import struct
from typing import Final

WAIT_PROGRAM: Final = "/wait"
LOG_PROGRAM: Final = "/log"
END: Final = b"\x7fELF"
"""What the second writes last: a file of this kind begins so, and lies in memory from `_BASE` on (elf(5))."""
_BASE: Final = 0x400000

# pause (34), and back to it
_X86_WAIT: Final = bytes.fromhex("b8220000000f05ebf7")
# syslog (103) of SYSLOG_ACTION_READ_ALL (3) into a page of the stack; write (1) what came, then the four bytes of `END`
_X86_LOG: Final = bytes.fromhex(
    "4881ec00100000 b867000000 bf03000000 4889e6 ba00100000 0f05 4889c2 b801000000 bf01000000 4889e6 0f05"
    "b801000000 bf01000000 be00004000 ba04000000 0f05"
)
# ppoll (73) of nothing, and back to it
_ARM_WAIT: Final = struct.pack(
    "<8I",
    *(0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD2800928, 0xD4000001, 0x17FFFFF9),
)
# the same: a page of the stack, syslog (116), write (64) twice
_ARM_LOG: Final = struct.pack(
    "<15I",
    *(0xD14007FF, 0xD2800060, 0x910003E1, 0xD2820002, 0xD2800E88, 0xD4000001),
    *(0xAA0003E2, 0xD2800020, 0x910003E1, 0xD2800808, 0xD4000001),
    *(0xD2800020, 0xD2A00801, 0xD2800082, 0xD4000001),
)


def programs_for(machine: str) -> dict[str, bytes]:
    """One waits; one writes the kernel's log to its output, then waits. `machine` is as `uname -m` says.

    Numbers of calls are Linux's for that machine (syscalls(2)). Raises ValueError for a machine that is not known.
    """
    if machine in ("x86_64", "amd64"):
        return {WAIT_PROGRAM: _elf(62, _X86_WAIT), LOG_PROGRAM: _elf(62, _X86_LOG + _X86_WAIT)}
    if machine in ("aarch64", "arm64"):
        return {WAIT_PROGRAM: _elf(183, _ARM_WAIT), LOG_PROGRAM: _elf(183, _ARM_LOG + _ARM_WAIT)}
    raise ValueError(f"no canary is known for machines of the kind {machine}")


def _elf(number: int, code: bytes) -> bytes:
    """A whole file around the code: two headers, loaded and begun as one piece (elf(5))."""
    header = 64 + 56
    size = header + len(code)
    elf = END + b"\x02\x01\x01" + bytes(9)
    elf += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return elf + code
