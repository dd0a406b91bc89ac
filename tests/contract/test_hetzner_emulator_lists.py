"""The emulated Hetzner Cloud's lists and limits: pages, selectors, order, what is for sale, and the calls left."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hcloud import APIException

from tests.contract.hetzner_scene import Scene, open_scene
from tests.emulators.hetzner.app import TOKEN


@pytest.fixture
def scene() -> Iterator[Scene]:
    with open_scene() as scene:
        yield scene


def get(scene: Scene, path: str, **query: Any) -> Any:
    return scene.client.request("GET", path, params=query)


def headers(scene: Scene) -> dict[str, int]:
    answer = httpx.get(f"{scene.endpoint}/locations", headers={"Authorization": f"Bearer {TOKEN}"})
    return {
        name.removeprefix("ratelimit-"): int(value)
        for name, value in answer.headers.items()
        if name.startswith("ratelimit-")
    } | {"status": answer.status_code}


# --- pages ----------------------------------------------------------------------------------------------------------


def test_pages_have_nulls_at_both_ends(scene: Scene) -> None:
    for number in range(60):
        scene.order(f"web-{number:02}")
    pages = [get(scene, "/servers", page=page)["meta"]["pagination"] for page in (1, 2, 3)]
    assert [(page["previous_page"], page["next_page"]) for page in pages] == [(None, 2), (1, 3), (2, None)]
    assert {(page["per_page"], page["last_page"], page["total_entries"]) for page in pages} == {(25, 3, 60)}
    assert len(get(scene, "/servers", page=3)["servers"]) == 10
    assert get(scene, "/servers", page=4)["servers"] == []
    assert len(get(scene, "/servers", per_page=500)["servers"]) == 50
    assert len(scene.names()) == 60


def test_pages_may_not_say_how_many_there_are(scene: Scene) -> None:
    for number in range(3):
        scene.order(f"web-{number}")
    scene.emulator.totals = False
    page = get(scene, "/servers", per_page=2)["meta"]["pagination"]
    assert (page["last_page"], page["total_entries"], page["next_page"]) == (None, None, 2)
    assert len(scene.names()) == 3


@pytest.mark.parametrize("query", [{"page": "0"}, {"page": "x"}, {"status": "asleep"}, {"sort": "size"}])
def test_a_parameter_has_the_values_it_may_have(scene: Scene, query: dict[str, str]) -> None:
    with pytest.raises(APIException, match="invalid_input"):
        get(scene, "/servers", **query)


def test_lists_are_ordered_and_filtered(scene: Scene) -> None:
    scene.running("b")
    scene.order("c")
    scene.clock.advance(1)
    scene.order("a")
    assert scene.names() == ["b", "c", "a"]
    for sort, expected in ((["name:desc"], "cba"), (["created:desc", "name"], "acb"), (["id:desc"], "acb")):
        assert "".join(one["name"] for one in get(scene, "/servers", sort=sort)["servers"]) == expected
    assert scene.names(status=["initializing", "off"]) == ["c", "a"]
    assert scene.names(name="b") == ["b"]
    assert scene.names(name="B") == []


# --- selectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("", ["one", "two", "none"]),
        ("wallet=0xaa", ["one"]),
        ("wallet==0xaa", ["one"]),
        ("wallet=0xAA", []),
        ("wallet!=0xaa", ["two", "none"]),
        ("wallet", ["one", "two"]),
        ("!wallet", ["none"]),
        ("wallet in (0xaa, 0xbb)", ["one", "two"]),
        ("wallet notin (0xaa)", ["two", "none"]),
        ("wallet,size=large", ["two"]),
        ("wallet in (0xaa,0xbb),size", ["two"]),
        ("example.com/tier=", ["one"]),
    ],
)
def test_label_selectors(scene: Scene, selector: str, expected: list[str]) -> None:
    scene.order("one", labels={"wallet": "0xaa", "example.com/tier": ""})
    scene.order("two", labels={"wallet": "0xbb", "size": "large"})
    scene.order("none", labels={})
    assert scene.names(label_selector=selector) == expected


@pytest.mark.parametrize("selector", ["=0xaa", "wallet in", "wallet=not a value", "a,,b", "!"])
def test_a_selector_that_cannot_be_read_is_refused(scene: Scene, selector: str) -> None:
    with pytest.raises(APIException, match="invalid_input"):
        scene.names(label_selector=selector)


# --- what is for sale -----------------------------------------------------------------------------------------------


def test_types_say_where_they_are_sold(scene: Scene) -> None:
    types = {one.name: one for one in scene.client.server_types.get_all()}
    sold = {
        name: {
            place.location.name for place in one.locations or [] if place.available and not place.deprecation
        }
        for name, one in types.items()
    }
    europe = {"fsn1", "nbg1", "hel1"}
    assert sold["cx23"] == sold["cax11"] == europe
    assert sold["cpx21"] == {"ash", "hil"}
    assert sold["cpx22"] == europe | {"sin"}
    assert sold["ccx13"] == europe | {"ash", "hil", "sin"}
    assert "cx22" not in types
    priced = {price["location"] for price in types["cx23"].prices or []}
    assert "ash" in priced, "prices name more than can be ordered"


def test_prices_are_decimal_text_with_a_monthly_cap(scene: Scene) -> None:
    pricing = get(scene, "/pricing")["pricing"]
    small = next(one for one in pricing["server_types"] if one["name"] == "cx23")
    here = next(price for price in small["prices"] if price["location"] == "nbg1")
    assert (here["price_hourly"]["net"], here["price_monthly"]["net"]) == ("0.0088000000", "5.4900000000")
    assert here["price_hourly"]["gross"] == "0.010472"
    assert pricing["currency"] == "EUR"
    addresses = {one["type"]: one["prices"][0]["price_monthly"]["net"] for one in pricing["primary_ips"]}
    assert addresses == {"ipv4": "0.5000000000", "ipv6": "0.0000000000"}


def test_an_image_is_there_for_each_architecture(scene: Scene) -> None:
    both = scene.client.images.get_all(name="ubuntu-24.04")
    assert {image.architecture for image in both} == {"x86", "arm"}
    assert scene.client.images.get_all(name="fedora-41") == []
    assert len(scene.client.images.get_all(name="fedora-41", include_deprecated=True)) == 2
    assert {image.type for image in scene.client.images.get_all(type=["app"])} == {"app"}


def test_datacenters_are_gone(scene: Scene) -> None:
    for path in ("/datacenters", "/datacenters/1"):
        answer = httpx.get(f"{scene.endpoint}{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (410, "deprecated_api_endpoint")


# --- the calls left -------------------------------------------------------------------------------------------------


def test_each_answer_says_how_many_calls_are_left(scene: Scene) -> None:
    assert headers(scene) == {
        "limit": 3600,
        "remaining": 3599,
        "reset": scene.clock.now_s() + 1,
        "status": 200,
    }
    with pytest.raises(APIException, match="not_found"):
        get(scene, "/servers/1")
    assert headers(scene)["remaining"] == 3597


def test_a_second_brings_one_call_and_reset_is_when_all_are_back(scene: Scene) -> None:
    scene.emulator.bucket.drain(left=1)
    assert headers(scene)["remaining"] == 0
    for _ in range(3):
        assert headers(scene) | {"reset": 0} == {"limit": 3600, "remaining": 0, "reset": 0, "status": 429}
    assert headers(scene)["reset"] == scene.clock.now_s() + 3600
    scene.clock.advance(2)
    assert [headers(scene)["status"] for _ in range(3)] == [200, 200, 429]
    scene.clock.advance(3600)
    assert headers(scene)["remaining"] == 3599


def test_a_call_that_is_one_too_many_does_nothing_and_tells_of_the_token(scene: Scene) -> None:
    scene.emulator.bucket.drain()
    with pytest.raises(APIException) as caught:
        scene.order()
    assert caught.value.code == "rate_limit_exceeded"
    assert TOKEN[:8] in caught.value.message
    assert scene.emulator.world.servers == {}
