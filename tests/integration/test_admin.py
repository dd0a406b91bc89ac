"""What an operator orders, and what comes of it: in the books, on the servers, for the wallet's owner."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain.barring import Barred, Verb
from spawn.services import admin_looks
from spawn.services.admin import Bar, Clerk, Credit, Order
from spawn.store import wallets
from tests.harness import START_S, World, open_world
from tests.integration.server_steps import compute_usdc, drive, rent
from tests.wallets import Wallet

NOBODY = Address("0x" + "5a" * 20)


def clerk(world: World) -> Clerk:
    return Clerk(world.parts.db, world.service.services.shop.prices, world.clock, world.parts.entropy)


async def order(world: World, wanted: Order) -> tuple[str, ...]:
    return await clerk(world).carry_out(wanted)


async def refused(world: World, wanted: Order) -> SpawnError:
    with pytest.raises(SpawnError) as error:
        await order(world, wanted)
    assert error.value.next
    return error.value


async def look(world: World, read: Any, *args: Any, **options: Any) -> Any:
    return await world.parts.db.write(lambda tx: read(tx, *args, **options))


async def events(world: World, wallet: Address, kind: str) -> list[dict[str, Any]]:
    rows = await world.rows(
        "SELECT data FROM event WHERE wallet = :wallet AND type = :kind ORDER BY seq",
        wallet=wallet,
        kind=kind,
    )
    return [json.loads(row["data"]) for row in rows]


def credit(wallet: Address, usdc: int = 5_000_000, id: str = "one", reason: str = "an outage") -> Credit:
    return Credit(id=id, wallet=wallet, usdc=usdc, reason=reason)


def bar(verb: Verb, wallet: Address, reason: str = "abuse report 7") -> Bar:
    return Bar(verb=verb, wallet=wallet, reason=reason)


# --- credit -------------------------------------------------------------------------------------------------------


async def test_a_credit_is_given_once_and_told(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        assert "Given: 5.00 USDC" in (await order(world, credit(wallet.address)))[0]
        assert "not again" in (await order(world, credit(wallet.address)))[0]
        assert await world.available(wallet.address) == 25_000_000
        assert await world.account("exp:goodwill") == 5_000_000
        told = await events(world, wallet.address, "credit.granted")
        assert told == [{"kind": "goodwill", "reason": "an outage", "amount": "5.00"}]
        (note,) = await look(world, admin_looks.notes, wallet.address)
        assert (note.kind, note.reason) == ("credit", "5.00 USDC: an outage")
        await world.check_books()


@pytest.mark.parametrize("other", [{"usdc": 6_000_000}, {"wallet": NOBODY}])
async def test_a_credit_id_means_one_credit(tmp_path: Path, other: dict[str, Any]) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        await order(world, credit(wallet.address))
        error = await refused(world, credit(**({"wallet": wallet.address} | other)))
        assert error.code is Code.CONFLICT
        assert await world.account("exp:goodwill") == 5_000_000
        assert len(await events(world, wallet.address, "credit.granted")) == 1


async def test_a_wallet_nobody_has_seen_can_be_given_something(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        await order(world, credit(NOBODY))
        assert await world.available(NOBODY) == 5_000_000
        await world.check_books()


@pytest.mark.parametrize("bad", [{"usdc": 1_000_000_001}, {"reason": "  "}, {"reason": "two\nlines"}])
async def test_a_credit_that_cannot_be_meant_is_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    async with open_world(tmp_path) as world:
        assert (await refused(world, credit(NOBODY, **bad))).code is Code.INVALID_REQUEST
        assert await world.rows("SELECT id FROM account") == []


async def test_a_credit_saves_a_server_that_was_about_to_end(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        server = await rent(world, wallet, deposit="0.15")
        (row,) = await world.rows("SELECT due_at FROM server")
        assert row["due_at"] > world.clock.now_s()
        await order(world, credit(wallet.address))
        (row,) = await world.rows("SELECT due_at FROM server")
        assert row["due_at"] == world.clock.now_s(), (
            "the next burn looks at it with the money that it has now"
        )
        await world.burn_until(world.clock.now_s() + 20 * 86_400)
        assert (await world.server(server)).status == "running"
        await world.check_books()


# --- bars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "back", "kind"),
    [(Verb.SUSPEND, Verb.RESTORE, "suspended"), (Verb.BLOCK, Verb.UNBLOCK, "blocked")],
)
async def test_a_barred_wallets_servers_go_off_and_stay_so(
    tmp_path: Path, verb: Verb, back: Verb, kind: str
) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.customer("20.00"), await world.customer("20.00")
        servers = [await rent(world, wallet, name=f"web{n}") for n in range(2)]
        bystander = await rent(world, other)
        fees = await world.account("rev:opfee")
        said = await order(world, bar(verb, wallet.address))
        assert all(server in said[1] for server in servers)
        await drive(world)
        assert [(await world.server(s)).status for s in servers] == ["off", "off"]
        assert (await world.server(bystander)).status == "running"
        assert await world.account("rev:opfee") == fees, "the owner pays no fee for it"
        assert await events(world, wallet.address, "wallet.suspended") == [
            {"kind": kind, "reason": "abuse report 7", "amount": None}
        ]
        await order(world, bar(back, wallet.address, reason=""))
        assert len(await events(world, wallet.address, "wallet.restored")) == 1
        await drive(world)
        assert [(await world.server(s)).status for s in servers] == ["off", "off"]
        notes = await look(world, admin_looks.notes, wallet.address)
        assert [note.kind for note in notes] == [back.value, verb.value]
        await world.check_books()


async def test_a_server_that_is_busy_goes_off_when_the_order_is_repeated(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server = await rent(world, wallet)
        assert (await world.sign(wallet, "POST", f"/v1/servers/{server}/reboot")).is_success
        said = await order(world, bar(Verb.SUSPEND, wallet.address))
        assert "reboot_server runs on it: repeat" in said[1]
        await drive(world)
        assert (await world.server(server)).status == "running"
        said = await order(world, bar(Verb.SUSPEND, wallet.address))
        assert "as before" in said[0]
        await drive(world)
        assert (await world.server(server)).status == "off"
        assert len(await events(world, wallet.address, "wallet.suspended")) == 1, "told once"


async def test_an_address_can_be_blocked_before_it_ever_comes(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        await order(world, bar(Verb.BLOCK, wallet.address))
        assert await look(world, wallets.barred, wallet.address) is Barred.BLOCKED
        paid = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "5.00"})
        assert paid.status_code == 403
        await world.check_books()


async def test_a_bar_needs_a_reason_and_the_right_verb(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        assert (await refused(world, bar(Verb.SUSPEND, NOBODY, reason=""))).code is Code.INVALID_REQUEST
        await order(world, bar(Verb.BLOCK, NOBODY))
        assert (await refused(world, bar(Verb.RESTORE, NOBODY))).code is Code.CONFLICT
        assert len(await look(world, admin_looks.notes, NOBODY)) == 1, "a refused order leaves nothing"


# --- looking ------------------------------------------------------------------------------------------------------


async def test_wallets_are_found_page_by_page(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        made = sorted([(await world.customer("20.00")).address for _ in range(5)])
        await order(world, bar(Verb.BLOCK, made[3]))

        async def page(**options: Any) -> admin_looks.WalletPage:
            given: dict[str, Any] = {"piece": "", "only": None, "after": None, "limit": 2, "now": START_S}
            found: admin_looks.WalletPage = await look(world, admin_looks.wallet_page, **(given | options))
            return found

        seen: list[Address] = []
        cursor: Address | None = None
        for _ in range(5):
            got = await page(after=cursor)
            seen += [line.wallet for line in got.wallets]
            if got.next is None:
                break
            cursor = Address(got.next)
        assert seen == made
        assert [line.wallet for line in (await page(only=Barred.BLOCKED)).wallets] == [made[3]]
        assert [line.wallet for line in (await page(piece=made[2][10:24])).wallets] == [made[2]]
        assert (await page(piece="0x" + "0" * 40)).wallets == ()


async def test_money_is_shown_as_its_owner_sees_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        await rent(world, wallet)
        world.clock.advance(7_200)
        shown = await look(world, admin_looks.show_wallet, wallet.address, world.clock.now_s())
        seen = (await world.sign(wallet, "GET", "/v1/balance")).json()
        assert (shown.wallet.available, shown.wallet.reserved) == (seen["available"], seen["reserved"])
        assert (shown.wallet.servers, len(shown.servers)) == (1, 1)


async def test_a_servers_margin_is_what_the_books_say(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        ids = [
            await rent(world, wallet, name=f"web{n}", location=where)
            for n, where in enumerate(["nbg1", "ash"])
        ]
        await world.burn_until(world.clock.now_s() + 3 * 86_400)
        page = await look(world, admin_looks.server_page, wallet=None, status=None, after="", limit=10)
        lines = {line.id: line for line in page.servers}
        for server in ids:
            revenue = await compute_usdc(world, server)
            costs = await world.rows(
                "SELECT COALESCE(SUM(amount), 0) AS usdc FROM transfer "
                "WHERE reference = :id AND debit IN ('cost:provider', 'exp:overrun')",
                id=server,
            )
            line = lines[server]
            assert line.revenue == _text(revenue)
            assert revenue > 400_000
            if line.location == "ash":
                assert (line.cost, line.margin) == (None, None), "nobody says what it costs us"
                continue
            assert line.cost == _text(costs[0]["usdc"]) != "0.00"
            assert line.margin == _text(revenue - costs[0]["usdc"])


def _text(usdc: int) -> str:
    return format_usdc(Usdc(usdc))


async def test_servers_are_filtered_by_wallet_and_state(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        first, second = await world.customer("20.00"), await world.customer("20.00")
        gone, kept, others = (
            await rent(world, first),
            await rent(world, first, name="b"),
            await rent(world, second),
        )
        assert (await world.sign(first, "DELETE", f"/v1/servers/{gone}")).is_success
        await drive(world)

        async def ids(wallet: Wallet | None, status: str | None, after: str = "", limit: int = 9) -> Any:
            page = await look(
                world,
                admin_looks.server_page,
                wallet=None if wallet is None else wallet.address,
                status=status,
                after=after,
                limit=limit,
            )
            return [line.id for line in page.servers], page.next

        assert await ids(None, None) == (sorted([kept, others]), None)
        assert await ids(first, None) == ([kept], None)
        assert await ids(first, "destroyed") == ([gone], None)
        one, cursor = await ids(None, None, limit=1)
        two, end = await ids(None, None, after=cursor, limit=1)
        assert (one + two, end) == (sorted([kept, others]), None)


async def test_a_statement_adds_up(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        await rent(world, wallet)
        await order(world, credit(wallet.address))
        page = await look(world, admin_looks.statement, wallet.address, before=None, limit=100)
        assert Counter(line.code for line in page.movements) >= Counter(
            ["topup", "goodwill", "deposit", "fee"]
        )
        first = await look(world, admin_looks.statement, wallet.address, before=None, limit=2)
        rest = await look(world, admin_looks.statement, wallet.address, before=first.next, limit=100)
        assert first.movements + rest.movements == page.movements


async def status(world: World) -> admin_looks.Status:
    now = world.clock.now_s()
    trouble = await admin_looks.trouble(world.parts.db, now)
    return await world.parts.db.write(lambda tx: admin_looks.status(tx, trouble, now))


async def test_the_whole_on_one_page(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server = await rent(world, wallet)
        await order(world, bar(Verb.BLOCK, NOBODY))
        shown = await status(world)
        assert (shown.wallets, shown.suspended, shown.blocked) == (2, 0, 1)
        assert shown.servers == {"running": 1}
        assert (shown.operations.count, shown.due.count, shown.deliveries.count) == (0, 0, 0)
        assert (shown.failing_destroys, shown.incidents) == (0, ())
        assert (await world.sign(wallet, "DELETE", f"/v1/servers/{server}")).is_success
        world.clock.advance(4_000)
        shown = await status(world)
        assert (shown.failing_destroys, shown.operations.count) == (1, 1)
        assert server in shown.incidents[0]
