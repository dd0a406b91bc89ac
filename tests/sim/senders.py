"""What the machines of a simulated cloud send, and what its counters say of it.

Some machines of some worlds send much, at a steady rate each. Their counters begin anew now and then, and with each
month; a look may find none, or, once in a day, those of a while ago. Dice of their own leave every other course of a
world as it is. Invariant: `sent` is never less than what any order of honest readings adds up to.
"""

from collections.abc import Callable
from random import Random
from typing import Final

from msgspec.structs import replace
from spawn_providers.base import Instance, Traffic

FACTORS: Final = (1_000, 60_000)
"""How much more than a machine usually sends: 20 TB take from half a day to months."""

LATE_APART_S: Final = 86_400
"""A list that is late twice, a while apart, looks like a counter that began anew, or is late after one that did."""


class Senders:
    """Counters beside the machinery's. `ref` names a machine."""

    def __init__(self, seed: str, count: Callable[[str], None]) -> None:
        self._seed = seed
        self._count = count
        self._odd_s: dict[str, int] = {}
        """When a counter was last late, or began anew (true seconds)."""
        self._dice = Random(f"{seed}/counters")
        self._some_send_much = self._dice.random() < 0.5
        self._base: dict[str, Traffic] = {}
        self._since: dict[str, Traffic] = {}
        self.sent: dict[str, int] = {}
        """All that a machine is known to have sent in its life."""
        self.shown: dict[str, list[tuple[int, int]]] = {}
        """What its counters were ever said to be, incoming and outgoing; the newest last."""

    def seen(self, instance: Instance, at_s: int, *, is_honest: bool = False) -> Instance:
        """The machine as a look shows it at this true second; an honest one is neither late nor silent."""
        if instance.traffic is None:
            return instance
        now = self._counted(instance.ref, instance.traffic, at_s)
        dice, shown = self._dice.random(), self.shown.setdefault(instance.ref, [])
        if not is_honest and dice < 0.01:
            return replace(instance, traffic=None)
        if not is_honest and dice < 0.03 and shown and at_s - self._odd_s.get(instance.ref, 0) > LATE_APART_S:
            self._count("cloud: a late counter")
            self._odd_s[instance.ref] = at_s
            ingoing, outgoing = shown[max(0, len(shown) - 3)]
            late = replace(now, ingoing_bytes=ingoing, outgoing_bytes=outgoing)
            return replace(instance, traffic=late)
        shown.append((now.ingoing_bytes, now.outgoing_bytes))
        return replace(instance, traffic=now)

    def _counted(self, ref: str, base: Traffic, at_s: int) -> Traffic:
        """The counters, which may have begun anew since the last look."""
        before = self._base.get(ref)
        factor = self._factor(ref)
        is_anew = before is not None and base.outgoing_bytes < before.outgoing_bytes
        was = 0 if before is None or is_anew else before.outgoing_bytes
        self.sent[ref] = self.sent.get(ref, 0) + (base.outgoing_bytes - was) * factor
        self._base[ref] = base
        nothing = replace(base, ingoing_bytes=0, outgoing_bytes=0)
        since = nothing if is_anew else self._since.get(ref, nothing)
        if self._dice.random() < 0.005:
            self._count("cloud: a counter begins anew")
            since = base
            is_anew = True
        if is_anew:
            self._odd_s[ref] = at_s
        self._since[ref] = since
        return replace(
            base,
            ingoing_bytes=base.ingoing_bytes - since.ingoing_bytes,
            outgoing_bytes=(base.outgoing_bytes - since.outgoing_bytes) * factor,
        )

    def _factor(self, ref: str) -> int:
        dice = Random(f"{self._seed}/{ref}/factor")
        return dice.randint(*FACTORS) if self._some_send_much and dice.random() < 0.4 else 1
