"""The committed description is the one we serve, is valid, and its examples are what we would send and take."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from spawn.api import description
from tests.engines import ROOT

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    made: Json = json.loads(description.encoded())
    return made


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def bodies(operation: Json) -> Iterator[tuple[str, Json]]:
    """Each body that is sent or answered with success, under the name of which it is."""
    if "requestBody" in operation:
        yield "request", operation["requestBody"]["content"]["application/json"]
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            yield status, response["content"]["application/json"]


def wrong_examples(document: Json) -> list[str]:
    """Examples that their schema refuses, and bodies without one."""
    wrong = []
    for route, operation in operations(document):
        for which, body in bodies(operation):
            if "example" not in body:
                wrong.append(f"{route} {which}: no example")
                continue
            schema = {**body["schema"], "components": document["components"]}
            errors = Draft202012Validator(schema).iter_errors(body["example"])
            wrong += [f"{route} {which}: {error.json_path}: {error.message}" for error in errors]
    return wrong


def test_the_committed_description_is_ours() -> None:
    committed = (ROOT / "openapi.json").read_bytes()
    assert committed == description.encoded(), "run `make openapi` and commit what it changes"


def test_the_description_is_valid_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_body_has_an_example_that_its_schema_accepts(document: Json) -> None:
    assert wrong_examples(document) == []


def test_a_wrong_example_and_a_missing_one_are_found(document: Json) -> None:
    planted = copy.deepcopy(document)
    created = planted["paths"]["/v1/servers"]["post"]
    created["requestBody"]["content"]["application/json"]["example"]["ssh_keys"] = [7]
    del created["responses"]["201"]["content"]["application/json"]["example"]
    assert len(wrong_examples(planted)) == 2


def test_every_priced_route_says_how_to_pay_and_how_to_repeat(document: Json) -> None:
    for route, operation in operations(document):
        free = operation["security"] == []
        assert free == ("402" not in operation["responses"]), route
        repeats = {"$ref": "#/components/parameters/IdempotencyKey"} in operation.get("parameters", [])
        assert repeats == (not free and not route.startswith("GET ")), route
