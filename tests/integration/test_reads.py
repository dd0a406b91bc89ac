"""What callers are shown: every field, code and page of the specification, and what we add to it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ORDER, START_S, open_world
from tests.integration.server_steps import (
    DAY,
    action,
    balance,
    code,
    drive,
    micro,
    order,
    recording,
    rent,
    show,
    stored_bytes,
)

SUMMARY = {
    "id", "hetzner_id", "name", "type", "status", "image", "location", "public_net", "created_at", "owner_wallet"
}  # fmt: skip
VIEW = SUMMARY | {
    "cores", "memory_gb", "disk_gb", "network", "ssh_keys", "auto_renew", "daily_burn", "deposit_remaining",
    "deposit_expires_at", "traffic", "reason", "action", "root_password", "ssh_host_keys", "known_hosts", "ready",
    "ssh", "ports", "container",
}  # fmt: skip
ERROR = {"code", "message", "status", "retryable", "retry_after", "details", "next", "request_id"}


async def test_create_and_show_answer_as_the_specification_has_it(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = await order(world, wallet)
        assert created.status_code == 201
        body = created.json()
        assert set(body) == {"server", "action", "deposit_charged", "deposit_remaining", "root_password"}
        assert set(body["server"]) == SUMMARY
        server = body["server"]
        assert re.fullmatch(r"srv_[a-z0-9]{20,}", server["id"])
        assert re.fullmatch(r"act_[a-z0-9]{20,}", body["action"]["id"])
        assert body["action"] == {
            "id": body["action"]["id"],
            "status": "running",
            "command": "create_server",
            "started": "2026-09-21T14:13:20Z",
        }
        assert (server["status"], server["public_net"]) == ("initializing", {"ipv4": None, "ipv6": None})
        assert isinstance(server["hetzner_id"], int)
        assert server["created_at"] == "2026-09-21T14:13:20Z"
        assert (body["deposit_charged"], body["deposit_remaining"]) == ("5.00", "14.99")

        await drive(world)
        seen = await show(world, wallet, server["id"])
        assert set(seen) == VIEW
        assert {name: seen[name] for name in ("type", "image", "location", "name")} == ORDER
        assert (seen["cores"], seen["memory_gb"], seen["disk_gb"]) == (2, 4, 40)
        assert (seen["status"], seen["reason"], seen["action"]) == ("running", None, None)
        assert (seen["daily_burn"], seen["auto_renew"], seen["network"]) == ("0.15", True, "dual")
        assert seen["public_net"]["ipv4"]
        assert seen["public_net"]["ipv6"]
        assert seen["ssh_keys"] == []
        done = await action(world, body["action"]["id"])
        assert set(done) == {"id", "status", "command", "started", "finished", "error", "server_id"}
        assert (done["status"], done["error"], done["server_id"]) == ("success", None, server["id"])
        assert done["finished"] > done["started"]


async def test_an_address_is_lower_case_everywhere(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        checksummed = wallet.account.address
        assert checksummed != checksummed.lower(), "this wallet would prove nothing"
        server_id = await rent(world, wallet)
        listed = (await world.sign(wallet, "GET", "/v1/servers")).json()["servers"]
        assert [s["owner_wallet"] for s in listed] == [checksummed.lower()]
        assert (await show(world, wallet, server_id))["owner_wallet"] == checksummed.lower()
        assert (await world.server(server_id)).wallet == checksummed.lower()
        assert {r["wallet"] for r in await world.rows("SELECT wallet FROM reservation")} == {
            checksummed.lower()
        }
        # What is on disk is the same wallet to every reader, whoever spells it.
        assert checksummed.encode() not in stored_bytes(tmp_path)


async def test_lists_have_pages_limits_and_a_filter(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.customer("40.00"), await world.customer("20.00")
        ids = [await rent(world, wallet, name=f"web-{number}", deposit="0.20") for number in range(5)]
        await rent(world, other, deposit="0.20")
        for server_id in ids[1:3]:
            assert (await world.sign(wallet, "POST", f"/v1/servers/{server_id}/stop")).status_code == 200
        await drive(world)

        async def listed(query: str) -> tuple[list[str], dict[str, int]]:
            answer = await world.sign(wallet, "GET", f"/v1/servers{query}")
            assert answer.status_code == 200, answer.text
            body = answer.json()
            assert all(set(s) == SUMMARY for s in body["servers"])
            return [s["id"] for s in body["servers"]], body["meta"]

        assert await listed("") == (ids, {"page": 1, "per_page": 25, "total": 5})
        assert await listed("?limit=2") == (ids[:2], {"page": 1, "per_page": 2, "total": 5})
        assert await listed("?limit=2&page=3") == (ids[4:], {"page": 3, "per_page": 2, "total": 5})
        assert await listed("?limit=2&page=4") == ([], {"page": 4, "per_page": 2, "total": 5})
        assert await listed("?status=stopped") == (ids[1:3], {"page": 1, "per_page": 25, "total": 2})
        assert await listed("?status=off&limit=1&page=2") == (
            ids[2:3],
            {"page": 2, "per_page": 1, "total": 2},
        )
        assert (await listed("?status=migrating"))[0] == []
        await world.sign(wallet, "DELETE", f"/v1/servers/{ids[0]}")
        await drive(world)
        assert await listed("?status=running") == (ids[3:], {"page": 1, "per_page": 25, "total": 2})


@pytest.mark.parametrize(
    "query", ["?status=asleep", "?limit=0", "?limit=101", "?page=0", "?page=x", "?limit=-1", "?limit=1.5"]
)
async def test_a_list_that_makes_no_sense_is_refused_for_nothing(tmp_path: Path, query: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        refused = await world.sign(wallet, "GET", f"/v1/servers{query}")
        assert code(refused) == (400, "invalid_request")
        assert set(refused.json()["error"]) == ERROR
        assert (await balance(world, wallet))["balance"] == 1_000_000


async def test_reads_cost_the_provider_no_call(tmp_path: Path) -> None:
    recorders, around = recording()
    async with open_world(tmp_path, around=around) as world:
        wallet = await world.customer("20.00")
        server_id = await rent(world, wallet)
        calls = recorders[0].calls
        for path in ("/v1/servers", f"/v1/servers/{server_id}?wait=1", "/v1/balance", "/v1/catalog"):
            assert (await world.sign(wallet, "GET", path)).status_code == 200
        started = await world.sign(wallet, "POST", f"/v1/servers/{server_id}/start")
        assert recorders[0].calls == calls
        assert started.json()["action"]["status"] == "success"
        assert started.json()["action"]["command"] == "start_server"
        assert started.headers["Spawn-Fee"] == "0.002"


async def test_the_catalog_is_the_price_table(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        catalog = (await world.ask("GET", "/v1/catalog")).json()
        assert set(catalog) == {"offers", "images", "locations", "fees", "payment"}
        nuremberg = {o["type"]: o for o in catalog["offers"] if o["location"] == "nbg1"}
        assert {
            name: (
                o["provider_type"],
                o["cores"],
                o["memory_gb"],
                o["disk_gb"],
                o["daily_burn"],
                o["deposit"],
            )
            for name, o in nuremberg.items()
        } == {
            "small": ("cx23", 2, 4, 40, "0.15", "5.00"),
            "medium": ("cx33", 4, 8, 80, "0.22", "7.50"),
            "large": ("cx43", 8, 16, 160, "0.40", "13.00"),
            "arm-small": ("cax11", 2, 4, 40, "0.16", "5.25"),
        }
        assert {i["name"] for i in catalog["images"]} == {
            "ubuntu-24.04",
            "ubuntu-22.04",
            "debian-12",
            "fedora-41",
        }
        assert [place["name"] for place in catalog["locations"]] == ["nbg1", "fsn1", "hel1", "ash", "hil"]
        assert all(not o["provider_type"].startswith(("cx2", "cx3", "cx4", "cax"))
                   for o in catalog["offers"] if o["location"] in {"ash", "hil"})  # fmt: skip
        fees = {(fee["method"], fee["path"]): fee["fee"] for fee in catalog["fees"]}
        assert fees[("POST", "/v1/servers")] == "0.01"
        assert catalog["payment"]["network"] == "eip155:84532"


async def test_the_statement_pages_through_every_line_once(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet, other = await world.customer("20.00"), await world.customer("20.00")
        server_id = await rent(world, wallet)
        for _ in range(30):
            world.clock.advance(DAY // 4)
            await world.tick("burn")
            await world.sign(wallet, "GET", "/v1/servers")
            await world.sign(other, "GET", "/v1/servers")
        await world.sign(wallet, "DELETE", f"/v1/servers/{server_id}")
        await drive(world)
        lines: list[dict[str, Any]] = []
        query, pages = "?limit=7", 0
        while True:
            answer = await world.sign(wallet, "GET", f"/v1/balance/transactions{query}")
            body = answer.json()
            assert len(body["transactions"]) <= 7
            lines += body["transactions"]
            pages += 1
            if body["next_cursor"] is None:
                break
            query = f"?limit=7&cursor={body['next_cursor']}"
        assert pages > 4
        ids = [int(line["id"].removeprefix("txn_")) for line in lines]
        assert ids == sorted(set(ids), reverse=True)
        assert set(lines[0]) == {"id", "kind", "amount", "internal", "reference", "at"}
        kinds = {line["kind"] for line in lines}
        assert {"topup", "fee", "deposit", "burn", "deposit_refund"} <= kinds
        total = sum(_signed_micro(line["amount"]) for line in lines if not line["internal"])
        assert total == (await balance(world, wallet))["balance"]
        assert sum(line["kind"] == "fee" for line in lines) == 32
        whole = (await world.sign(wallet, "GET", "/v1/balance/transactions?limit=100")).json()
        assert (whole["transactions"], whole["next_cursor"]) == (lines, None)


def _signed_micro(text: str) -> int:
    return -micro(text[1:]) if text.startswith("-") else micro(text)


@pytest.mark.parametrize("cursor", ["x", "c", "c-1", "c1e5", "1", "c" + "9" * 30])
async def test_a_strange_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        refused = await world.sign(wallet, "GET", f"/v1/balance/transactions?cursor={cursor}")
        assert code(refused) == (400, "invalid_request")


async def test_a_balance_is_what_is_free_and_what_is_reserved(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = await order(world, wallet)
        answer = (await world.sign(wallet, "GET", "/v1/balance")).json()
        assert answer == {"balance": "19.99", "reserved": "5.00", "available": "14.99"}
        assert created.headers["Spawn-Balance"] == "14.99"
        stranger = await world.wallet("0.00")
        assert (await world.sign(stranger, "GET", "/v1/balance")).json() == {
            "balance": "0.00",
            "reserved": "0.00",
            "available": "0.00",
        }


async def test_waiting_answers_as_soon_as_it_is_done(tmp_path: Path) -> None:
    """`wait` is real time and the world's is not: a waiter is woken by the job that finishes the operation."""
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        created = (await order(world, wallet)).json()
        following = asyncio.create_task(world.ask("GET", f"/v1/actions/{created['action']['id']}?wait=30"))
        path = f"/v1/servers/{created['server']['id']}?wait=30"
        showing = asyncio.create_task(world.sign(wallet, "GET", path))
        await asyncio.sleep(0)
        await drive(world)
        assert (await following).json()["action"]["status"] == "success"
        assert (await showing).json()["server"]["status"] == "running"
        for path in (f"/v1/actions/{created['action']['id']}?wait=61", "/v1/actions/act_none?wait=-1"):
            assert code(await world.ask("GET", path)) == (400, "invalid_request")
        assert code(await world.ask("GET", "/v1/actions/act_none")) == (404, "not_found")
        assert world.clock.now_s() > START_S
