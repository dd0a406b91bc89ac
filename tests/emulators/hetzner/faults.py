"""What goes wrong at the emulated Hetzner Cloud: planned call by call in a test, or drawn from a seed.

Invariant: the same seed and the same calls of one operation meet the same faults, whatever other operations are
called in between. An operation is named as the description does: `POST /servers/{id}/actions/poweron`.
"""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Final

import msgspec

ANY: Final = "*"


class LostRequest(msgspec.Struct, frozen=True):
    """The connection is closed, and nothing happened."""


class LostAnswer(msgspec.Struct, frozen=True):
    """The connection is closed without an answer, and the call took its full effect."""


class Truncated(msgspec.Struct, frozen=True):
    """The call takes effect; its answer is whole as HTTP, and half as JSON."""


class Slow(msgspec.Struct, frozen=True, kw_only=True):
    """The answer comes these real seconds later; `late`, so does the effect, even if nobody waits any more."""

    seconds: float
    late: bool = False


class Refuse(msgspec.Struct, frozen=True, kw_only=True):
    """An error of the API's own; `after_effect`, the call did all the same what it was asked for."""

    code: str
    after_effect: bool = False


class Gateway(msgspec.Struct, frozen=True, kw_only=True):
    """An error of something between us and the API, which speaks no JSON."""

    status: int = 502
    after_effect: bool = False


class Drained(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody else used up the project's calls: 429 until time has brought new ones."""

    left: int = 0


class ActionFails(msgspec.Struct, frozen=True, kw_only=True):
    """The call is accepted; its action ends in an error half-way."""

    code: str = "action_failed"
    message: str = "Action failed"


class ActionSticks(msgspec.Struct, frozen=True, kw_only=True):
    """The call is accepted; its action gets nowhere and then fails, or runs until the test ends it."""

    seconds: int | None = None


class Vanish(msgspec.Struct, frozen=True):
    """The call is answered as usual; right after, its server is gone, and nobody had it deleted."""


class StaleList(msgspec.Struct, frozen=True, kw_only=True):
    """The list is as old as this: new servers are missing, deleted ones are still there."""

    seconds: int = 60


Fault = (
    LostRequest
    | LostAnswer
    | Truncated
    | Slow
    | Refuse
    | Gateway
    | Drained
    | ActionFails
    | ActionSticks
    | Vanish
    | StaleList
)


def _is_write(operation: str) -> bool:
    return not operation.startswith("GET ")


def _starts_action(operation: str) -> bool:
    if operation in ("POST /servers", "DELETE /servers/{id}"):
        return True
    return "/actions/" in operation and _is_write(operation)


def _places(operation: str) -> bool:
    return operation in ("POST /servers", "POST /servers/{id}/actions/change_type")


def _of_server(operation: str) -> bool:
    return operation == "POST /servers" or operation.split(" ")[1].startswith("/servers/{id}")


def _lists_servers(operation: str) -> bool:
    return operation == "GET /servers"


def _always(operation: str) -> bool:
    return True


def can_show(fault: Fault, operation: str) -> bool:
    """Whether a call of this operation could meet the fault and anybody would notice."""
    match fault:
        case ActionFails() | ActionSticks():
            return _starts_action(operation)
        case Vanish():
            return _of_server(operation)
        case StaleList():
            return _lists_servers(operation)
        case Refuse(after_effect=True) | Gateway(after_effect=True):
            return _is_write(operation)
        case _:
            return True


def _broken(dice: random.Random) -> Fault:
    after = dice.random() < 0.5
    return dice.choice(
        (
            Refuse(code="server_error", after_effect=after),
            Refuse(code="unavailable", after_effect=after),
            Refuse(code="timeout", after_effect=after),
            Gateway(status=502, after_effect=after),
            Gateway(status=504, after_effect=after),
        )
    )


KINDS: Final[dict[str, tuple[Callable[[str], bool], Callable[[random.Random], Fault]]]] = {
    "lost_request": (_always, lambda dice: LostRequest()),
    "lost_answer": (_always, lambda dice: LostAnswer()),
    "truncated": (_always, lambda dice: Truncated()),
    "slow": (_always, lambda dice: Slow(seconds=0, late=dice.random() < 0.5)),
    "broken": (_always, _broken),
    "rate_limited": (_always, lambda dice: Refuse(code="rate_limit_exceeded")),
    "drained": (_always, lambda dice: Drained()),
    "locked": (_starts_action, lambda dice: Refuse(code="locked")),
    "conflict": (_is_write, lambda dice: Refuse(code="conflict")),
    "capacity": (_places, lambda dice: Refuse(code="resource_unavailable")),
    "action_fails": (_starts_action, lambda dice: ActionFails()),
    "action_sticks": (_starts_action, lambda dice: ActionSticks(seconds=600)),
    "vanish": (_of_server, lambda dice: Vanish()),
    "stale_list": (_lists_servers, lambda dice: StaleList()),
}
"""Every kind of fault that chance knows: which operations meet it, and what it then is."""


class Faults:
    """The faults ahead. Planned ones come first, in order; then chance, if rates were given."""

    def __init__(self, *, seed: int = 0) -> None:
        self.slow_s = 0.05
        """How slow a slow answer is that chance has drawn."""
        self._seed = seed
        self._rates: dict[str, int] = {}
        self._planned: defaultdict[str, deque[Fault | None]] = defaultdict(deque)
        self._calls: Counter[str] = Counter()

    def plan(self, operation: str, *faults: Fault | None) -> None:
        """The next calls of this operation (or `ANY`) meet these, one each; None lets a call pass.

        Raises ValueError for a fault that the operation could not show.
        """
        for fault in faults:
            if fault is not None and operation != ANY and not can_show(fault, operation):
                raise ValueError(f"{operation} cannot show {fault}")
        self._planned[operation].extend(faults)

    def set_rates(self, **permille: int) -> None:
        """How many calls in a thousand meet each of `KINDS`; what is not named, none. Raises ValueError."""
        if unknown := permille.keys() - KINDS.keys():
            raise ValueError(f"no such faults: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
        self._rates = permille

    def draw(self, operation: str) -> Fault | None:
        """What the present call of this operation meets."""
        for name in (operation, ANY):
            planned = self._planned[name]
            if planned and (planned[0] is None or can_show(planned[0], operation)):
                return planned.popleft()
        self._calls[operation] += 1
        dice = random.Random(f"{self._seed}/{operation}/{self._calls[operation]}")
        throw = dice.randrange(1_000)
        for kind, permille in self._rates.items():
            applies, make = KINDS[kind]
            if not applies(operation):
                continue
            if throw < permille:
                fault = make(dice)
                return (
                    msgspec.structs.replace(fault, seconds=self.slow_s) if isinstance(fault, Slow) else fault
                )
            throw -= permille
        return None
