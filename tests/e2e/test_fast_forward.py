"""`spawn dev --fast-forward` as a developer uses it: durations are typed, and deposits live and die in seconds."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from signing import SignedRequestAuth

from spawn.setting_reader import read_settings
from tests.harness import CHAIN_ID, ORDER
from tests.interop.service import RunningService, in_folder, serving
from tests.wallets import Wallet

PATIENCE_S = 20


@contextmanager
def typing_into(folder: Path) -> Iterator[tuple[str, int]]:
    """A service, and where what is written is typed into it."""
    keyboard, typed = os.pipe()
    try:
        with serving(folder, in_folder(folder), "dev", "--fast-forward", stdin=keyboard) as listen:
            yield f"http://{listen}", typed
    finally:
        os.close(keyboard)
        os.close(typed)


def said(folder: Path, words: str) -> bool:
    """Whether the service says this within a while."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if words in (folder / "service.log").read_text():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("typed", [None, "1h\n"])
def test_it_serves_on_whatever_its_input_is(tmp_path: Path, typed: str | None) -> None:
    """In the background it is /dev/null, in a script perhaps a file: neither is a terminal or a pipe."""
    source = Path(os.devnull)
    if typed is not None:
        source = tmp_path / "typed"
        source.write_text(typed)
    with (
        source.open("rb") as stdin,
        serving(tmp_path, in_folder(tmp_path), "dev", "--fast-forward", stdin=stdin.fileno()) as listen,
    ):
        if typed is not None:
            assert said(tmp_path, " UTC here now")
        assert httpx.get(f"http://{listen}/health", trust_env=False).is_success


def test_what_cannot_pass_is_said_and_the_next_line_is_obeyed(tmp_path: Path) -> None:
    with typing_into(tmp_path) as (_, typed):
        os.write(typed, b"soon\n\xff\n999999d\n1m\n")
        assert said(tmp_path, " UTC here now")
    log = (tmp_path / "service.log").read_text()
    assert "type how much of it shall pass" in log
    assert "'soon': a duration is a whole number and s, m, h or d, such as 6h" in log
    assert "'999999d': no more than 60d at once" in log
    assert "Traceback" not in log


def test_a_deposit_lives_and_ends_as_time_is_typed(tmp_path: Path) -> None:
    wallet = Wallet.numbered(78)
    with typing_into(tmp_path) as (url, typed):
        service = RunningService(url=url, settings=read_settings(in_folder(tmp_path)))
        asyncio.run(service.mint(wallet, "5.00"))
        with httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as http:
            order = ORDER | {"deposit": "0.20", "fund": "0.20"}
            challenge = http.post("/v1/servers", json=order).headers["PAYMENT-REQUIRED"]
            payment = wallet.payment(challenge, now=int(time.time()))
            bought = http.post("/v1/servers", json=order, headers={"PAYMENT-SIGNATURE": payment})
            assert bought.status_code == 201, bought.text
            os.write(typed, b"2d\n")
            assert said(tmp_path, " UTC here now")
            # Signatures go by the world's own time, so that two days later they are good all the same.
            told = http.get("/v1/events", auth=SignedRequestAuth(wallet.account, CHAIN_ID)).json()["events"]
    assert [(one["type"], threshold(one)) for one in told if one["type"].startswith("deposit.")] == [
        ("deposit.low", 86_400),
        ("deposit.low", 21_600),
        ("deposit.exhausted", None),
    ]
    assert told[-1]["type"] in {"server.destroyed", "operation.succeeded"}


def threshold(event: dict[str, Any]) -> int | None:
    seconds: int | None = event["data"]["threshold_s"]
    return seconds
