"""A tenant asks the host of a lent machine for logs and runs commands inside: once each, and for nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from spawn_schemas import inside, link, orders

from spawn.jobs.sweep import RESULTS_KEEP_S
from spawn.services.asks import OPEN_MAX
from tests.harness import open_world
from tests.integration.hosts_world import Lent, open_hosts
from tests.integration.scripted_host import Connected, Obedient, dialled
from tests.wallets import Wallet

HOSTNAME = {"argv": ["hostname"]}
Wrote = dict[str, str | int | None]
WROTE: Wrote = {"exit_code": 3, "stdout": "box\n", "stderr": "oops\n"}


class Telling(Obedient):
    """Answers what it is asked with `wrote`; is silent about it while that is None."""

    wrote: Wrote | None = None
    problem: orders.Problem | None = None

    async def obey(self, command: orders.Command) -> None:
        if not isinstance(command.order, orders.Logs | orders.Exec):
            await super().obey(command)
            return
        self.orders.append(command.order)
        self.done[command.command_id] = self.done.get(command.command_id, 0) + 1
        await self.connected.ack(command.command_id, "received")
        if self.problem is not None:
            await self.connected.ack(command.command_id, "failed", problem=self.problem)
        elif self.wrote is not None:
            await self.connected.ack(command.command_id, "succeeded", result=self.wrote)

    async def answer_all(self) -> None:
        """What it was silent about."""
        for command_id in self.done:
            await self.connected.ack(command_id, "succeeded", result=WROTE)

    @property
    def asked(self) -> list[orders.Order]:
        return [order for order in self.orders if isinstance(order, orders.Logs | orders.Exec)]


class Rented:
    """A running server of `wallet`, on a host that tells."""

    def __init__(self, lent: Lent, machine: Telling, wallet: Wallet, view: dict[str, Any]) -> None:
        self.lent = lent
        self.machine = machine
        self.wallet = wallet
        self.id = view["id"]

    async def run(self, body: object = HOSTNAME, *, query: str = "", **options: Any) -> httpx.Response:
        wallet = options.pop("wallet", self.wallet)
        path = f"/v1/servers/{self.id}/exec{query}"
        return await self.lent.world.sign(wallet, "POST", path, body, **options)

    async def logs(self, query: str = "", *, wallet: Wallet | None = None) -> httpx.Response:
        path = f"/v1/servers/{self.id}/logs{query}"
        return await self.lent.world.sign(wallet or self.wallet, "GET", path)

    async def available(self) -> int:
        return int(await self.lent.world.available(self.wallet.address))

    async def in_tables(self, text: str) -> bool:
        """Whether any row of the books has this."""
        for table in ("command", "reservation", "event", "secret", "operation"):
            if any(text in str(dict(row)) for row in await self.lent.world.rows(f"SELECT * FROM {table}")):
                return True
        return False


@asynccontextmanager
async def rented(folder: Path) -> AsyncIterator[Rented]:
    async with open_hosts(folder) as lent, dialled(lent.host) as connected:
        machine = Telling(connected)
        serving = asyncio.create_task(machine.serve())
        try:
            wallet = await lent.world.customer("20.00")
            view = await lent.rent(wallet)
            await sync(connected, view["id"])
            yield Rented(lent, machine, wallet, view)
            await lent.world.check_books()
        finally:
            await machine.stop(serving)


async def sync(connected: Connected, server_id: Any) -> None:
    report = orders.RentalReport(rental_id=server_id, generation=1, state="running", since=1)
    await connected.send(link.StateSync, rentals=(report,))


def going_on(answer: httpx.Response) -> bool:
    """Whether it was taken, and its host has not said what came of it."""
    ran = answer.json().get("ran", {})
    return (answer.status_code, ran.get("status"), ran.get("error")) == (200, "running", None)


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_command_is_run_and_its_answer_is_told_again_but_never_kept_in_clear(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        it.machine.wrote = WROTE
        before = await it.available()
        argv = ["sh", "-c", "a secret line"]
        answer = await it.run({"argv": argv, "timeout_s": 7}, key="once")
        assert answer.status_code == 200, answer.text
        ran = answer.json()["ran"]
        assert ran == WROTE | {"id": ran["id"], "server_id": it.id, "status": "ended", "error": None}
        assert before - await it.available() == 2_000
        (order,) = it.machine.asked
        assert isinstance(order, orders.Exec)
        assert (order.rental_id, order.argv, order.timeout_s) == (it.id, tuple(argv), 7)
        again = await it.run({"argv": argv, "timeout_s": 7}, key="once")
        assert again.json() == answer.json()
        assert again.headers["Idempotent-Replayed"] == "true"
        assert len(it.machine.asked) == 1
        assert before - await it.available() == 2_000
        assert await it.in_tables(ran["id"])
        assert not await it.in_tables("oops")
        assert not await it.in_tables("secret line")


async def test_while_the_host_is_silent_the_same_call_waits_for_the_same_command(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        waiting = await it.run(query="?wait=0", key="slow")
        assert going_on(waiting)
        still = await it.run(query="?wait=0", key="slow")
        assert still.json() == waiting.json()
        await it.lent.until(lambda: _asked(it, 1))
        # What the host does not answer is in nobody's way.
        stopped = await it.lent.world.sign(it.wallet, "POST", f"/v1/servers/{it.id}/poweroff")
        assert stopped.status_code == 200, stopped.text
        await it.machine.answer_all()
        told = asyncio.create_task(it.run(query="?wait=0", key="slow"))
        await it.lent.until(lambda: _ended(it))
        await told
        done = await it.run(query="?wait=0", key="slow")
        assert (done.json()["ran"]["status"], done.json()["ran"]["stdout"]) == ("ended", "box\n")
        assert len(it.machine.asked) == 1


async def test_what_took_longer_than_its_caller_waited_is_told_for_nothing(tmp_path: Path) -> None:
    """A stock client cannot send the same payment again: it has its receipt, and asks what came of it."""
    async with rented(tmp_path) as it:
        world, path = it.lent.world, f"/v1/servers/{it.id}/exec"
        paid = await world.pay(it.wallet, "POST", f"{path}?wait=0", HOSTNAME)
        assert going_on(paid)
        assert "PAYMENT-RESPONSE" in paid.headers
        shown = f"/v1/commands/{paid.json()['ran']['id']}"
        before = await it.available()
        assert going_on(await world.sign(it.wallet, "GET", f"{shown}?wait=0"))
        asking = asyncio.create_task(world.sign(it.wallet, "GET", f"{shown}?wait=60"))
        await it.lent.until(lambda: _asked(it, 1))
        await it.machine.answer_all()
        told = await asyncio.wait_for(asking, 30)
        assert told.json()["ran"] == paid.json()["ran"] | WROTE | {"status": "ended"}
        assert await it.available() == before
        assert (await world.pay(it.wallet, "GET", shown)).json() == told.json()
        for other in ("cmd_nobody", "x", "%00"):
            assert refused(await world.sign(it.wallet, "GET", f"/v1/commands/{other}"))[0] in {400, 404}
        thief = await world.customer("1.00")
        assert refused(await world.sign(thief, "GET", shown)) == (403, "forbidden")
        assert len(it.machine.asked) == 1


@pytest.mark.parametrize("kind", ["start_instance", "logs"])
async def test_what_ran_is_told_of_what_was_run(tmp_path: Path, kind: str) -> None:
    async with rented(tmp_path) as it:
        it.machine.wrote = {"text": "Server listening\n"}
        assert (await it.logs()).status_code == 200
        (other,) = await it.lent.world.rows("SELECT id FROM command WHERE kind = :kind", kind=kind)
        answer = await it.lent.world.sign(it.wallet, "GET", f"/v1/commands/{other['id']}")
        assert refused(answer) == (404, "not_found")


async def test_whoever_waits_is_answered_when_the_host_does(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        calling = asyncio.create_task(it.run(query="?wait=60"))
        await it.lent.until(lambda: _asked(it, 1))
        assert not calling.done()
        await it.machine.answer_all()
        answer = await asyncio.wait_for(calling, 30)
        assert answer.json()["ran"]["exit_code"] == 3


async def test_a_payment_that_is_sent_again_runs_nothing_again(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        world, path = it.lent.world, f"/v1/servers/{it.id}/exec?wait=0"
        payment = await world.payment(it.wallet, "POST", path, HOSTNAME)
        first = await world.send_payment(payment, "POST", path, HOSTNAME)
        assert going_on(first)
        await it.lent.until(lambda: _asked(it, 1))
        await it.machine.answer_all()
        await it.lent.until(lambda: _ended(it))
        second = await world.send_payment(payment, "POST", path, HOSTNAME)
        assert second.json()["ran"]["stdout"] == "box\n"
        assert "PAYMENT-RESPONSE" in second.headers
        assert len(it.machine.asked) == 1


async def test_logs_are_read_by_their_owner(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        it.machine.wrote = {"text": "Server listening\n"}
        before = await it.available()
        answer = await it.logs("?lines=7")
        assert answer.json() == {"logs": {"server_id": it.id, "text": "Server listening\n", "error": None}}, (
            answer.text
        )
        (order,) = it.machine.asked
        assert isinstance(order, orders.Logs)
        assert order.lines == 7
        assert before - await it.available() == 1_000
        for bad in ("?lines=0", "?lines=1001", "?lines=x", "?wait=61"):
            assert refused(await it.logs(bad)) == (400, "invalid_request")
        opened = await it.lent.world.sign(it.wallet, "POST", "/v1/sessions")
        bearer = {"Authorization": f"Bearer {opened.json()['session']['token']}"}
        by_session = await it.lent.world.http.get(f"/v1/servers/{it.id}/logs", headers=bearer)
        assert by_session.json() == answer.json()
        ran = await it.lent.world.http.post(f"/v1/servers/{it.id}/exec", headers=bearer, json=HOSTNAME)
        assert ran.status_code == 402
        assert len(it.machine.asked) == 2
        assert not await it.in_tables("Server listening")


async def test_a_failure_is_told_in_the_hosts_words(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        it.machine.problem = orders.Problem(code="not_running", message="It does not run.")
        answer = await it.run()
        assert answer.status_code == 200, answer.text
        ran = answer.json()["ran"]
        assert ran["error"] == {"code": "not_running", "message": "It does not run."}
        assert (ran["exit_code"], ran["stdout"], ran["stderr"]) == (None, "", "")
        logs = (await it.logs()).json()["logs"]
        assert (logs["text"], logs["error"]["code"]) == ("", "not_running")


@pytest.mark.parametrize(
    "wrote",
    [
        {},
        {"exit_code": "0", "stdout": 7, "stderr": None},
        {"exit_code": 10**30, "stdout": "", "stderr": ""},
        {"exit_code": None, "stdout": "\x00" * 70_000, "stderr": "é" * 70_000},
        {f"field{number}": "x" * 3_000 for number in range(90)},
    ],
)
async def test_a_host_that_answers_nonsense_is_made_sense_of(tmp_path: Path, wrote: Wrote) -> None:
    async with rented(tmp_path) as it:
        it.machine.wrote = wrote
        answer = await it.run()
        assert answer.status_code == 200, answer.text
        ran = answer.json()["ran"]
        assert ran["exit_code"] is None
        assert max(len(ran["stdout"]), len(ran["stderr"])) <= inside.TEXT_MAX


async def test_nobody_else_asks(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        thief = await it.lent.world.customer("20.00")
        before = await it.lent.world.available(thief.address)
        for answer in (await it.run(wallet=thief), await it.logs(wallet=thief)):
            assert refused(answer) == (403, "forbidden")
        paid = await it.lent.world.pay(thief, "POST", f"/v1/servers/{it.id}/exec", HOSTNAME)
        assert refused(paid) == (403, "forbidden")
        assert it.machine.asked == []
        assert await it.lent.world.available(thief.address) == before


@pytest.mark.parametrize(
    "body",
    [
        {"argv": []},
        {"argv": ["a\x00b"]},
        {"argv": ["x"] * 65},
        {"argv": ["x" * 4097]},
        {"argv": "hostname"},
        {"argv": ["true"], "timeout_s": 0},
        {"argv": ["true"], "timeout_s": 301},
        {"argv": ["true"], "user": "root"},
        {},
    ],
)
async def test_a_malformed_command_is_refused(tmp_path: Path, body: object) -> None:
    async with rented(tmp_path) as it:
        assert refused(await it.run(body)) == (400, "invalid_request")
        assert it.machine.asked == []


async def test_nothing_is_asked_or_charged_where_nobody_could_answer(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        before = await it.available()
        stopped = await it.lent.world.sign(it.wallet, "POST", f"/v1/servers/{it.id}/poweroff")
        assert stopped.status_code == 200, stopped.text
        await it.lent.until(lambda: it.lent.status_is(it.id, "off"))
        assert refused(await it.run()) == (409, "conflict")
        await it.lent.world.parts.db.write(lambda tx: tx.execute("UPDATE host SET state = 'offline'"))
        silent = await it.logs()
        assert refused(silent) == (503, "provider_failed")
        assert int(silent.headers["Retry-After"]) > 0
        assert before - await it.available() == 2_000  # the poweroff
        assert it.machine.asked == []


async def test_a_few_asks_wait_at_once(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        for _ in range(OPEN_MAX):
            assert going_on(await it.run(query="?wait=0"))
        before = await it.available()
        assert refused(await it.run(query="?wait=0")) == (429, "rate_limited")
        assert await it.available() == before
        await it.lent.until(lambda: _asked(it, OPEN_MAX))
        await it.machine.answer_all()
        await it.lent.until(lambda: _ended(it))
        assert going_on(await it.run(query="?wait=0"))


async def test_what_was_written_is_forgotten_after_an_hour(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        it.machine.wrote = WROTE
        assert (await it.run(key="old")).status_code == 200
        await it.lent.world.tick("sweep")
        assert (await it.run(key="old")).status_code == 200
        it.lent.world.clock.advance(RESULTS_KEEP_S + 1)
        await it.lent.world.tick("sweep")
        assert refused(await it.run(key="old")) == (404, "not_found")
        assert await it.lent.world.rows("SELECT owner FROM secret WHERE kind = 'result'") == []
        left = [row["kind"] for row in await it.lent.world.rows("SELECT kind FROM command")]
        assert left == ["start_instance"]
        assert len(it.machine.asked) == 1


async def test_a_command_that_its_host_never_heard_has_expired(tmp_path: Path) -> None:
    async with open_hosts(tmp_path) as lent:
        wallet = await lent.world.customer("20.00")
        async with dialled(lent.host) as connected:
            machine = Telling(connected)
            serving = asyncio.create_task(machine.serve())
            it = Rented(lent, machine, wallet, await lent.rent(wallet))
            await machine.stop(serving)
        waiting = await it.run(query="?wait=0", key="lost")
        assert going_on(waiting)
        lent.world.clock.advance(61)
        expired = await it.run(query="?wait=0", key="lost")
        assert expired.json()["ran"]["error"]["code"] == "expired"
        await lent.world.check_books()


async def test_a_server_that_ends_ends_what_was_asked_about_it(tmp_path: Path) -> None:
    async with rented(tmp_path) as it:
        assert going_on(await it.run(query="?wait=0", key="late"))
        gone = await it.lent.world.sign(it.wallet, "DELETE", f"/v1/servers/{it.id}")
        assert gone.status_code == 200, gone.text
        await it.lent.until(lambda: it.lent.status_is(it.id, "destroyed"))
        ended = await it.run(query="?wait=0", key="late")
        assert ended.json()["ran"]["error"]["code"] == "withdrawn"
        assert refused(await it.logs()) == (409, "conflict")


async def test_a_server_that_is_not_lent_is_reached_by_ssh(tmp_path: Path) -> None:
    async with open_world(tmp_path) as world:
        wallet = await world.customer("20.00")
        server = await world.rent(wallet)
        before = await world.available(wallet.address)
        for answer in (
            await world.sign(wallet, "GET", f"/v1/servers/{server['id']}/logs"),
            await world.sign(wallet, "POST", f"/v1/servers/{server['id']}/exec", HOSTNAME),
            await world.pay(wallet, "POST", f"/v1/servers/{server['id']}/exec", HOSTNAME),
        ):
            assert refused(answer) == (409, "conflict")
            assert "SSH" in answer.json()["error"]["next"]
        assert await world.available(wallet.address) == before


async def _asked(it: Rented, count: int) -> bool:
    return len(it.machine.asked) >= count


async def _ended(it: Rented) -> bool:
    open_ = await it.lent.world.rows("SELECT id FROM command WHERE finished_at IS NULL AND kind = 'exec'")
    return not open_
