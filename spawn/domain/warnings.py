"""When the owner of a server is warned that its money ends, and how long the server may live on after that.

DESIGN section 4 is the rule: a warning for each threshold that the runway falls to, once in each funding epoch;
thresholds above the runway that an epoch opens with are born spent; after downtime only the tightest is warned of.

Invariant: no server ends before `Policy.last_s` have passed since its tightest warning was recorded, nor does money
that comes later than a warning let an earlier one stand in for the next.
"""

from typing import Final

import msgspec
from spawn_ledger.accrual import DAY

HOUR: Final = 3_600

THRESHOLDS_S: Final = (7 * DAY, 3 * DAY, DAY, 6 * HOUR)
"""DESIGN section 4."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The runways that are warned of, longest first, and how long a server outlives its money at least.

    Raises ValueError where the thresholds are none, not positive or not in order, or the grace is negative.
    """

    thresholds_s: tuple[int, ...] = THRESHOLDS_S
    grace_s: int = 0

    def __post_init__(self) -> None:
        if not self.thresholds_s or sorted(set(self.thresholds_s), reverse=True) != list(self.thresholds_s):
            raise ValueError("warnings need at least one runway, the longest first and each once")
        if self.last_s <= 0 or self.grace_s < 0:
            raise ValueError("a runway to warn of is longer than nothing, and a grace is not negative")

    @property
    def last_s(self) -> int:
        """The tightest threshold: a server lives at least as long after it was warned of."""
        return self.thresholds_s[-1]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's owner was told.

    `warned_s` is the tightest threshold spent in this `epoch`, None while none is. `last_warned_at` is when the
    tightest of all, `Policy.last_s`, was last warned of, in whatever epoch.
    """

    epoch: int
    warned_s: int | None
    last_warned_at: int | None


def first(policy: Policy, runway_s: int | None) -> Notice:
    """The notice of a new server, its first epoch. A runway of None lasts for years."""
    return Notice(epoch=1, warned_s=_born_spent(policy, runway_s), last_warned_at=None)


def rearmed(policy: Policy, notice: Notice, runway_s: int | None) -> Notice:
    """The notice once the runway may have grown: longer than what was warned of, it opens a new epoch.

    Not so a runway that is still as short: its owner was told, and the tighter thresholds are still to come. No epoch
    but the first opens with all of them spent.
    """
    if notice.warned_s is None:
        return notice
    if runway_s is not None and runway_s <= max(notice.warned_s, policy.last_s):
        return notice
    return Notice(
        epoch=notice.epoch + 1, warned_s=_born_spent(policy, runway_s), last_warned_at=notice.last_warned_at
    )


def crossed(policy: Policy, notice: Notice, ends_at: int, now: int) -> int | None:
    """The threshold to warn of now: the tightest that the runway fell to, unless it is spent."""
    reached = [threshold_s for threshold_s in _unspent(policy, notice) if ends_at - now <= threshold_s]
    return reached[-1] if reached else None


def warned(notice: Notice, threshold_s: int, policy: Policy, now: int) -> Notice:
    """The notice after a warning, which spends the threshold and those above it."""
    is_last = threshold_s == policy.last_s
    return Notice(
        epoch=notice.epoch, warned_s=threshold_s, last_warned_at=now if is_last else notice.last_warned_at
    )


def last_word_due(policy: Policy, notice: Notice) -> bool:
    """Whether a server whose money has ended must be warned of `last_s` late.

    Its life began with less than that, so that the threshold is spent and yet nobody was ever told.
    """
    return _is_told(policy, notice) and notice.last_warned_at is None


def may_end_at(policy: Policy, notice: Notice, ends_at: int) -> int:
    """The first second at which a server may be destroyed whose last paid second is `ends_at`.

    Raises ValueError where the tightest threshold was not warned of yet: then nobody can say.
    """
    if not _is_told(policy, notice) or notice.last_warned_at is None:
        raise ValueError("record the tightest warning first: its owner has that long from then on")
    return max(ends_at + 1 + policy.grace_s, notice.last_warned_at + policy.last_s)


def look_at(
    policy: Policy, notice: Notice, *, ends_at: int, reserve_ends_at: int, auto_renew: bool, now: int
) -> int:
    """When the server must be looked at again; `now` where something is due already.

    That is at its next threshold, just after its money ends, when it may end, and daily. A wallet's money goes for
    other things too: what counts on it within a day is looked at every hour.
    """
    counts_on_wallet = auto_renew and reserve_ends_at < now + DAY
    next_turn = _next_turn(policy, notice, ends_at, now)
    return max(now, min(next_turn, now + (HOUR if counts_on_wallet else DAY)))


def _next_turn(policy: Policy, notice: Notice, ends_at: int, now: int) -> int:
    """The next moment at which something happens to the server by itself."""
    unspent = _unspent(policy, notice)
    if unspent:
        return ends_at - unspent[0]
    if now <= ends_at or notice.last_warned_at is None:
        return ends_at + 1
    return may_end_at(policy, notice, ends_at)


def _unspent(policy: Policy, notice: Notice) -> tuple[int, ...]:
    if notice.warned_s is None:
        return policy.thresholds_s
    return tuple(threshold_s for threshold_s in policy.thresholds_s if threshold_s < notice.warned_s)


def _born_spent(policy: Policy, runway_s: int | None) -> int | None:
    """The tightest threshold above the runway that an epoch opens with: all from there up are spent."""
    if runway_s is None:
        return None
    return min((threshold_s for threshold_s in policy.thresholds_s if threshold_s > runway_s), default=None)


def _is_told(policy: Policy, notice: Notice) -> bool:
    """Whether the tightest threshold is spent in this epoch."""
    return notice.warned_s is not None and notice.warned_s <= policy.last_s
