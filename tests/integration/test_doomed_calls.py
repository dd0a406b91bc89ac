"""A call that cannot succeed settles nothing, costs nothing, and leaves its payment as good as new."""

from pathlib import Path
from typing import Any

from tests.harness import ORDER, World, open_world
from tests.integration.paid_calls import (
    PUBLIC_KEY,
    challenge,
    nothing_changes,
    paid_in,
    refusal,
    usdc,
)
from tests.wallets import Wallet

# Method, path, body, and what they are refused with. The names in braces are filled in by `_stage`.
DOOMED = [
    ("GET", "/v1/servers/{foreign}", None, 403, "forbidden"),
    ("PATCH", "/v1/servers/{foreign}", {"name": "mine"}, 403, "forbidden"),
    ("DELETE", "/v1/servers/{foreign}", None, 403, "forbidden"),
    ("POST", "/v1/servers/{foreign}/deposit", {"amount": "1"}, 403, "forbidden"),
    *(
        ("POST", f"/v1/servers/{{foreign}}/{verb}", None, 403, "forbidden")
        for verb in ("start", "stop", "poweroff", "reboot")
    ),
    ("POST", "/v1/servers/{foreign}/resize", {"type": "medium"}, 403, "forbidden"),
    ("POST", "/v1/servers/{foreign}/rebuild", {"image": "debian-12"}, 403, "forbidden"),
    ("DELETE", "/v1/ssh-keys/{foreign_key}", None, 403, "forbidden"),
    ("POST", "/v1/servers", ORDER | {"name": "new", "ssh_keys": ["{foreign_key}"]}, 403, "forbidden"),
    ("POST", "/v1/servers", ORDER | {"name": "new", "ssh_keys": ["key_none"]}, 404, "not_found"),
    ("GET", "/v1/servers/srv_none", None, 404, "not_found"),
    ("DELETE", "/v1/servers/srv_none", None, 404, "not_found"),
    ("POST", "/v1/servers/srv_none/stop", None, 404, "not_found"),
    ("POST", "/v1/servers/srv_none/resize", {"type": "medium"}, 404, "not_found"),
    ("DELETE", "/v1/ssh-keys/key_none", None, 404, "not_found"),
    ("DELETE", "/v1/servers/{gone}", None, 404, "not_found"),
    ("POST", "/v1/servers", ORDER | {"name": "running"}, 409, "conflict"),
    ("PATCH", "/v1/servers/{running}", {"name": "off"}, 409, "conflict"),
    ("POST", "/v1/ssh-keys", {"name": "again", "public_key": PUBLIC_KEY}, 409, "conflict"),
    ("POST", "/v1/servers/{off}/stop", None, 409, "conflict"),
    ("POST", "/v1/servers/{off}/reboot", None, 409, "conflict"),
    ("POST", "/v1/servers/{running}/resize", {"type": "small"}, 409, "conflict"),
    ("POST", "/v1/servers/{running}/resize", {"type": "arm-small"}, 409, "conflict"),
    ("POST", "/v1/servers/{busy}/reboot", None, 409, "conflict"),
    ("POST", "/v1/servers/{busy}/resize", {"type": "medium"}, 409, "conflict"),
    ("POST", "/v1/servers", ORDER | {"name": "new", "deposit": "900"}, 422, "insufficient_deposit"),
    ("POST", "/v1/servers/{running}/deposit", {"amount": "900"}, 422, "insufficient_deposit"),
    ("POST", "/v1/servers/{rich}/resize", {"type": "large"}, 422, "insufficient_deposit"),
]

# Refused before anybody is asked to pay, so that even the price is not told.
MALFORMED = [
    ("POST", "/v1/servers", ORDER | {"image": "windows-95"}),
    ("POST", "/v1/servers", ORDER | {"type": "huge"}),
    ("POST", "/v1/servers", ORDER | {"type": "arm-small", "location": "ash"}),
    ("POST", "/v1/servers", ORDER | {"location": "mars"}),
    ("POST", "/v1/servers", ORDER | {"deposit": "0.149999"}),
    ("POST", "/v1/servers", ORDER | {"deposit": "a lot"}),
    ("POST", "/v1/servers", ORDER | {"fund": "0.0000001"}),
    ("POST", "/v1/servers", ORDER | {"fund": "-1"}),
    ("POST", "/v1/servers/{running}/rebuild", {"image": "windows-95"}),
    ("POST", "/v1/servers/{running}/deposit", {"amount": "0"}),
    ("PATCH", "/v1/servers/{running}", {}),
    ("POST", "/v1/ssh-keys", {"name": "bad", "public_key": "ssh-ed25519 AAAA"}),
    ("POST", "/v1/balance/deposit", {"amount": "0.009999"}),
    ("POST", "/v1/balance/deposit", {"amount": "1e3"}),
]


async def _stage(world: World, wallet: Wallet) -> dict[str, str]:
    """A wallet's servers in every state that a doomed call needs, and somebody else's server and key."""
    stranger = await world.customer("20.00")
    key = {"name": "laptop", "public_key": PUBLIC_KEY}
    foreign_key = (await world.sign(stranger, "POST", "/v1/ssh-keys", key)).json()["ssh_key"]["id"]
    await world.sign(wallet, "POST", "/v1/ssh-keys", key)
    names = {"foreign": (await world.rent(stranger))["id"], "foreign_key": foreign_key}
    for name, deposit in (("running", "1"), ("off", "1"), ("busy", "1"), ("gone", "1"), ("rich", "10")):
        names[name] = (await world.rent(wallet, name=name, deposit=deposit))["id"]
    await world.sign(wallet, "POST", f"/v1/servers/{names['off']}/poweroff")
    await world.sign(wallet, "DELETE", f"/v1/servers/{names['gone']}")
    await world.run_for(30)
    await world.sign(wallet, "POST", f"/v1/servers/{names['busy']}/reboot")
    return names


def _filled(value: Any, names: dict[str, str]) -> Any:
    match value:
        case str():
            return value.format(**names)
        case list():
            return [_filled(item, names) for item in value]
        case dict():
            return {key: _filled(item, names) for key, item in value.items()}
        case _:
            return value


async def test_a_doomed_call_changes_nothing_on_either_rail(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("18.00")
        names = await _stage(world, wallet)
        for method, template, wanted, status, code in DOOMED:
            path, body = _filled(template, names), _filled(wanted, names)
            async with nothing_changes(world):
                by_signature = await world.sign(wallet, method, path, body, key="k")
                by_payment = await world.pay(wallet, method, path, body, key="k")
            for answer in (by_signature, by_payment):
                error = refusal(answer, status, code)
                assert error["next"] or status != 422
        await world.check_books()


async def test_a_malformed_call_is_refused_before_money_is_asked(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("18.00")
        names = {"running": (await world.rent(wallet))["id"]}
        payment = await world.payment(wallet, "POST", "/v1/servers", ORDER)
        for method, template, body in MALFORMED:
            path = _filled(template, names)
            async with nothing_changes(world):
                refusal(await world.ask(method, path, body), 400, "invalid_request")
                refusal(await world.sign(wallet, method, path, body), 400, "invalid_request")
                refusal(await world.send_payment(payment, method, path, body), 400, "invalid_request")


async def test_the_payment_of_a_doomed_call_is_good_once_the_cause_is_gone(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("12.00")
        first = (await world.sign(wallet, "POST", "/v1/servers", ORDER)).json()["server"]["id"]
        payment = await world.payment(wallet, "POST", "/v1/servers", ORDER)
        async with nothing_changes(world):
            taken = await world.send_payment(payment, "POST", "/v1/servers", ORDER, key="k")
            refusal(taken, 409, "conflict")
        await world.sign(wallet, "PATCH", f"/v1/servers/{first}", {"name": "renamed"})
        done = await world.send_payment(payment, "POST", "/v1/servers", ORDER, key="k")
        assert done.status_code == 201, done.text
        assert len(await paid_in(world, wallet)) == 2


async def test_the_payment_of_a_doomed_call_pays_for_another(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.wallet()
        payment = await world.payment(wallet, "GET", "/v1/servers/srv_none")
        refusal(await world.send_payment(payment, "GET", "/v1/servers/srv_none"), 404, "not_found")
        assert (await world.send_payment(payment, "GET", "/v1/servers")).status_code == 200
        assert [transfer.amount for transfer in await paid_in(world, wallet)] == [1_000]


async def test_a_short_balance_says_what_is_missing_and_that_much_is_enough(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("1.00")
        order = ORDER | {"fund": "0.50"}
        payment = await world.payment(wallet, "POST", "/v1/servers", order)
        async with nothing_changes(world):
            short = await world.send_payment(payment, "POST", "/v1/servers", order)
            details = refusal(short, 422, "insufficient_deposit")["details"]
        assert details == {"need": "5.01", "have": "1.51", "short": "3.50"}
        enough = ORDER | {"fund": "4.00"}
        assert (await world.pay(wallet, "POST", "/v1/servers", enough)).status_code == 201
        assert await world.available(wallet.address) == 0


async def test_a_signed_caller_short_of_the_fee_is_asked_for_money(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        nobody, poor = await world.wallet(), await world.customer("0.01")
        async with nothing_changes(world):
            required = challenge(await world.sign(nobody, "GET", "/v1/servers"))
            assert required["accepts"][0]["amount"] == "1000"
            refusal(await world.sign(poor, "POST", "/v1/servers", ORDER), 422, "insufficient_deposit")


async def test_a_deposit_above_the_daily_cap_settles_nothing(tmp_path: Path) -> None:
    async with open_world(tmp_path, deposit_daily_cap="2.00") as world:
        wallet = await world.customer("1.50")
        async with nothing_changes(world):
            over = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "0.500001"})
            error = refusal(over, 422, "deposit_limit")
            assert error["details"] == {"cap": "2.00", "paid": "1.50"}
            funded = await world.pay(wallet, "POST", "/v1/servers", ORDER | {"fund": "0.60", "deposit": "1"})
            refusal(funded, 422, "deposit_limit")
        within = await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "0.50"})
        assert within.status_code == 200
        world.clock.advance(86_401)
        assert (await world.pay(wallet, "POST", "/v1/balance/deposit", {"amount": "2.00"})).status_code == 200
        assert await world.available(wallet.address) == usdc("4.00")
