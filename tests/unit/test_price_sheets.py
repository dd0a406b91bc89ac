"""What a provider's new lists change: prices follow their cost, nobody's rises without notice, and twice is once."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from spawn_providers.catalog import DEFAULT_CATALOG, Catalog, Currency, Offer, Wholesale
from spawn_schemas.money import Usdc

from spawn.domain.price_changes import NOTICE_S, PriceChange, PriceChangeId, overlay
from spawn.domain.price_sheets import IGNORED_PERCENT, Place, Reading, Sheet, Terms, first, reread
from spawn.domain.prices import cost_usdc, floored, margin_price_usdc, retail

NOW = 1_790_000_000
DAY = 86_400
EUR = Usdc(1_080_000)
TERMS = Terms(eur_usdc=EUR, margin_percent=20, floor_percent=105)
AS_LISTED = replace(TERMS, margin_percent=0)
WHERE = ("nbg1", "fsn1", "ash")

COSTS = st.one_of(
    st.none(),
    st.builds(Wholesale, currency=st.sampled_from(Currency), daily_micro=st.integers(1, 10**7)),
)
LISTS = st.dictionaries(st.sampled_from(WHERE), COSTS, min_size=1).map(lambda found: listing(costs=found))
ALL_TERMS = st.builds(
    Terms,
    eur_usdc=st.integers(800_000, 1_400_000).map(Usdc),
    margin_percent=st.integers(0, 90),
    floor_percent=st.integers(0, 200),
)


def listing(
    machine: str = "cx23", costs: Mapping[str, Wholesale | None] | None = None, **more: Wholesale | None
) -> Catalog:
    usual = DEFAULT_CATALOG.offers[0]
    return replace(
        DEFAULT_CATALOG,
        offers=tuple(
            replace(usual, location=place, provider_type=machine, wholesale=cost)
            for place, cost in {**(costs or {}), **more}.items()
        ),
    )


def euros(daily_micro: int) -> Wholesale:
    return Wholesale(currency=Currency.EUR, daily_micro=daily_micro)


class Shop:
    """A provider's lists read again and again, and the changes that came of it, kept as the tables keep them."""

    def __init__(self, listed: Catalog, terms: Terms = TERMS) -> None:
        self.terms = terms
        self.sheet: Sheet = first(listed, terms)
        self.changes: dict[Place, PriceChange] = {}
        self.now = NOW
        self._ids = 0

    def read(self, listed: Catalog, terms: Terms | None = None) -> Reading:
        terms = terms or self.terms
        reading = reread(
            self.sheet,
            listed,
            self.changes,
            was=self.terms,
            terms=terms,
            new_id=self._new_id,
            now=self.now,
        )
        self.sheet, self.terms = reading.sheet, terms
        for move in reading.moves:
            self.announce(move.change)
        return reading

    def announce(self, change: PriceChange) -> None:
        """As when everybody was told at once."""
        self.changes[change.type, change.location] = replace(change, told_to=None)

    def sold(self, location: str = "nbg1") -> Offer:
        catalog = floored(
            overlay(self.sheet.catalog, tuple(self.changes.values())),
            eur_usdc=self.terms.eur_usdc,
            percent=self.terms.floor_percent,
        )
        return catalog.find("small", location) or pytest.fail("it is not sold")

    def _new_id(self) -> PriceChangeId:
        self._ids += 1
        return PriceChangeId(f"prc_{self._ids}")


# --- retail from wholesale --------------------------------------------------------------------------------------------


@given(cost=COSTS.filter(bool), eur_usdc=st.integers(1, 10**7).map(Usdc), margin=st.integers(1, 90))
def test_at_least_the_margin_is_left_and_a_tenth_of_a_cent_less_would_leave_less(
    cost: Wholesale, eur_usdc: Usdc, margin: int
) -> None:
    price = margin_price_usdc(cost, eur_usdc=eur_usdc, margin_percent=margin)
    ours = cost_usdc(cost, eur_usdc=eur_usdc)
    assert price % 1_000 == 0
    assert (price - ours) * 100 >= margin * price
    assert (price - 1_000 - ours) * 100 < margin * (price - 1_000)


@given(listed=LISTS, terms=ALL_TERMS)
def test_what_is_sold_is_never_below_its_floor_and_without_a_cost_as_listed(
    listed: Catalog, terms: Terms
) -> None:
    for before, offer in zip(listed.offers, terms.retail(listed).offers, strict=True):
        if before.wholesale is None:
            assert offer == before
        else:
            assert offer.daily_usdc >= terms.floor_usdc(offer)
            assert offer.deposit_usdc * before.daily_usdc >= before.deposit_usdc * offer.daily_usdc


def test_the_simulated_catalog_is_sold_as_it_is_without_a_margin() -> None:
    assert retail(DEFAULT_CATALOG, eur_usdc=EUR, margin_percent=0, floor_percent=105) == DEFAULT_CATALOG


@pytest.mark.parametrize(
    ("margin", "floor", "price"),
    [
        (0, 105, 1_200_000),  # as it is listed
        (0, 125, 1_350_000),  # 1.08 USDC and a quarter
        (20, 105, 1_350_000),  # 1.08 USDC are four fifths of it
        (70, 105, 3_600_000),
        (1, 105, 1_134_000),  # 1.091 would be below the floor
    ],
)
def test_traffic_has_the_same_margin_and_floor_as_a_day(margin: int, floor: int, price: int) -> None:
    sold = retail(DEFAULT_CATALOG, eur_usdc=EUR, margin_percent=margin, floor_percent=floor)
    europe, america = sold.find("small", "nbg1"), sold.find("small", "ash")
    assert europe is not None
    assert america is not None
    assert (europe.tb_usdc, america.tb_usdc) == (price, None)


def test_a_new_price_of_traffic_is_for_new_orders_and_is_not_announced() -> None:
    shop = Shop(DEFAULT_CATALOG)
    dearer = tuple(
        replace(o, wholesale=replace(o.wholesale, tb_micro=2_000_000)) if o.wholesale else o
        for o in DEFAULT_CATALOG.offers
    )
    reading = shop.read(replace(DEFAULT_CATALOG, offers=dearer))
    offer = reading.sheet.catalog.find("small", "nbg1")
    assert offer is not None
    assert (offer.tb_usdc, reading.moves) == (2_700_000, ())


# --- reading again ----------------------------------------------------------------------------------------------------


@given(lists=st.lists(st.tuples(LISTS, ALL_TERMS), min_size=2, max_size=5), days=st.integers(0, 40))
def test_prices_follow_and_rises_are_announced(lists: list[tuple[Catalog, Terms]], days: int) -> None:
    shop = Shop(*lists[0])
    for listed, terms in lists[1:]:
        shop.now += days * DAY
        before = {(offer.type, offer.location): offer for offer in shop.sheet.catalog.offers}
        reading = shop.read(listed, terms)
        assert [o.location for o in shop.sheet.catalog.offers] == [o.location for o in listed.offers]
        assert {o.location for o in reading.new} == {o.location for o in listed.offers} - {
            place for _, place in before
        }
        for move in reading.moves:
            assert move.change.effective_at >= shop.now + (NOTICE_S if move.rises else 0)
            wanted = terms.retail(listed).find("small", move.offer.location)
            assert wanted is not None
            assert move.change.daily_usdc == wanted.daily_usdc
        assert {m.offer.location for m in reading.moves}.isdisjoint(h.offer.location for h in reading.held)
        again = reread(
            shop.sheet, listed, shop.changes, was=terms, terms=terms, new_id=shop._new_id, now=shop.now
        )
        assert (again.new, again.gone) == ((), ())
        if not reading.held:
            assert (again.moves, again.sheet) == ((), shop.sheet)


@given(first_cost=st.integers(100_000, 500_000), then=st.integers(100_000, 500_000))
def test_a_price_follows_its_cost_unless_it_hardly_moved(first_cost: int, then: int) -> None:
    shop = Shop(listing(nbg1=euros(first_cost)))
    old = shop.sold().daily_usdc
    reading = shop.read(listing(nbg1=euros(then)))
    wanted = margin_price_usdc(euros(then), eur_usdc=EUR, margin_percent=20)
    if abs(wanted - old) * 100 >= IGNORED_PERCENT * old and wanted != old:
        assert [move.rises for move in reading.moves] == [wanted > old]
        assert shop.sold().daily_usdc == wanted
    else:
        assert reading.moves == ()
        assert shop.sold().daily_usdc == old


def test_small_steps_add_up() -> None:
    shop = Shop(listing(nbg1=euros(200_000)))
    moves = [shop.read(listing(nbg1=euros(200_000 - step * 1_000))).moves for step in range(1, 10)]
    assert [len(moved) for moved in moves] == [0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_what_an_operator_announced_stays_until_it_should_cost_something_else() -> None:
    shop = Shop(listing(nbg1=euros(200_000)))
    by_hand = PriceChange(
        id=PriceChangeId("prc_hand"),
        type="small",
        location="nbg1",
        daily_usdc=Usdc(290_000),
        announced_at=NOW,
        effective_at=NOW,
        told_to=None,
    )
    shop.announce(by_hand)
    shop.now += DAY
    assert shop.read(listing(nbg1=euros(200_000))).moves == ()
    assert shop.sold().daily_usdc == 290_000
    shop.read(listing(nbg1=euros(150_000)))
    assert shop.sold().daily_usdc == 203_000


def test_a_second_rise_waits_for_the_first() -> None:
    shop = Shop(listing(nbg1=euros(200_000)))
    (rise,) = shop.read(listing(nbg1=euros(240_000))).moves
    assert rise.change.effective_at == NOW + NOTICE_S
    shop.now += DAY
    waiting = shop.read(listing(nbg1=euros(250_000)))
    assert waiting.moves == ()
    (held,) = waiting.held
    assert rise.change.id in held.why
    assert shop.sold().daily_usdc == rise.change.daily_usdc
    assert shop.sold().wholesale == euros(250_000), "what it costs us is known at once"
    shop.now = NOW + NOTICE_S
    (second,) = shop.read(listing(nbg1=euros(250_000))).moves
    assert second.change.daily_usdc == held.wanted_usdc


def test_a_leap_is_not_believed_however_often_it_is_read() -> None:
    shop = Shop(listing(nbg1=euros(200_000)))
    before = shop.sold()
    for _ in range(3):
        shop.now += DAY
        reading = shop.read(listing(nbg1=euros(20_000_000)))
        assert reading.moves == ()
        assert "factor of 10" in reading.held[0].why
        assert shop.sold() == before


def test_what_is_gone_is_not_sold_and_is_told_of_when_it_is_back_dearer() -> None:
    shop = Shop(listing(nbg1=euros(200_000), ash=euros(400_000)))
    shop.read(listing(nbg1=euros(150_000), ash=euros(400_000)))
    reading = shop.read(listing(ash=euros(400_000)))
    assert [offer.location for offer in reading.gone] == ["nbg1"]
    assert shop.sheet.catalog.sold_in("nbg1") == ()
    shop.now += DAY
    back = shop.read(listing(nbg1=euros(160_000), ash=euros(400_000)))
    (rise,) = back.moves
    assert (rise.offer.daily_usdc, rise.change.effective_at) == (203_000, shop.now + NOTICE_S)


def test_another_machine_under_the_same_name_costs_nobody_more_who_has_the_first() -> None:
    shop = Shop(listing(nbg1=euros(200_000)))
    (move,) = shop.read(listing("cpx22", nbg1=euros(600_000))).moves
    assert (move.change.told_to, move.change.effective_at) == (None, NOW)
    assert shop.sold().provider_type == "cpx22"
    assert shop.sold().daily_usdc == move.change.daily_usdc


@pytest.mark.parametrize(("eur_usdc", "told"), [(1_090_000, 0), (1_200_000, 1)])
def test_the_euro_moves_prices_too(eur_usdc: int, told: int) -> None:
    shop = Shop(listing(nbg1=euros(200_000), ash=None))
    reading = shop.read(listing(nbg1=euros(200_000), ash=None), replace(TERMS, eur_usdc=Usdc(eur_usdc)))
    assert len(reading.moves) == told


def test_without_a_margin_only_the_floor_moves_a_price() -> None:
    shop = Shop(listing(nbg1=euros(100_000)), AS_LISTED)
    assert shop.read(listing(nbg1=euros(130_000))).moves == ()
    (move,) = shop.read(listing(nbg1=euros(150_000))).moves
    assert move.change.daily_usdc == TERMS.floor_usdc(shop.sold())
