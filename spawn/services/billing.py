"""The life of a wallet's deposits: charged up to now, cut where a price or a month changes, warned of, ended.

Invariant: a server is destroyed for want of money only when its tightest warning is as old as it is tight, and
whatever is charged stops at the last second that was paid for, however late that is found out. A wallet's debit is
preceded by `settle`, so that money already burnt is gone first, and followed by `reschedule`.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace
from spawn_ledger import runway
from spawn_ledger.accrual import DAY, FAR_FUTURE, next_month, paid_until
from spawn_ledger.tx import Tx
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.events import DepositData, EventType, PriceData
from spawn_schemas.ids import Address, Entropy, ServerId, new_action_id
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import warnings
from spawn.domain.operations import Operation
from spawn.domain.pins import Pin
from spawn.domain.servers import Reason, Server
from spawn.domain.warnings import Notice, Policy
from spawn.services import endings, funds, meters, overage
from spawn.services.events import emit
from spawn.services.moments import moment
from spawn.store import servers as rows
from spawn.store.servers import Billed

_MONTHS_MAX: Final = 1_200
"""How many months one settlement cuts at: a hundred years."""
_STEP_BACK_S: Final = 3_600
"""A clock that is set back by no more than this undoes nothing that an owner was told."""


class Funded(msgspec.Struct, frozen=True, kw_only=True):
    """What a wallet's servers burn, and what they share."""

    fundings: tuple[runway.Funding, ...]
    available_usdc: Usdc


class Billing:
    """Charges, warns and ends; each method is part of a transaction."""

    def __init__(self, entropy: Entropy, policy: Policy) -> None:
        self._entropy = entropy
        self.policy = policy

    def settle(
        self, tx: Tx, wallet: Address, now: int, *, sparing: ServerId | None = None
    ) -> dict[ServerId, tuple[Operation, Usdc]]:
        """Charge every server of the wallet up to now, warn of what ends soon, end what has ended.

        Answers, for each that was ended, the operation that destroys it and what came back. Running it again
        changes nothing: the watermarks have moved in the same transaction. `sparing` is a server that this very
        transaction is about to save.
        """
        before = rows.list_billed(tx, wallet)
        if not before:
            return {}
        now = _steadied(before, now)
        paid, available = overage.pay(tx, before, funds.available_usdc(tx, wallet), now)
        after, available = _charged(tx, paid, available, now)
        ending = self._look(tx, before, after, available, now)
        ended = {server.id: self._end(tx, server, now) for server in ending if server.id != sparing}
        if ended:
            # What comes back of one may carry another.
            self.reschedule(tx, wallet, now)
        return ended

    def reschedule(self, tx: Tx, wallet: Address, now: int) -> None:
        """The wallet's money has changed: it ends sooner or later than before. What ends by it is left to `settle`.

        What a server owes for traffic, or at an old price, is paid at once: when its money ends is told at the price
        that it has now, and of what is left.
        """
        billed = rows.list_billed(tx, wallet)
        now = _steadied(billed, now)
        after, available = overage.pay(tx, billed, funds.available_usdc(tx, wallet), now)
        if any(b.server.owed for b in after):
            after, available = _charged(tx, after, available, now)
        self._look(tx, billed, after, available, now)

    def start(self, tx: Tx, server: Server, now: int) -> None:
        """The provider has accepted: from this second the server costs money."""
        rows.update_server(tx, server, meters.started(server, now))
        self.reschedule(tx, server.wallet, now)

    def funded(self, tx: Tx, server: Server, now: int) -> None:
        """The owner has added to the server's deposit."""
        self.reschedule(tx, server.wallet, now)
        billed = rows.list_billed(tx, server.wallet)
        available = funds.available_usdc(tx, server.wallet)
        ends = runway.ends(tuple(map(meters.funding, billed)), available, now + runway.HORIZON_S)
        rescheduled = next((each.server for each in billed if each.server.id == server.id), server)
        self._tell_deposit(tx, EventType.DEPOSIT_FUNDED, rescheduled, None, ends.get(server.id), now)

    def repin(self, tx: Tx, before: Server, after: Server, pin: Pin, now: int) -> Server:
        """The server has become `after`, and from this second has another price.

        It is settled up to now, as far as there was money; the rest is owed at the prices that it had.
        """
        if before.reprice_at is not None and before.reprice_at <= now:
            _tell_repriced(tx, before, now)
            after = meters.owing(after, _announced(before), now, since=before.reprice_at, is_resize=False)
        changed = meters.resized(after, pin, now)
        rows.update_server(tx, before, changed)
        self.reschedule(tx, before.wallet, now)
        return rows.get_server(tx, before.id)

    def refuse_to_starve(self, before: Funded, after: Funded, now: int) -> None:
        """Raise `insufficient_deposit` where an owner's own move would end a server sooner than it can be warned of.

        Only the money that comes in and the time that passes may end a server, and both are told of beforehand.
        """
        horizon = now + self.policy.last_s
        was = runway.ends(before.fundings, before.available_usdc, horizon)
        ends = runway.ends(after.fundings, after.available_usdc, horizon)
        for server_id, end in ends.items():
            # A second less is the rounding of a deposit that grows with the price.
            if end < horizon and end + 1 < was.get(server_id, FAR_FUTURE):
                raise _starves(server_id, end - now, self.policy)

    def _look(
        self, tx: Tx, before: Sequence[Billed], after: Sequence[Billed], available: Usdc, now: int
    ) -> list[Server]:
        """Warn, write back, and say when to look again. Answers the servers whose time has come."""
        fundings = tuple(map(meters.funding, after))
        # Whoever may be restored is told until when.
        exhausted = any(old.server.exhausted_at is not None for old in before)
        horizon_s = runway.HORIZON_S if exhausted else self.policy.thresholds_s[0] + DAY
        ends = runway.ends(fundings, available, now + horizon_s)
        over: list[Server] = []
        for old, billed in zip(before, after, strict=True):
            server = self._noticed(tx, billed, ends[billed.server.id], now)
            if server != old.server:
                rows.update_server(tx, old.server, server)
            at = server.exhausted_at
            if at is not None and now >= warnings.may_end_at(self.policy, _notice(server), at):
                over.append(server)
        return over

    def _noticed(self, tx: Tx, billed: Billed, ends_at: int, now: int) -> Server:
        """The server with what its owner has been told, and with the moment at which to look at it again."""
        server = billed.server
        left_s = ends_at - now
        notice = (
            warnings.first(self.policy, left_s)
            if server.epoch == 0
            else warnings.rearmed(self.policy, _notice(server), left_s)
        )
        threshold_s = warnings.crossed(self.policy, notice, ends_at, now)
        if threshold_s is None and left_s < 0 and warnings.last_word_due(self.policy, notice):
            threshold_s = self.policy.last_s
        if threshold_s is not None:
            notice = warnings.warned(notice, threshold_s, self.policy, now)
        told = replace(
            server,
            epoch=notice.epoch,
            warned_s=notice.warned_s,
            last_warned_at=notice.last_warned_at,
            exhausted_at=ends_at if left_s < 0 else None,
        )
        self._tell(tx, server, told, threshold_s, ends_at, now)
        due_at = self._due_at(told, billed.reserve_usdc, notice, ends_at, now)
        return replace(told, due_at=due_at)

    def _due_at(self, server: Server, reserve_usdc: Usdc, notice: Notice, ends_at: int, now: int) -> int:
        meter = server.meter
        if meter is None:
            raise RuntimeError(f"{server.id} is due but has no meter")
        look_at = warnings.look_at(
            self.policy,
            notice,
            ends_at=ends_at,
            reserve_ends_at=paid_until(meter, reserve_usdc),
            auto_renew=server.auto_renew,
            now=now,
        )
        if server.reprice_at is not None and server.exhausted_at is None:
            look_at = min(look_at, max(now, server.reprice_at))
        # An earlier look costs little; writing a later one down for every server at every call costs more.
        return server.due_at if server.due_at is not None and now < server.due_at <= look_at else look_at

    def _tell(
        self, tx: Tx, was: Server, told: Server, threshold_s: int | None, ends_at: int, now: int
    ) -> None:
        if threshold_s is not None:
            cause = f"deposit.low|{told.id}|{told.epoch}|{threshold_s}"
            self._tell_deposit(tx, EventType.DEPOSIT_LOW, told, threshold_s, ends_at, now, cause)
        if told.exhausted_at is not None and was.exhausted_at is None:
            self._tell_deposit(tx, EventType.DEPOSIT_EXHAUSTED, told, None, ends_at, now)
        if told.exhausted_at is None and was.exhausted_at is not None:
            self._tell_deposit(tx, EventType.DEPOSIT_RESTORED, told, None, ends_at, now)

    def _tell_deposit(
        self,
        tx: Tx,
        type: EventType,
        told: Server,
        threshold_s: int | None,
        ends_at: int | None,
        now: int,
        cause: str | None = None,
    ) -> None:
        """Without `ends_at` nobody knows yet: the provider has not accepted. Nor does anybody plan for years ahead."""
        runway_s = expires_at = destroyed_from = None
        if ends_at is not None and ends_at - now < runway.HORIZON_S:
            runway_s = max(0, ends_at - now)
            expires_at = moment(ends_at)
            destroyed_from = moment(max(self._destroyed_from(told, ends_at), now))
        data = DepositData(
            server=told.id,
            name=told.name,
            threshold_s=threshold_s,
            runway_s=runway_s,
            expires_at=expires_at,
            destroyed_from=destroyed_from,
            deposit_remaining=format_usdc(funds.reserve_usdc(tx, told.id)),
            daily_burn=format_usdc(told.daily_usdc),
        )
        emit(tx, told.wallet, type, data, resource=told.id, at=now, cause=cause)

    def _destroyed_from(self, server: Server, ends_at: int) -> int:
        """The first moment at which it is destroyed; a warning that is still to come will come in time for that."""
        if server.warned_s is None or server.warned_s > self.policy.last_s:
            return ends_at + 1 + self.policy.grace_s
        notice = _notice(server)
        if warnings.last_word_due(self.policy, notice):
            # Its life began with less than the last warning: that comes when the money has ended.
            notice = warnings.warned(notice, self.policy.last_s, self.policy, ends_at + 1)
        return warnings.may_end_at(self.policy, notice, ends_at)

    def _end(self, tx: Tx, server: Server, now: int) -> tuple[Operation, Usdc]:
        return endings.begin(
            tx,
            server,
            reason=Reason.DEPOSIT_EXHAUSTED,
            action_id=new_action_id(self._entropy),
            billing_ends_at=server.charged_until or now,
            now=now,
        )


def _steadied(billed: Sequence[Billed], now: int) -> int:
    """The latest second that the wallet has seen, where the clock was set back a little since; else now."""
    seen = [(b.server.charged_until or 0) + (b.server.exhausted_at is not None) for b in billed]
    return max((at for at in seen if now < at <= now + _STEP_BACK_S), default=now)


def _charged(tx: Tx, billed: Sequence[Billed], available: Usdc, now: int) -> tuple[list[Billed], Usdc]:
    """Post what each server burnt up to now; answers them with their meters moved, and what is available then."""
    current = list(billed)
    for until in _cuts(current, now):
        settlement = runway.settle(tuple(map(meters.funding, current)), available, until)
        available = settlement.available_left
        current = [
            Billed(
                server=_repriced(tx, meters.paid_up(meters.charge(tx, b.server, charge)), until),
                reserve_usdc=Usdc(b.reserve_usdc - charge.from_reserve),
            )
            for b, charge in zip(current, settlement.charges, strict=True)
        ]
    return current, available


def _cuts(billed: Sequence[Billed], now: int) -> list[int]:
    """Where a settlement up to now is cut: at the start of each month, and where another price begins."""
    since = min(b.server.charged_until or now for b in billed)
    reprices = (
        max(b.server.reprice_at, b.server.charged_until or now)
        for b in billed
        if b.server.reprice_at is not None
    )
    owed = (past.until for b in billed for past in b.server.owed)
    return sorted({now, *_months(since, now), *(at for at in (*reprices, *owed) if at < now)})


def _months(since: int, now: int) -> Iterator[int]:
    start = next_month(since)
    for _ in range(_MONTHS_MAX):
        if start >= now:
            return
        yield start
        start = next_month(start)


def _repriced(tx: Tx, server: Server, at: int) -> Server:
    """The server with the price that was announced for this moment, if one was.

    What is unpaid from before it is owed at the old price: the new one waits for that.
    """
    if server.reprice_at is None or server.reprice_usdc is None or server.reprice_at > at:
        return server
    if server.charged_until is None or server.charged_until < server.reprice_at:
        return server
    _tell_repriced(tx, server, at)
    return meters.pinned(server, _announced(server), server.reprice_at)


def _announced(server: Server) -> Pin:
    """The price that was announced for it."""
    return server.pin if server.reprice_usdc is None else replace(server.pin, daily_usdc=server.reprice_usdc)


def _tell_repriced(tx: Tx, server: Server, at: int) -> None:
    if server.reprice_at is None or server.reprice_usdc is None:
        raise RuntimeError(f"no price was announced for {server.id}")
    data = PriceData(
        server=server.id,
        type=server.type,
        location=server.location,
        daily_burn=format_usdc(server.daily_usdc),
        new_daily_burn=format_usdc(server.reprice_usdc),
        effective_at=moment(server.reprice_at),
    )
    emit(tx, server.wallet, EventType.PRICE_CHANGED, data, resource=server.id, at=at)


def _notice(server: Server) -> Notice:
    return Notice(epoch=server.epoch, warned_s=server.warned_s, last_warned_at=server.last_warned_at)


def _starves(server_id: ServerId, left_s: int, policy: Policy) -> SpawnError:
    return SpawnError(
        Code.INSUFFICIENT_DEPOSIT,
        f"That would leave {server_id} money for {max(0, left_s)} seconds, less than the {policy.last_s} of its last "
        "warning.",
        details={"server": server_id, "runway": max(0, left_s)},
        next=f"Pay in more, or first DELETE /v1/servers/{server_id}.",
    )
