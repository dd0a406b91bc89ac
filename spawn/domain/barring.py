"""Wallets that the operator keeps from doing all they could.

Invariant: whoever is barred can still look at what is theirs and destroy it; nothing of theirs is taken.
"""

from enum import StrEnum
from typing import assert_never

from spawn_schemas.errors import Code, SpawnError


class Barred(StrEnum):
    """How far a wallet is barred."""

    SUSPENDED = "suspended"
    """It may read, destroy, pay in and claim: its servers are off until the matter is settled."""
    BLOCKED = "blocked"
    """It may read and destroy. No payment of it is taken."""


class Verb(StrEnum):
    """What an operator does to a wallet."""

    SUSPEND = "suspend"
    RESTORE = "restore"
    BLOCK = "block"
    UNBLOCK = "unblock"


def barred_after(verb: Verb, current: Barred | None) -> Barred | None:
    """What the verb makes of a wallet. Raises `conflict` where it would quietly undo the other kind of bar."""
    match verb:
        case Verb.SUSPEND:
            if current is Barred.BLOCKED:
                raise _conflict("The wallet is blocked, which is more than suspended.", Verb.UNBLOCK)
            return Barred.SUSPENDED
        case Verb.RESTORE:
            if current is Barred.BLOCKED:
                raise _conflict("The wallet is blocked, not suspended.", Verb.UNBLOCK)
            return None
        case Verb.BLOCK:
            return Barred.BLOCKED
        case Verb.UNBLOCK:
            if current is Barred.SUSPENDED:
                raise _conflict("The wallet is suspended, not blocked.", Verb.RESTORE)
            return None
        case _:
            assert_never(verb)


def _conflict(message: str, instead: Verb) -> SpawnError:
    return SpawnError(Code.CONFLICT, message, next=f"Use `spawn admin {instead}` first.")


def barred_error(barred: Barred) -> SpawnError:
    """The refusal of a call that a barred wallet may not make."""
    match barred:
        case Barred.SUSPENDED:
            return SpawnError(
                Code.SUSPENDED,
                "This wallet is suspended: it can read, destroy its servers, pay in and claim, and nothing else.",
                details={"barred": barred.value},
                next="GET /v1/events?type=wallet.suspended says why.",
            )
        case Barred.BLOCKED:
            return SpawnError(
                Code.SUSPENDED,
                "This wallet is blocked: no payment of it is taken. It can read and destroy its servers.",
                details={"barred": barred.value},
                next="Sign reads and DELETE instead of paying for them; GET /v1/events?type=wallet.suspended says why.",
            )
        case _:
            assert_never(barred)
