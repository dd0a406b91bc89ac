"""What goes wrong in the simulated cloud: planned call by call in a test, or drawn from a seed.

Invariant: the same seed and the same calls on the same subject meet the same faults, whatever happens to
other subjects in between.
"""

import asyncio
import random
from collections import Counter, defaultdict, deque
from typing import Final, Literal, assert_never

import msgspec

from spawn_providers.base import RefusedCode

Method = Literal["catalog", "create", "find", "get", "list_owned", "act", "delete", "poll"]


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The call is refused and nothing happens."""

    code: RefusedCode


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """The call is not taken: `Unavailable`."""

    retry_after_s: int = 5


class Delay(msgspec.Struct, frozen=True, kw_only=True):
    """The call waits for the gate before it has any effect, then goes on as usual."""

    gate: asyncio.Event


class LostRequest(msgspec.Struct, frozen=True):
    """`OutcomeUnknown`, and nothing happened."""


class LostAnswer(msgspec.Struct, frozen=True):
    """`OutcomeUnknown`, although the call took its full effect."""


class Breakdown(msgspec.Struct, frozen=True, kw_only=True):
    """The call is accepted; its op ends in this error half-way and the change is not made."""

    code: RefusedCode = RefusedCode.OUT_OF_CAPACITY


class DeafGuest(msgspec.Struct, frozen=True):
    """The call is accepted and its op succeeds, but the machine does not react (a guest without ACPI)."""


Flaw = Breakdown | DeafGuest
"""A fault of an effect that did begin."""

Fault = Refusal | Outage | Delay | LostRequest | LostAnswer | Flaw

_WRITES: Final[frozenset[Method]] = frozenset({"create", "act", "delete"})


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """How many calls in a thousand meet each fault. Reads meet only outages."""

    outage: int = 0
    refusal: int = 0
    lost_request: int = 0
    lost_answer: int = 0
    breakdown: int = 0


class Faults:
    """The faults ahead. Planned ones come first, in order; then chance, if rates were given."""

    def __init__(self, *, seed: int = 0, rates: Rates | None = None) -> None:
        self._seed = seed
        self._rates = rates
        self._planned: defaultdict[Method, deque[Fault | None]] = defaultdict(deque)
        self._calls: Counter[tuple[Method, str]] = Counter()

    def plan(self, method: Method, *faults: Fault | None) -> None:
        """The next calls of `method` meet these, one each; None lets a call pass.

        Raises ValueError for a fault that the method could not show.
        """
        for fault in faults:
            if isinstance(fault, Breakdown) and method not in _WRITES:
                raise ValueError(f"{method} starts no op that could break down")
            if isinstance(fault, DeafGuest) and method != "act":
                raise ValueError(f"{method} asks nothing of the guest")
        self._planned[method].extend(faults)

    def set_rates(self, rates: Rates | None) -> None:
        """Change what chance may do from now on; None leaves only what was planned."""
        self._rates = rates

    def draw(self, method: Method, subject: str) -> Fault | None:
        """What the present call of `method` on `subject` (a key, a ref, or nothing) meets."""
        if self._planned[method]:
            return self._planned[method].popleft()
        if self._rates is None:
            return None
        self._calls[method, subject] += 1
        throw = random.Random(  # noqa: S311  a simulation must be repeatable, not unpredictable
            f"{self._seed}/{method}/{subject}/{self._calls[method, subject]}"
        ).randrange(1000)
        for fault, permille in _chances(method, self._rates):
            if throw < permille:
                return fault
            throw -= permille
        return None


def _chances(method: Method, rates: Rates) -> list[tuple[Fault, int]]:
    outage: tuple[Fault, int] = (Outage(), rates.outage)
    match method:
        case "create":
            refusal = Refusal(code=RefusedCode.OUT_OF_CAPACITY)
        case "act" | "delete":
            refusal = Refusal(code=RefusedCode.CONFLICT)
        case "catalog" | "find" | "get" | "list_owned" | "poll":
            return [outage]
        case _:
            assert_never(method)
    return [
        outage,
        (refusal, rates.refusal),
        (LostRequest(), rates.lost_request),
        (LostAnswer(), rates.lost_answer),
        (Breakdown(), rates.breakdown),
    ]
