"""Registering webhooks and changing them, over the API."""

import logging
from pathlib import Path
from typing import Any

import pytest
from spawn_schemas.events import EventType
from spawn_schemas.ids import WebhookId

from spawn.services.webhooks import WEBHOOKS_MAX
from spawn.store.secrets import SIGNING, SIGNING_BEFORE
from tests.harness import World, open_world
from tests.integration.paid_calls import everything, refusal
from tests.wallets import Wallet

URL = "http://127.0.0.1:9/hooks?token=t0ps3cret"
HOOK = {"url": URL, "types": ["server.*", "deposit.low"], "description": "mine"}


async def create(world: World, wallet: Wallet, **changes: Any) -> dict[str, Any]:
    answer = await world.sign(wallet, "POST", "/v1/webhooks", HOOK | changes)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_a_webhook_from_its_first_day_to_its_last(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        made = await create(world, owner)
        assert made["secret"].startswith("whsec_")
        assert made["webhook"] == {
            "id": made["webhook"]["id"],
            "url": URL,
            "types": ["server.*", "deposit.low"],
            "description": "mine",
            "enabled": True,
            "disabled_reason": None,
            "failing_since": None,
            "created_at": made["webhook"]["created_at"],
            "owner_wallet": owner.address,
        }
        at = f"/v1/webhooks/{made['webhook']['id']}"
        assert (await world.sign(owner, "GET", at)).json() == {"webhook": made["webhook"]}
        assert (await world.sign(owner, "GET", "/v1/webhooks")).json() == {"webhooks": [made["webhook"]]}
        changed = await world.sign(owner, "PATCH", at, {"description": "", "types": ["*"], "enabled": False})
        expected = made["webhook"] | {"description": "", "types": ["*"]}
        assert changed.json()["webhook"] == expected | {"enabled": False, "disabled_reason": "owner"}
        assert (await world.sign(owner, "PATCH", at, {"enabled": True})).json()["webhook"] == expected
        before = await world.available(owner.address)
        assert (await world.sign(owner, "DELETE", at)).json() == {"status": "deleted"}
        assert before - await world.available(owner.address) == 1_000
        for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/deliveries")):
            refusal(await world.sign(owner, method, at + suffix), 404, "not_found")
        assert (await world.sign(owner, "GET", "/v1/webhooks")).json() == {"webhooks": []}
        await world.tick("deliveries")
        assert await world.rows("SELECT * FROM webhook") == []
        assert await world.rows("SELECT * FROM secret WHERE owner = :id", id=made["webhook"]["id"]) == []
        await world.check_books()


async def test_no_secret_is_kept_or_told_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="spawn")
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        first = await world.sign(owner, "POST", "/v1/webhooks", HOOK, key="once")
        again = await world.sign(owner, "POST", "/v1/webhooks", HOOK, key="once")
        assert again.headers["Idempotent-Replayed"] == "true"
        assert again.json() == first.json() | {"secret": None}
        at = f"/v1/webhooks/{first.json()['webhook']['id']}"
        rotated = await world.sign(owner, "POST", f"{at}/secret", key="twice")
        again = await world.sign(owner, "POST", f"{at}/secret", key="twice")
        assert again.json() == rotated.json() | {"secret": None}
        assert first.json()["secret"] != rotated.json()["secret"]
        await world.sign(owner, "POST", f"{at}/test")
        await world.tick("deliveries")
        kept = repr(await everything(world)) + caplog.text
        for secret in (first.json()["secret"], rotated.json()["secret"]):
            assert secret not in kept
            assert secret.removeprefix("whsec_") not in kept
        # What a URL carries may be a secret of the receiver's.
        assert "t0ps3cret" not in caplog.text


async def test_after_a_rotation_the_secret_before_is_kept_for_a_day(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        made = await create(world, owner)
        webhook_id = WebhookId(made["webhook"]["id"])
        vault = world.service.services.shop.vault
        rotated = await world.sign(owner, "POST", f"/v1/webhooks/{webhook_id}/secret")

        async def kept(kind: str) -> str | None:
            return await world.parts.db.write(lambda tx: vault.find(tx, webhook_id, kind))

        assert await kept(SIGNING) == rotated.json()["secret"]
        assert await kept(SIGNING_BEFORE) == made["secret"]
        world.clock.advance(86_400)
        await world.sign(owner, "POST", f"/v1/webhooks/{webhook_id}/test")
        await world.tick("deliveries")
        assert await kept(SIGNING_BEFORE) is None


async def test_another_wallet_gets_nowhere(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner, thief = await world.customer(), await world.customer()
        at = f"/v1/webhooks/{(await create(world, owner))['webhook']['id']}"
        had = await everything(world)
        for method, suffix, body in (
            ("GET", "", None),
            ("PATCH", "", {"url": "http://127.0.0.1:10/"}),
            ("DELETE", "", None),
            ("POST", "/test", None),
            ("POST", "/secret", None),
            ("GET", "/deliveries", None),
        ):
            refusal(await world.sign(thief, method, at + suffix, body), 403, "forbidden")
        assert await everything(world) == had
        assert (await world.sign(thief, "GET", "/v1/webhooks")).json() == {"webhooks": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "http://10.0.0.1/"}, "https only"),
        ({"url": "https://10.0.0.1/"}, "not on the public internet"),
        ({"url": "https://inside.example.com/"}, "not on the public internet"),
        ({"url": "https://mixed.example.com/"}, "not on the public internet"),
        ({"url": "https://nowhere.example.com/"}, "has no address"),
        ({"url": "https://user:pass@hooks.example.com/"}, "no URL to send to"),
        ({"url": "http://127.0.0.1:8402/"}, "this service itself"),
        ({"url": "https://hooks.example.com/" + "a" * 2048}, "2048"),
        ({"url": ""}, "url"),
        ({"types": ["server.runing"]}, "Did you mean server.running?"),
        ({"types": ["nothing.*"]}, "There is no event nothing.*"),
        ({"types": ["server.*,*"]}, "types"),
        ({"types": []}, "types"),
        ({"description": "a\nb"}, "description"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_costs_nothing(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    async with open_world(tmp_path) as world:
        world.names.known |= {
            "inside.example.com": "10.0.0.1",
            "mixed.example.com": "8.8.8.8,169.254.169.254",
            "hooks.example.com": "8.8.8.8",
        }
        owner, stock = await world.customer(), await world.wallet()
        at = f"/v1/webhooks/{(await create(world, owner))['webhook']['id']}"
        had = await everything(world)
        for method, path, body in (("POST", "/v1/webhooks", HOOK | changes), ("PATCH", at, changes)):
            for answer in (
                await world.sign(owner, method, path, body),
                await world.pay(stock, method, path, body),
            ):
                error = refusal(answer, 400, "invalid_request")
                assert said in error["message"], error
        assert await everything(world) == had


async def test_a_change_of_nothing_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        at = f"/v1/webhooks/{(await create(world, owner))['webhook']['id']}"
        refusal(await world.sign(owner, "PATCH", at, {}), 400, "invalid_request")
        refusal(await world.sign(owner, "PATCH", at), 400, "invalid_request")


async def test_a_wallet_has_ten(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner, other = await world.customer(), await world.customer()
        made = [await create(world, owner) for _ in range(WEBHOOKS_MAX)]
        refusal(await world.sign(owner, "POST", "/v1/webhooks", HOOK), 409, "conflict")
        await create(world, other)
        await world.sign(owner, "DELETE", f"/v1/webhooks/{made[0]['webhook']['id']}")
        await create(world, owner)


async def test_every_type_there_is_can_be_asked_for(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        types = [event.value for event in EventType]
        made = await create(world, owner, types=types + types[:5])
        assert made["webhook"]["types"] == types


async def test_it_can_be_paid_for_by_a_stock_client(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        buyer = await world.wallet()
        made = await world.pay(buyer, "POST", "/v1/webhooks", HOOK)
        assert made.status_code == 201
        webhook_id = made.json()["webhook"]["id"]
        shown = await world.pay(buyer, "GET", f"/v1/webhooks/{webhook_id}/deliveries?limit=5")
        assert shown.json() == {"deliveries": [], "next_cursor": None}
        await world.check_books()


async def test_the_log_is_read_page_by_page(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        at = f"/v1/webhooks/{(await create(world, owner))['webhook']['id']}"
        told = [(await world.sign(owner, "POST", f"{at}/test")).json()["event"] for _ in range(5)]
        seen: list[str] = []
        cursors: list[str | None] = [""]
        for _ in range(3):
            page = (await world.sign(owner, "GET", f"{at}/deliveries?limit=2{cursors[-1]}")).json()
            seen += [delivery["event"] for delivery in page["deliveries"]]
            cursors.append(page["next_cursor"] and f"&cursor={page['next_cursor']}")
        assert cursors[-1] is None
        assert seen == told[::-1]
        refusal(await world.sign(owner, "GET", f"{at}/deliveries?cursor=1"), 400, "invalid_request")


async def test_a_test_of_a_disabled_webhook_is_refused(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        owner = await world.customer()
        at = f"/v1/webhooks/{(await create(world, owner))['webhook']['id']}"
        await world.sign(owner, "PATCH", at, {"enabled": False})
        refusal(await world.sign(owner, "POST", f"{at}/test"), 409, "conflict")
