"""Who has called too often: by address for callers who prove nothing, by wallet for those who pay.

Agents share addresses, so an address is counted only for what was refused, and a caller with a good payment or
signature passes however many of its neighbours had none. Invariant: what is remembered is bounded, in two tables
of their own, so that no number of addresses makes us forget a wallet.

All of it belongs to one event loop and nothing here awaits, so there is nothing to lock. Several processes count
apart: each of n replicas grants what one does.
"""

from collections import OrderedDict
from socket import AF_INET6, inet_pton
from typing import Final

from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address

from spawn.clock import Clock
from spawn.domain.rates import FRESH, Rate, decide, give_back, is_worked_off, whole_seconds
from spawn.settings import Settings

KEYS_MAX: Final = 65_536
"""Addresses, and wallets, that are remembered at once: about 15 MB of each when every one is taken."""
_SITE_BYTES: Final = 8
"""A /64 is the least that one IPv6 customer gets (RFC 6177): its addresses are one caller."""


class Limits:
    """Counts calls by address and by wallet; raises `rate_limited`, with the whole seconds to wait, for one too many.

    `take_address` is for a call that has turned out to prove nothing: whoever shows a payment or a signature is
    verified first. `take_wallet` is for one that proved who pays, before anything is reserved. Asking again while one
    has to wait does not lengthen the wait.
    """

    def __init__(self, settings: Settings, clock: Clock, *, keys_max: int = KEYS_MAX) -> None:
        self._clock = clock
        self._addresses = _counts(settings.rate_address_per_minute, keys_max)
        self._wallets = _counts(settings.rate_wallet_per_minute, keys_max)

    def take_address(self, address: str) -> None:
        """Count an unpaid or invalid call from this address (as `caller_address` gives it), before it is answered."""
        if self._addresses is None:
            return
        wait_ms = self._addresses.take(_site(address), self._clock.now_ms())
        if wait_ms:
            raise SpawnError(
                Code.RATE_LIMITED,
                f"More than {self._addresses.rate.per_minute} calls a minute from this address had no valid "
                "payment or signature.",
                retry_after_s=whole_seconds(wait_ms),
                next="Wait for Retry-After; or pay or sign the call: such calls are not limited by address.",
            )

    def take_wallet(self, wallet: Address) -> None:
        """Count a call that this wallet vouched for."""
        if self._wallets is None:
            return
        wait_ms = self._wallets.take(wallet, self._clock.now_ms())
        if wait_ms:
            raise SpawnError(
                Code.RATE_LIMITED,
                f"This wallet makes more than {self._wallets.rate.per_minute} calls a minute.",
                retry_after_s=whole_seconds(wait_ms),
                next="Nothing was charged: repeat the same request after Retry-After, with the same payment if it "
                "has one.",
            )

    def give_back(self, wallet: Address) -> None:
        """Forget a call of this wallet that turned out to be a copy of an earlier one."""
        if self._wallets is not None:
            self._wallets.give_back(wallet)

    def give_back_address(self, address: str) -> None:
        """Forget a call that was counted before the chain had said that it proves something."""
        if self._addresses is not None:
            self._addresses.give_back(_site(address))

    def note_address(self, address: str) -> None:
        """Count a call that is answered whatever the count says, because something was begun for it."""
        if self._addresses is not None:
            self._addresses.take(_site(address), self._clock.now_ms())


class _Counts:
    """The state of each key that has called lately, the one that called longest ago in front."""

    def __init__(self, rate: Rate, keys_max: int) -> None:
        self.rate: Final = rate
        self._keys_max = keys_max
        self._states: OrderedDict[str, int] = OrderedDict()

    def take(self, key: str, now_ms: int) -> int:
        """Count a call and return 0, or return how many milliseconds to wait."""
        known = self._states.get(key)
        decision = decide(self.rate, FRESH if known is None else known, now_ms)
        self._states[key] = decision.state
        if known is None:
            self._make_room(now_ms)
        else:
            self._states.move_to_end(key)
        return decision.wait_ms

    def give_back(self, key: str) -> None:
        state = self._states.get(key)
        if state is not None:
            self._states[key] = give_back(state)

    def _make_room(self, now_ms: int) -> None:
        """Forget up to two keys for the one that came: those that say nothing any more, or the oldest if full.

        Whoever makes us forget the oldest has used as many other keys as we remember, with a burst for each: what
        it gains by one more is nothing.
        """
        for _ in range(2):
            oldest = next(iter(self._states.values()))
            if len(self._states) <= self._keys_max and not is_worked_off(self.rate, oldest, now_ms):
                return
            self._states.popitem(last=False)


def _counts(per_minute: int, keys_max: int) -> _Counts | None:
    return None if per_minute == 0 else _Counts(Rate(per_minute=per_minute, burst=per_minute), keys_max)


def _site(address: str) -> str:
    """What an address is counted as: itself, or its /64."""
    return address if ":" not in address else inet_pton(AF_INET6, address)[:_SITE_BYTES].hex()
