"""`spawn prices` as the operator meets it: on the emulated Hetzner, alone and beside a service that runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from spawn.clock import SystemClock
from tests import databases
from tests.e2e.test_cli import refused, spawn
from tests.e2e.test_cli_admin import shown, told
from tests.emulators.hetzner import catalog
from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.serving import serving
from tests.interop.service import in_folder
from tests.interop.service import serving as spawn_serving

REFRESH = ("prices", "refresh")
DRY = (*REFRESH, "--dry-run")


@pytest.fixture
def hetzner() -> Iterator[dict[str, str]]:
    """The settings of a service that sells what the emulated Hetzner does, with a fifth of each price for us."""
    with serving(Emulator(SystemClock().now_ms)) as endpoint:
        yield {
            "providers": "hetzner",
            "hetzner_token": TOKEN,
            "hetzner_endpoint": endpoint,
            "price_margin_percent": "20",
        }


def dearer(patch: pytest.MonkeyPatch) -> None:
    """cx23 costs more, cx33 less, and cax11 is gone."""
    cents = {"cx23": 749, "cx33": 699}
    patch.setattr(
        catalog,
        "SERVER_TYPES",
        tuple(
            replace(known, monthly_cents=cents.get(known.name, known.monthly_cents))
            for known in catalog.SERVER_TYPES
            if known.name != "cax11"
        ),
    )


def lines(table: str) -> list[list[str]]:
    return [line.split() for line in table.splitlines() if line]


def test_the_difference_is_shown_and_then_made(
    tmp_path: Path, hetzner: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    databases.make(databases.database_url(tmp_path))
    first = lines(shown(spawn(tmp_path, *DRY, **hetzner)))
    assert " ".join(first[0]).startswith("At 1.08 USDC for one euro, with a margin of 20 %")
    assert first[2] == ["server", "machine", "where", "cost", "price", "new", "from"]
    assert ["small", "cx23", "fsn1", "nbg1", "hel1", "0.248832", "0.312", "new"] in first
    assert "sold from now on" in told(spawn(tmp_path, *REFRESH, **hetzner))
    assert told(spawn(tmp_path, *REFRESH, **hetzner)) == "Nothing is different.\n"

    dearer(monkeypatch)
    rows = {line[0]: line for line in lines(shown(spawn(tmp_path, *DRY, **hetzner)))[3:]}
    assert rows.keys() == {"small", "medium", "arm-small"}
    again = {line[0] for line in lines(shown(spawn(tmp_path, *DRY, **hetzner)))[3:]}
    assert again == rows.keys(), "a dry run changes nothing"
    assert rows["small"][2:7] == ["fsn1", "nbg1", "hel1", "0.331776", "0.312"]
    assert rows["small"][7] == "0.415"
    assert rows["medium"][-2] < rows["medium"][-3]
    assert rows["medium"][-1] < rows["small"][-1], "a fall is at once, a rise in thirty days"
    assert rows["arm-small"][-4:] == ["not", "sold", "any", "more"]

    done = told(spawn(tmp_path, *REFRESH, **hetzner))
    assert "arm-small in nbg1 is not sold any more." in done
    assert "small in nbg1 costs 0.415 USDC a day instead of 0.312" in done
    assert told(spawn(tmp_path, *REFRESH, **hetzner)) == "Nothing is different.\n"
    assert "0.415" in told(spawn(tmp_path, "admin", "price-changes", **hetzner))


@pytest.mark.embedded
def test_a_service_that_runs_is_asked(
    tmp_path: Path, hetzner: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    databases.make(databases.database_url(tmp_path))
    service = {f"SPAWN_{name.upper()}": value for name, value in hetzner.items()}
    settings = hetzner | {"database_url": databases.database_url(tmp_path)}
    told(spawn(tmp_path, *REFRESH, **settings))
    dearer(monkeypatch)
    with spawn_serving(tmp_path, in_folder(tmp_path) | service, "serve"):
        assert "0.415" in shown(spawn(tmp_path, *DRY, **settings))
        done = told(spawn(tmp_path, *REFRESH, **settings))
        assert "small in nbg1 costs 0.415 USDC a day instead of 0.312" in done
        assert "Nothing is different." in told(spawn(tmp_path, *DRY, **settings))
    assert "ordered by the operator" in (tmp_path / "service.log").read_text()


def test_what_cannot_be_read(tmp_path: Path, hetzner: dict[str, str]) -> None:
    databases.make(databases.database_url(tmp_path))
    done = spawn(tmp_path, *DRY, **(hetzner | {"hetzner_token": "wrong"}))
    assert (done.returncode, done.stdout) == (1, "")
    assert "SPAWN_HETZNER_TOKEN" in done.stderr, "beside what the provider itself logs"
    refused(spawn(tmp_path, *DRY), "simulated", "price-change")
    refused(spawn(tmp_path, *REFRESH), "simulated", "price-change")
