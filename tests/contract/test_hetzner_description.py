"""The emulated Hetzner Cloud answers nothing that its public description, with this year's changes, does not allow."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.hetzner_scene import open_scene
from tests.emulators.hetzner import app
from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.calls import Answer, Call
from tests.emulators.hetzner.description import (
    Change,
    DescriptionViolated,
    Json,
    changes,
    patched,
    published,
)
from tests.emulators.hetzner.extract import extract
from tests.harness import VirtualClock

# --- the extract ----------------------------------------------------------------------------------------------------

PUBLISHED: Json = {
    "info": {"description": "Words."},
    "paths": {
        "/servers": {
            "servers": [{"url": "https://api.example.net"}],
            "get": {
                "summary": "Words.",
                "description": "Words.",
                "parameters": [
                    {"in": "query", "name": "name", "description": "Words.", "schema": {"type": "string"}},
                    {"in": "path", "name": "id", "required": True, "schema": {"type": "integer"}},
                ],
                "responses": {
                    "200": {
                        "description": "Words.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/servers"}}},
                    },
                    "204": {"description": "Words."},
                },
            },
        },
        "/volumes": {"get": {"responses": {}}},
    },
    "components": {
        "schemas": {
            "servers": {
                "type": "array",
                "items": {"$ref": "#/components/schemas/server"},
                "example": ["Words."],
            },
            "server": {
                "type": "object",
                "title": "Words.",
                "properties": {
                    "description": {"type": "string", "description": "Words.", "nullable": True},
                    "labels": {"additionalProperties": {"type": "string", "example": "Words."}},
                },
                "required": ["description"],
            },
            "volume": {"type": "object"},
        }
    },
}


def test_an_extract_has_what_is_asked_for_and_no_words() -> None:
    assert extract(PUBLISHED) == {
        "paths": {
            "/servers": {
                "get": {
                    "query": {"name": {"required": False, "schema": {"type": "string"}}},
                    "request": None,
                    "responses": {"200": {"$ref": "#/components/schemas/servers"}, "204": None},
                }
            }
        },
        "components": {
            "schemas": {
                "servers": {"type": "array", "items": {"$ref": "#/components/schemas/server"}},
                "server": {
                    "type": "object",
                    "properties": {
                        "description": {"type": "string", "nullable": True},
                        "labels": {"additionalProperties": {"type": "string"}},
                    },
                    "required": ["description"],
                },
            }
        },
    }


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def test_the_committed_extract_has_no_prose() -> None:
    assert [text for text in texts(published()) if " " in text] == []


# --- the changes ----------------------------------------------------------------------------------------------------


def test_each_change_changes_something_and_cannot_be_made_twice() -> None:
    document = published()
    for change in changes():
        before = str(document)
        change.apply(document)
        assert str(document) != before, change.what
    for change in changes():
        if change.remove:
            with pytest.raises(KeyError):
                change.apply(document)


def test_a_change_of_what_is_not_there_is_refused() -> None:
    change = Change(since="2026", what="Nothing.", leave={"/components/schemas/server/required": "colour"})
    with pytest.raises(ValueError, match="not in list"):
        change.apply(published())


def test_what_2026_changed_is_changed() -> None:
    schemas = patched().document["components"]["schemas"]
    assert "datacenter" not in str(schemas["server"]["properties"].keys())
    assert "datacenter" not in schemas["server"]["required"]
    assert {"available", "recommended"} <= set(schemas["server_type_location"]["required"])
    address = schemas["get_primary_ip_response"]["properties"]["primary_ip"]["properties"]
    assert "unassigned" in address["assignee_type"]["enum"]


# --- what an answer may be ------------------------------------------------------------------------------------------

KEY: Json = {
    "id": 1,
    "name": "key",
    "fingerprint": "00:11",
    "public_key": "ssh-ed25519 AAAA",
    "labels": {},
    "created": "2026-11-21T00:00:00Z",
}


def check(status: int, body: Json | None, *, method: str = "GET", path: str = "/ssh_keys/1") -> None:
    found = patched().find(method, path)
    assert found is not None
    found[0].check_answer(status, body)


def test_a_right_answer_is_let_through() -> None:
    check(200, {"ssh_key": KEY})
    check(404, {"error": {"code": "not_found", "message": "", "details": None}})
    check(204, None, method="DELETE")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {}),
        (200, None),
        (201, {"ssh_key": KEY}),
        (200, {"ssh_key": KEY | {"id": "1"}}),
        (200, {"ssh_key": KEY | {"name": None}}),
        (200, {"ssh_key": KEY | {"colour": "red"}}),
        (200, {"ssh_key": KEY | {"created": "yesterday"}}),
        (200, {"ssh_key": KEY | {"labels": {"wallet": "not a label"}}}),
        (200, {"ssh_key": {name: value for name, value in KEY.items() if name != "fingerprint"}}),
        (404, {"error": "not found"}),
        (404, {"message": "not found"}),
        (302, {"ssh_key": KEY}),
    ],
)
def test_a_wrong_answer_is_caught(status: int, body: Json | None) -> None:
    with pytest.raises(DescriptionViolated):
        check(status, body)


def test_a_price_is_a_decimal() -> None:
    emulator = Emulator(VirtualClock().now_ms)
    operation, _ = emulator.description.find("GET", "/server_types/114") or pytest.fail("not described")
    call = Call(world=emulator.world, ids={"id": "114"}, query=[], body={})
    body: Any = app._ROUTES[operation.name](call).body
    operation.check_answer(200, body)
    body["server_type"]["prices"][0]["price_hourly"]["net"] = "cheap"
    with pytest.raises(DescriptionViolated, match="price_hourly"):
        operation.check_answer(200, body)


# --- and it is always checked ---------------------------------------------------------------------------------------


def test_every_route_that_is_emulated_is_described() -> None:
    assert app._ROUTES.keys() <= patched().names


def told(method: str, path: str) -> None:
    """One call, from the start of an emulator to its end."""
    with open_scene() as scene:
        url = scene.endpoint + path.format(server=scene.running().id)
        answer = httpx.request(method, url, headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 500


def test_a_wrong_answer_is_never_sent_and_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app._ROUTES, "GET /locations", lambda call: Answer(200, {"locations": []}))
    with pytest.raises(DescriptionViolated, match="GET /locations 200"):
        told("GET", "/locations")


def test_what_is_described_and_not_emulated_fails_the_test() -> None:
    with pytest.raises(DescriptionViolated, match="enable_rescue is described and not emulated"):
        told("POST", "/servers/{server}/actions/enable_rescue")


def test_an_emulator_that_stumbles_fails_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app._ROUTES, "GET /locations", lambda call: Answer(200, {"locations": 1 // 0}))
    with pytest.raises(DescriptionViolated, match="ZeroDivisionError"):
        told("GET", "/locations")
