"""What the owner of the machine decided, asked before a command begins and each minute.

Invariant: the owner's word holds whatever the service asks. A drain by the owner is lifted by the owner alone, and both
kinds outlive a restart.
"""

from typing import Literal

from spawn_schemas.orders import Order, Problem, ResumeInstance, StartInstance

from spawn_hostagent.clock import Clock
from spawn_hostagent.commands.journal import Journal
from spawn_hostagent.config import Config

Drainer = Literal["owner", "service"]


class Rules:
    """The owner's rules, as the configuration and the journal have them."""

    def __init__(self, config: Config, journal: Journal, clock: Clock) -> None:
        self._windows = config.limits.windows()
        self._is_strict = config.limits.strict_hours
        self._journal = journal
        self._clock = clock

    def drain(self, by: Drainer, *, is_drained: bool = True) -> None:
        self._journal.set_fact(f"drained_by_{by}", int(is_drained))

    def drained_by(self) -> tuple[Drainer, ...]:
        """Who wants nothing new to start here."""
        who: tuple[Drainer, ...] = ("owner", "service")
        return tuple(name for name in who if self._journal.fact(f"drained_by_{name}"))

    def is_open(self) -> bool:
        """Whether this is an hour at which something may start."""
        now = self._clock.local_time()
        return not self._windows or any(window.covers(now) for window in self._windows)

    def is_closed(self) -> bool:
        """Whether what runs has to stop now."""
        return self._is_strict and not self.is_open()

    def refusal(self, order: Order) -> Problem | None:
        """Why this order must not begin; None where it may."""
        if isinstance(order, StartInstance) and (who := self.drained_by()):
            by = " and ".join(who)
            return Problem(
                code="draining",
                message=f"The host is draining (by its {by}). Start it elsewhere, or undrain it.",
            )
        # Where hours only say when something new may begin, what is here already may be started anew at any hour.
        is_closed = isinstance(order, StartInstance) and not self.is_open()
        if is_closed or (isinstance(order, ResumeInstance) and self.is_closed()):
            return Problem(
                code="outside_hours", message="The owner lends this machine at other hours. Try again then."
            )
        return None
