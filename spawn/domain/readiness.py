"""How far a machine has come since it was ordered or rebuilt, in its own words.

Invariant: each part is told once, whatever is said afterwards, and a repetition of what was told is no contradiction;
what a machine wrote can be shown on any terminal. Pure.
"""

import re
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_schemas.ids import ServerId

LOG_CHARS_MAX: Final = 16 * 1024

# Controls but tab and line end, what turns the direction of text around, and halves of characters.
_HARMFUL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class CloudInit(StrEnum):
    """How cloud-init ended."""

    DONE = "done"
    FAILED = "failed"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a machine since `since`, when it was ordered or last rebuilt. Times are unix seconds.

    `host_key` is the public half of the one we made, None where the machine makes its own. It reports under what
    `token_hash` is of, and from a rebuild that is ordered on under what `next_hash` is of.
    """

    server_id: ServerId
    host_key: str | None
    token_hash: str
    next_hash: str | None = None
    since: int
    ssh_at: int | None = None
    cloud_init: CloudInit | None = None
    log: str | None = None
    reported_at: int | None = None


def began_anew(was: Readiness, since: int) -> Readiness:
    """A rebuilt machine: the same host key, and nothing told yet."""
    if was.next_hash is None:
        raise ValueError(f"no rebuild of {was.server_id} is ordered")
    return anew(replace(was, token_hash=was.next_hash), since)


def anew(was: Readiness, since: int) -> Readiness:
    """Nothing is told yet of what runs since then, under the same token."""
    return Readiness(server_id=was.server_id, host_key=was.host_key, token_hash=was.token_hash, since=since)


def told_ssh(was: Readiness, now: int) -> Readiness:
    """Its sshd answers, in which order ever that is told."""
    return was if was.ssh_at is not None else replace(was, ssh_at=now)


def told_cloud_init(was: Readiness, ended: CloudInit, log: str | None, now: int) -> Readiness | None:
    """Its cloud-init has ended; None where it has told something else before."""
    shown = None if log is None else harmless(log)
    if was.cloud_init is None:
        return replace(was, cloud_init=ended, log=shown, reported_at=now)
    return was if (was.cloud_init, was.log) == (ended, shown) else None


def harmless(text: str) -> str:
    """The end of a machine's output, with nothing in it that a terminal obeys."""
    return _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))[-LOG_CHARS_MAX:]
