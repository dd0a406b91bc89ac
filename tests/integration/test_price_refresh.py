"""What Hetzner charges becomes what is sold: each day, with notice where it rises, and the old list where it fails."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from spawn_providers.base import Provider
from spawn_providers.catalog import Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.money import Usdc

from spawn.domain.price_changes import NOTICE_S
from spawn.domain.prices import margin_price_usdc
from spawn.jobs.prices import REFRESH_S, RETRY_S
from spawn.outbound.exchange import Exchange
from spawn.services.admin import AnnouncePrice, RefreshPrices
from spawn.services.incidents import EURO_LATE_S, PRICES_LATE_S
from spawn.services.moments import moment
from spawn.services.price_refresh import NOTHING, Refresher
from tests.contract.hetzner_subject import HetznerSubject, emulated
from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.faults import Gateway
from tests.harness import VirtualClock, World, open_world
from tests.integration.server_steps import drive, order
from tests.integration.test_price_changes import announced, pending

MARGIN = 20
EUR = Usdc(1_080_000)


@asynccontextmanager
async def selling(folder: Path, **changes: Any) -> AsyncIterator[tuple[HetznerSubject, World]]:
    """A service that sells what the emulated Hetzner does, and has read its lists once."""
    clock = VirtualClock()
    async with emulated(clock=clock) as hetzner:

        def instead(_: Provider) -> Provider:
            return hetzner.provider

        settings: dict[str, Any] = {"providers": "hetzner", "price_margin_percent": MARGIN}
        async with open_world(
            folder, clock=clock, around=instead, first_answer_s=0.05, **(settings | changes)
        ) as world:
            await world.tick("catalog")
            yield hetzner, world


async def next_day(world: World, seconds: int = REFRESH_S) -> None:
    world.clock.advance(seconds)
    await world.tick("catalog")
    await world.tick("prices")


Types = Callable[..., None]


@pytest.fixture
def hetzner_sells(monkeypatch: pytest.MonkeyPatch) -> Types:
    """What the emulator sells from now on: types at other cents a month than usual, or none of them for None."""
    usual = catalog.SERVER_TYPES

    def change(**cents: int | None) -> None:
        types = tuple(
            replace(known, monthly_cents=cents.get(known.name, known.monthly_cents))
            for known in usual
            if cents.get(known.name, known.monthly_cents) is not None
        )
        monkeypatch.setattr(catalog, "SERVER_TYPES", types)

    return change


def offer(world: World, type: str = "small", location: str = "nbg1") -> Offer:
    found = world.service.services.shop.catalog.find(type, location)
    assert found is not None
    return found


def costs(offer: Offer) -> Usdc:
    """What an offer is sold for by its own cost."""
    assert offer.wholesale is not None
    return margin_price_usdc(offer.wholesale, eur_usdc=EUR, margin_percent=MARGIN)


async def rented(world: World) -> str:
    wallet = await world.customer("90.00")
    server: str = (await order(world, wallet)).json()["server"]["id"]
    await drive(world)
    return server


async def changes(world: World) -> list[Any]:
    return await world.rows("SELECT * FROM price_change ORDER BY type, location")


async def test_everything_is_sold_at_its_cost_and_the_margin(tmp_path: Path) -> None:
    async with selling(tmp_path) as (_, world):
        offers = world.service.services.shop.catalog.offers
        assert {o.type for o in offers} == {"small", "medium", "large", "arm-small"}
        assert [o.daily_usdc for o in offers] == [costs(o) for o in offers]
        assert await changes(world) == [], "nobody had another price before"


async def test_a_rise_is_announced_and_a_restart_keeps_what_was_read(
    tmp_path: Path, hetzner_sells: Types
) -> None:
    async with selling(tmp_path) as (_, world):
        server = await rented(world)
        old = (await world.server(server)).daily_usdc
        hetzner_sells(cx23=749)
        await next_day(world)
        new = offer(world).daily_usdc
        assert new == costs(offer(world)) > old
        rise_at = world.clock.now_s() + NOTICE_S
        assert await pending(world, server) == (rise_at, new)
        (told,) = await announced(world, server)
        assert told[2] == moment(rise_at)
        assert {(c["type"], c["location"]) for c in await changes(world)} == {
            ("small", place) for place in catalog.EU
        }
        await world.burn_until(rise_at - 1)
        assert (await world.server(server)).daily_usdc == old
        await world.burn_until(rise_at + 1)
        assert (await world.server(server)).daily_usdc == new
        await world.check_books()
        clock = world.clock
    async with emulated(clock=clock) as again:

        def instead(_: Provider) -> Provider:
            return again.provider

        async with open_world(
            tmp_path, clock=clock, around=instead, providers="hetzner", price_margin_percent=MARGIN
        ) as world:
            assert offer(world).daily_usdc == new
            await world.tick("catalog")
            assert len(await changes(world)) == len(catalog.EU)


async def test_a_fall_is_at_once(tmp_path: Path, hetzner_sells: Types) -> None:
    async with selling(tmp_path) as (_, world):
        server = await rented(world)
        hetzner_sells(cx23=399)
        await next_day(world)
        assert await pending(world, server) == (world.clock.now_s(), offer(world).daily_usdc)
        world.clock.advance(1)
        await world.tick("burn")
        assert (await world.server(server)).daily_usdc == offer(world).daily_usdc == costs(offer(world))
        await world.check_books()


async def test_offers_come_and_go(tmp_path: Path, hetzner_sells: Types) -> None:
    async with selling(tmp_path) as (_, world):
        hetzner_sells(cax11=None)
        await next_day(world)
        assert "arm-small" not in (await world.ask("GET", "/v1/catalog")).text
        refused = await order(world, await world.customer(), type="arm-small")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
        hetzner_sells()
        await next_day(world)
        assert (await order(world, await world.customer(), type="arm-small")).status_code == 201
        hetzner_sells(cx23=None)
        await next_day(world)
        assert offer(world).provider_type == "cpx22", "the size is the next machine of it"
        assert offer(world).daily_usdc == costs(offer(world))


async def test_a_list_that_fails_changes_nothing_and_is_an_incident_after_a_day(
    tmp_path: Path, hetzner_sells: Types, caplog: pytest.LogCaptureFixture
) -> None:
    async with selling(tmp_path) as (hetzner, world):
        before = world.service.services.shop.catalog
        hetzner_sells(cx23=749)
        # The provider itself uses lists that are a day old; older ones it has none.
        world.clock.advance(REFRESH_S + 1)
        for _ in range(30):
            hetzner.emulator.faults.plan("GET /server_types", Gateway())
            await world.tick("catalog", "incidents")
            world.clock.advance(RETRY_S)
        assert world.service.services.shop.catalog == before
        told = [r for r in caplog.records if r.levelno == logging.CRITICAL]
        assert told
        assert all("incident: the lists of hetzner cannot be read since" in r.getMessage() for r in told)
        (row,) = await world.rows("SELECT failing_since FROM price_sheet")
        assert world.clock.now_s() - row["failing_since"] >= PRICES_LATE_S
        await next_day(world, RETRY_S)
        caplog.clear()
        await world.tick("incidents")
        assert caplog.messages == []
        assert offer(world).daily_usdc == costs(offer(world)) > before.offers[0].daily_usdc


async def test_the_operators_order_does_what_the_job_does(tmp_path: Path, hetzner_sells: Types) -> None:
    async with selling(tmp_path) as (_, world):
        carry_out = world.service.workers.clerk.carry_out
        assert await carry_out(RefreshPrices()) == (NOTHING,)
        hetzner_sells(cx33=999)
        world.clock.advance(REFRESH_S)
        said = await carry_out(RefreshPrices())
        assert len(said) == len(catalog.EU)
        assert all(line.startswith("prc_") and "medium" in line for line in said)
        # One that is pending waits for nobody's order: an operator's is refused, the next reading is held.
        with pytest.raises(SpawnError, match="already announces"):
            await carry_out(
                AnnouncePrice(type="medium", location="nbg1", daily_usdc=500_000, effective_at=None)
            )
        hetzner_sells(cx33=1_299)
        world.clock.advance(REFRESH_S)
        held = await carry_out(RefreshPrices())
        assert all("stays at" in line and "already announces" in line for line in held)


async def test_the_simulated_provider_has_nothing_to_read(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert "catalog" not in world.service.jobs
        with pytest.raises(SpawnError) as refusal:
            await world.service.workers.clerk.carry_out(RefreshPrices())
        assert refusal.value.code is Code.CONFLICT


# --- the euro ---------------------------------------------------------------------------------------------------------


class Source:
    """Publishes the euro's price, until it does not."""

    def __init__(self) -> None:
        self.answer = self.of("2026-09-21", "1.08")

    def of(self, day: str, rate: str) -> bytes:
        return b'{"base": "EUR", "date": "%s", "rates": {"USD": %s}}' % (day.encode(), rate.encode())

    def __call__(self, _: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(self.answer))


async def test_the_euro_is_read_and_the_last_one_stays_until_it_is_an_incident(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source()
    async with selling(tmp_path, eur_source="https://rates.example/") as (hetzner, world):
        prices = world.service.services.shop.prices
        exchange = Exchange(
            world.settings.eur_source,
            near_usdc=EUR,
            now_s=world.clock.now_s,
            transport=httpx.MockTransport(source),
        )
        refresher = Refresher(hetzner.provider, "hetzner", prices, exchange, world.clock, world.parts.entropy)
        await refresher.run(world.parts.db)
        cheap = offer(world)
        source.answer = source.of("2026-09-22", "1.20")
        assert len((await refresher.run(world.parts.db)).moves) == len(prices.catalog.offers)
        assert prices.eur_usdc == 1_200_000
        assert offer(world).daily_usdc > cheap.daily_usdc
        assert world.service.services.shop.pin(cheap).cost_daily_usdc == 24 * _hourly(cheap) * 12 // 10
        for broken in (b"busy", source.of("2026-09-23", "11.2")):
            source.answer = broken
            assert (await refresher.run(world.parts.db)).moves == ()
            assert prices.eur_usdc == 1_200_000
        caplog.clear()
        await world.tick("incidents")
        assert caplog.messages == []
        world.clock.advance(EURO_LATE_S + 86_400)
        await world.tick("incidents")
        (line,) = caplog.messages
        assert line.startswith("incident: the euro's price, 1.20 USDC, is of 2026-09-22")


def _hourly(offer: Offer) -> int:
    assert offer.wholesale is not None
    return offer.wholesale.daily_micro // 24
