"""What is for sale: the specification's types and prices in Europe, and nothing where nothing is sold."""

import pytest
from spawn_providers.catalog import DEFAULT_CATALOG

EUROPE = ("nbg1", "fsn1", "hel1")
UNITED_STATES = ("ash", "hil")


def test_every_pair_is_offered_once() -> None:
    pairs = [(offer.type, offer.location) for offer in DEFAULT_CATALOG.offers]
    assert len(pairs) == len(set(pairs))


def test_a_provider_type_names_one_offer_in_a_location() -> None:
    pairs = [(offer.provider_type, offer.location) for offer in DEFAULT_CATALOG.offers]
    assert len(pairs) == len(set(pairs))


def test_offers_and_locations_name_each_other() -> None:
    assert {offer.location for offer in DEFAULT_CATALOG.offers} == {
        location.name for location in DEFAULT_CATALOG.locations
    }


def test_find_gives_each_offer_back() -> None:
    for offer in DEFAULT_CATALOG.offers:
        assert DEFAULT_CATALOG.find(offer.type, offer.location) is offer


@pytest.mark.parametrize(
    ("type_", "location"),
    [("arm-small", "ash"), ("arm-small", "hil"), ("small", "mars"), ("cx23", "nbg1"), ("huge", "nbg1")],
)
def test_find_is_none_where_nothing_is_sold(type_: str, location: str) -> None:
    assert DEFAULT_CATALOG.find(type_, location) is None


def test_sold_in_lists_the_types_of_a_location() -> None:
    for location in EUROPE:
        assert DEFAULT_CATALOG.sold_in(location) == ("small", "medium", "large", "arm-small")
    for location in UNITED_STATES:
        assert DEFAULT_CATALOG.sold_in(location) == ("small", "medium", "large")
    assert DEFAULT_CATALOG.sold_in("mars") == ()


@pytest.mark.parametrize("location", EUROPE)
@pytest.mark.parametrize(
    ("type_", "specified"),
    [
        ("small", ("cx23", 2, 4, 40, 150_000, 5_000_000)),
        ("medium", ("cx33", 4, 8, 80, 220_000, 7_500_000)),
        ("large", ("cx43", 8, 16, 160, 400_000, 13_000_000)),
        ("arm-small", ("cax11", 2, 4, 40, 160_000, 5_250_000)),
    ],
)
def test_europe_has_the_specified_types_and_prices(
    location: str, type_: str, specified: tuple[str, int, int, int, int, int]
) -> None:
    offer = DEFAULT_CATALOG.find(type_, location)
    assert offer is not None
    size = (offer.cores, offer.memory_gb, offer.disk_gb)
    assert (offer.provider_type, *size, offer.daily_usdc, offer.deposit_usdc) == specified


def test_a_month_costs_what_thirty_days_do() -> None:
    assert all(offer.monthly_usdc == 30 * offer.daily_usdc for offer in DEFAULT_CATALOG.offers)


@pytest.mark.parametrize("location", UNITED_STATES)
def test_the_united_states_sell_neither_cx_nor_cax_and_never_cheaper(location: str) -> None:
    for type_ in DEFAULT_CATALOG.sold_in(location):
        there, here = DEFAULT_CATALOG.find(type_, location), DEFAULT_CATALOG.find(type_, "nbg1")
        assert there is not None
        assert here is not None
        assert there.provider_type.startswith("cpx")
        assert there.daily_usdc > here.daily_usdc
        assert (there.cores, there.memory_gb, there.disk_gb) >= (here.cores, here.memory_gb, here.disk_gb)


def test_only_arm_types_are_arm() -> None:
    for offer in DEFAULT_CATALOG.offers:
        assert offer.architecture == ("arm" if offer.type.startswith("arm-") else "x86")


def test_a_deposit_lasts_about_a_month() -> None:
    for offer in DEFAULT_CATALOG.offers:
        assert 30 <= offer.deposit_usdc // offer.daily_usdc <= 35


def test_the_specified_images_are_offered() -> None:
    assert [image.name for image in DEFAULT_CATALOG.images] == [
        "ubuntu-24.04",
        "ubuntu-22.04",
        "debian-12",
        "fedora-41",
    ]
