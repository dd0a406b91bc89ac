"""Nobody's server dies unwarned: the rules one by one, and ten thousand lives in which everything happens."""

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_ledger import runway
from spawn_ledger.accrual import DAY, NO_CAP_S, Meter, month_start, next_month
from spawn_ledger.runway import Funding
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc

from spawn.domain.warnings import (
    HOUR,
    Notice,
    Policy,
    crossed,
    first,
    last_word_due,
    look_at,
    may_end_at,
    rearmed,
    warned,
)

NOW = 1_800_000_000
POLICY = Policy(grace_s=600)
WEEK, THREE_DAYS, SIX_HOURS = 7 * DAY, 3 * DAY, 6 * HOUR
runways_s = st.one_of(
    st.integers(-DAY, 9 * DAY), st.sampled_from([t + d for t in POLICY.thresholds_s for d in (-1, 0, 1)])
)
notices = st.builds(
    Notice,
    epoch=st.integers(1, 5),
    warned_s=st.sampled_from((None, *POLICY.thresholds_s)),
    last_warned_at=st.one_of(st.none(), st.integers(NOW - 30 * DAY, NOW)),
)


@pytest.mark.parametrize(
    ("runway_s", "spent_s"),
    [
        (None, None),
        (WEEK + 1, None),
        (WEEK, None),
        (WEEK - 1, WEEK),
        (DAY, THREE_DAYS),
        (SIX_HOURS - 1, SIX_HOURS),
    ],
)
def test_thresholds_above_the_first_runway_are_born_spent(runway_s: int | None, spent_s: int | None) -> None:
    assert first(POLICY, runway_s) == Notice(epoch=1, warned_s=spent_s, last_warned_at=None)


@given(notices, runways_s)
def test_only_the_tightest_of_the_thresholds_fallen_to_is_warned_of(notice: Notice, runway_s: int) -> None:
    fallen_to = [t for t in POLICY.thresholds_s if runway_s <= t]
    tightest = min(fallen_to, default=None)
    is_spent = tightest is None or (notice.warned_s is not None and notice.warned_s <= tightest)
    assert crossed(POLICY, notice, NOW + runway_s, NOW) == (None if is_spent else tightest)


@given(notices, runways_s)
def test_a_threshold_is_warned_of_once_and_those_above_it_never_again(notice: Notice, runway_s: int) -> None:
    threshold_s = crossed(POLICY, notice, NOW + runway_s, NOW)
    if threshold_s is not None:
        told = warned(notice, threshold_s, POLICY, NOW)
        assert (told.epoch, told.warned_s) == (notice.epoch, threshold_s)
        assert told.last_warned_at == (NOW if threshold_s == SIX_HOURS else notice.last_warned_at)
        assert crossed(POLICY, told, NOW + runway_s, NOW) is None
        later = crossed(POLICY, told, NOW + runway_s, NOW + 10 * DAY)
        assert later == (None if threshold_s == SIX_HOURS else SIX_HOURS)


@given(notices, st.one_of(st.none(), runways_s))
def test_a_runway_longer_than_was_warned_of_opens_an_epoch(notice: Notice, runway_s: int | None) -> None:
    after = rearmed(POLICY, notice, runway_s)
    if notice.warned_s is None or (runway_s is not None and runway_s <= notice.warned_s):
        assert after == notice
    else:
        assert after == replace(
            first(POLICY, runway_s), epoch=notice.epoch + 1, last_warned_at=notice.last_warned_at
        )
        assert after.warned_s is None or after.warned_s > SIX_HOURS
    assert rearmed(POLICY, after, runway_s) == after


def test_a_policy_with_longer_last_words_opens_no_epoch_in_which_they_would_be_spent() -> None:
    told_an_hour_before = Notice(epoch=3, warned_s=HOUR, last_warned_at=NOW - DAY)
    assert rearmed(POLICY, told_an_hour_before, 2 * HOUR) == told_an_hour_before


@pytest.mark.parametrize(
    ("notice", "due"),
    [
        (first(POLICY, HOUR), True),
        (first(POLICY, DAY), False),  # six hours are still to be crossed
        (Notice(epoch=2, warned_s=SIX_HOURS, last_warned_at=NOW), False),
    ],
)
def test_a_life_that_began_too_short_to_be_warned_of_gets_its_last_word_late(
    notice: Notice, due: bool
) -> None:
    assert last_word_due(POLICY, notice) is due


@given(st.integers(-DAY, DAY))
def test_no_end_before_the_grace_nor_six_hours_after_the_last_warning(warned_s: int) -> None:
    notice = Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW + warned_s)
    assert may_end_at(POLICY, notice, NOW) == max(NOW + 1 + 600, NOW + warned_s + SIX_HOURS)


@pytest.mark.parametrize(
    "notice",
    [first(POLICY, HOUR), first(POLICY, WEEK), Notice(epoch=2, warned_s=DAY, last_warned_at=NOW - 30 * DAY)],
)
def test_who_was_not_told_in_this_epoch_has_no_end(notice: Notice) -> None:
    with pytest.raises(ValueError, match="record the tightest warning first"):
        may_end_at(POLICY, notice, NOW)


@pytest.mark.parametrize(
    ("notice", "ends_in_s", "reserve_ends_in_s", "auto_renew", "look_in_s"),
    [
        (first(POLICY, None), 30 * DAY, 30 * DAY, True, DAY),
        (first(POLICY, None), 30 * DAY, DAY, True, DAY),
        (
            first(POLICY, None),
            30 * DAY,
            DAY - 1,
            True,
            HOUR,
        ),  # draws on the wallet before it is looked at next
        (first(POLICY, None), DAY - 1 + WEEK, DAY - 1, False, DAY - 1),
        (first(POLICY, None), WEEK + 60, 0, True, 60),
        (first(POLICY, None), WEEK - 60, WEEK - 60, True, 0),  # due
        (first(POLICY, DAY), DAY, DAY, False, 0),
        (Notice(epoch=1, warned_s=DAY, last_warned_at=None), SIX_HOURS + 9, 0, False, 9),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW), 59, 0, True, 60),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW), 0, 0, False, 1),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW - HOUR), -1, -1, False, 5 * HOUR),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW - DAY), -1, -1, False, 600),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=NOW - DAY), -1000, -1000, False, 0),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=None), 0, 0, False, 1),
        (Notice(epoch=1, warned_s=SIX_HOURS, last_warned_at=None), -1, -1, True, 0),  # the last word
        (Notice(epoch=2, warned_s=DAY, last_warned_at=NOW - 9 * DAY), -1, -1, True, 0),
    ],
)
def test_a_server_is_looked_at_when_something_is_due(
    notice: Notice, ends_in_s: int, reserve_ends_in_s: int, auto_renew: bool, look_in_s: int
) -> None:
    found = look_at(
        POLICY, notice, ends_at=NOW + ends_in_s, reserve_ends_at=NOW + reserve_ends_in_s,
        auto_renew=auto_renew, now=NOW,
    )  # fmt: skip
    assert found == NOW + look_in_s


@pytest.mark.parametrize(
    ("thresholds_s", "grace_s"), [((), 0), ((1, 2), 0), ((2, 2), 0), ((1, 0), 0), ((2, 1), -1)]
)
def test_a_policy_that_makes_no_sense_is_refused(thresholds_s: tuple[int, ...], grace_s: int) -> None:
    with pytest.raises(ValueError, match="runway"):
        Policy(thresholds_s=thresholds_s, grace_s=grace_s)


@dataclass(kw_only=True)
class Living:
    """A server, what its owner was told of it, and what is known of it when it has ended."""

    funding: Funding
    notice: Notice
    told: list[tuple[int, int, int]] = field(default_factory=list)  # epoch, threshold, when
    look_at: int = NOW
    money_ended_at: int | None = None
    ended_at: int | None = None


class Wallet:
    """A wallet's servers, settled, warned and ended as the service does it, and all that may happen to them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.policy = Policy(grace_s=random.choice((0, 0, 600, DAY)))
        self.now = next_month(NOW) - random.randrange(4 * DAY)
        self.available = self.money(24)
        self.servers: list[Living] = []
        for _ in range(random.randint(1, 3)):
            self.create()

    def money(self, hours: int) -> int:
        """So many hours of a middling server at most; often nothing."""
        return max(0, self.random.randint(-hours // 2, hours)) * 10_000

    @property
    def living(self) -> list[Living]:
        return [server for server in self.servers if server.ended_at is None]

    def create(self) -> None:
        """A server from now on, or one whose month is used up soon, and what is left of it free."""
        random = self.random
        month_s = self.now - month_start(self.now)
        meter = Meter(
            daily_usdc=Usdc(random.choice((150_000, 220_000, 400_000))),
            remainder=random.randrange(DAY),
            charged_until=self.now,
            capped_s=random.choice((NO_CAP_S, month_s + random.randrange(2 * DAY))),
            month_s=month_s,
        )
        funding = Funding(
            server_id=ServerId(f"srv_{len(self.servers)}"),
            meter=meter,
            reserve_usdc=Usdc(self.money(10 * 24)),
            auto_renew=random.random() < 0.5,
        )
        born = Living(funding=funding, notice=Notice(epoch=0, warned_s=None, last_warned_at=None))
        self.servers.append(born)
        ends_at = self.ends()[funding.server_id]
        born.notice = first(self.policy, ends_at - self.now)

    def ends(self) -> dict[ServerId, int]:
        fundings = [server.funding for server in self.living]
        return runway.ends(fundings, Usdc(self.available), self.now + 8 * DAY)

    def settle(self) -> None:
        """Charge all that live to now, or to the end of their money."""
        settled = runway.settle([s.funding for s in self.living], Usdc(self.available), self.now)
        self.available = settled.available_left
        for server, charge in zip(self.living, settled.charges, strict=True):
            reserve = Usdc(server.funding.reserve_usdc - charge.from_reserve)
            server.funding = replace(server.funding, meter=charge.meter, reserve_usdc=reserve)

    def decide(self) -> None:
        """Warn, end, and say when to look again; an end may leave money to the others."""
        ends = self.ends()
        while any(self.tell(server, ends[server.funding.server_id]) for server in self.living):
            ends = self.ends()
        for server in self.living:
            alone = runway.ends([replace(server.funding, auto_renew=False)], Usdc(0), self.now)
            server.look_at = look_at(
                self.policy,
                server.notice,
                ends_at=ends[server.funding.server_id],
                reserve_ends_at=alone[server.funding.server_id],
                auto_renew=server.funding.auto_renew,
                now=self.now,
            )
            assert server.look_at > self.now, "what was due was done"

    def tell(self, server: Living, ends_at: int) -> bool:
        """Warn the owner, or end the server, and whether it ended."""
        now, policy = self.now, self.policy
        server.notice = rearmed(policy, server.notice, ends_at - now)
        threshold_s = crossed(policy, server.notice, ends_at, now)
        if threshold_s is None and ends_at < now and last_word_due(policy, server.notice):
            threshold_s = policy.last_s
        if threshold_s is not None:
            assert threshold_s == min(t for t in policy.thresholds_s if ends_at - now <= t), "the tightest"
            server.notice = warned(server.notice, threshold_s, policy, now)
            server.told.append((server.notice.epoch, threshold_s, now))
        if ends_at < now and may_end_at(policy, server.notice, ends_at) <= now:
            server.money_ended_at, server.ended_at = ends_at, now
            self.available += server.funding.reserve_usdc
        return server.ended_at is not None

    def move(self) -> None:
        """Something that changes how long money lasts, most of it for the worse."""
        random = self.random
        server = random.choice(self.living)
        match random.choice(("top up", "top up", "fund", "fund", "spend", "resize", "renew", "create")):
            case "top up":
                self.available += self.money(48)
            case "fund":
                reserve = Usdc(server.funding.reserve_usdc + self.money(120))
                server.funding = replace(server.funding, reserve_usdc=reserve)
            case "spend":
                self.spend()
            case "resize":
                daily = Usdc(random.choice((150_000, 220_000, 400_000, 1_080_000)))
                server.funding = replace(
                    server.funding, meter=replace(server.funding.meter, daily_usdc=daily)
                )
            case "renew":
                server.funding = replace(server.funding, auto_renew=not server.funding.auto_renew)
            case "create":
                self.create()

    def spend(self) -> None:
        self.available -= min(self.available, self.money(24))


class Life:
    """A wallet and the hours in which the service is up; `quiet` are debits after which no server is looked at."""

    def __init__(self, seed: int, *, quiet: bool) -> None:
        self.random = Random(seed)
        self.wallet = Wallet(self.random)
        self.quiet = quiet
        self.down: list[tuple[int, int]] = []

    def live(self) -> list[Living]:
        wallet, moves = self.wallet, self.random.randint(0, 8)
        wallet.decide()
        for _ in range(5_000):
            if not wallet.living:
                return wallet.servers
            look = min(server.look_at for server in wallet.living)
            moved_at = wallet.now + self.random.randrange(DAY) if moves else look + 1
            wallet.now = min(look, moved_at)
            self.be_down()
            wallet.settle()
            if moved_at <= look and moves:
                moves -= 1
                if self.quiet and self.random.random() < 0.5:
                    wallet.spend()
                    continue
                wallet.move()
            wallet.decide()
        raise AssertionError("nothing lives so long on so little")

    def be_down(self) -> None:
        """Now and then nothing happens for a while, and then what was due meanwhile."""
        if self.random.random() < 0.05:
            back_at = self.wallet.now + int(self.random.choice((HOUR, DAY, 10 * DAY)) * self.random.random())
            self.down.append((self.wallet.now, back_at))
            self.wallet.now = back_at

    def up_s(self, since: int, until: int) -> int:
        """For how much of a time the service was up."""
        return until - since - sum(max(0, min(until, b) - max(since, a)) for a, b in self.down)


def check(life: Life, server: Living) -> None:
    """What holds for every server that has ended."""
    policy, late_s = life.wallet.policy, HOUR if life.quiet else 0
    assert server.ended_at is not None
    assert server.money_ended_at is not None
    assert len({(epoch, threshold_s) for epoch, threshold_s, _ in server.told}) == len(server.told)
    assert server.told == sorted(server.told, key=lambda told: (told[0], -told[1], told[2]))
    epoch, threshold_s, told_at = server.told[-1]
    assert (epoch, threshold_s) == (server.notice.epoch, policy.last_s)
    assert server.ended_at - told_at >= SIX_HOURS
    unpaid_s = life.up_s(server.money_ended_at, server.ended_at)
    assert policy.grace_s < server.ended_at - server.money_ended_at
    assert unpaid_s <= max(SIX_HOURS + late_s, policy.grace_s) + 1


def test_no_server_of_ten_thousand_ends_within_six_hours_of_its_tightest_warning() -> None:
    lives, epochs, late = 0, 0, 0
    seed = 0
    while lives < 10_000:
        seed += 1
        life = Life(seed, quiet=seed % 3 == 0)
        for server in life.live():
            check(life, server)
            lives += 1
            epochs += server.notice.epoch > 1
            late += server.told[-1][2] > (server.money_ended_at or 0)
    assert epochs > 1_000, "top-ups open epochs"
    assert late > 100, "some were warned after their money had ended"


def test_an_undisturbed_life_is_warned_of_to_the_second_and_ends_after_its_grace() -> None:
    wallet = Wallet(Random(1))
    wallet.policy, wallet.available, wallet.servers = POLICY, 0, []
    wallet.create()
    (server,) = wallet.servers
    server.funding = replace(server.funding, reserve_usdc=Usdc(9 * server.funding.meter.daily_usdc))
    (ends_at,) = wallet.ends().values()
    server.notice = first(POLICY, ends_at - wallet.now)
    wallet.decide()
    while wallet.living:
        wallet.now = server.look_at
        wallet.settle()
        wallet.decide()
    assert server.told == [(1, t, ends_at - t) for t in POLICY.thresholds_s]
    assert (server.money_ended_at, server.ended_at) == (ends_at, ends_at + 1 + 600)
