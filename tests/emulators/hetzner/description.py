"""What Hetzner Cloud says about itself: which operations there are, what they take and what they may answer.

Invariant: `description.json` as published, then `changes.json` in order, and nothing else. An object has no property
that is not described, so that what was removed cannot come back unseen.
"""

import json
import re
from copy import deepcopy
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
from jsonschema_rs import Draft202012Validator

Json = dict[str, Any]

_HERE: Final = Path(__file__).parent


def _is_decimal(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


class DescriptionViolated(AssertionError):
    """The emulator has answered what the description does not allow. The emulator is wrong, or a change is missing."""


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A difference between the description and the API: places to remove or put, values to leave or join a list."""

    since: str
    what: str
    remove: list[str] = []
    put: dict[str, Any] = {}
    leave: dict[str, str] = {}
    join: dict[str, list[str]] = {}

    def apply(self, document: Json) -> None:
        """Raises KeyError or ValueError where the description is not as the change expects it."""
        for pointer in self.remove:
            holder, key = _place(document, pointer)
            del holder[key]
        for pointer, value in self.put.items():
            holder, key = _place(document, pointer)
            holder[key] = value
        for pointer, value in self.leave.items():
            holder, key = _place(document, pointer)
            holder[key].remove(value)
        for pointer, values in self.join.items():
            holder, key = _place(document, pointer)
            holder[key].extend(values)


def _place(document: Json, pointer: str) -> tuple[Json, str]:
    *way, key = (part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])
    holder = document
    for part in way:
        holder = holder[part]
    return holder, key


def published() -> Json:
    """The description as it was published, without its prose."""
    loaded: Json = json.loads((_HERE / "description.json").read_text())
    return loaded


def changes() -> list[Change]:
    return msgspec.json.decode((_HERE / "changes.json").read_bytes(), type=list[Change])


def to_json_schema(schema: Any) -> Any:
    """OpenAPI 3.0 as JSON Schema: `nullable` is a type, and objects are closed."""
    if isinstance(schema, list):
        return [to_json_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: to_json_schema(value) for key, value in schema.items() if key not in ("nullable", "properties")
    }
    if "properties" in schema:
        made["properties"] = {name: to_json_schema(value) for name, value in schema["properties"].items()}
        made.setdefault("additionalProperties", False)
    return {"anyOf": [{"type": "null"}, made]} if schema.get("nullable") else made


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One described operation. `name` is its method and path, the path as the description writes it."""

    name: str
    query: dict[str, Json]
    request: Draft202012Validator | None
    answers: dict[str, Draft202012Validator | None]

    def check_answer(self, status: int, body: Json | None) -> None:
        """Raises DescriptionViolated unless the description knows this status, and this body under it."""
        key = next((key for key in (str(status), f"{status // 100}xx") if key in self.answers), None)
        if key is None:
            raise DescriptionViolated(f"{self.name} does not answer {status}")
        validator = self.answers[key]
        if (validator is None) != (body is None):
            raise DescriptionViolated(f"{self.name} {status} has {'no' if validator is None else 'a'} body")
        for error in validator.iter_errors(body) if validator else ():
            raise DescriptionViolated(f"{self.name} {status} at {error.instance_path}: {error.message}")


class Description:
    """All operations, found by method and path. Whoever changes nothing of it shares `patched`."""

    def __init__(self) -> None:
        document = deepcopy(published())
        for change in changes():
            change.apply(document)
        self.document: Final = document
        self._components = to_json_schema(document["components"])
        self._operations: dict[str, Operation] = {}
        self._routes: list[tuple[re.Pattern[str], str]] = []
        # A literal segment wins over a parameter: "/servers/actions" is no server.
        for path in sorted(document["paths"], key=lambda path: path.count("{")):
            self._routes.append((re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))), path))
            for method, operation in document["paths"][path].items():
                name = f"{method.upper()} {path}"
                self._operations[name] = self._operation(name, operation)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._operations)

    def _validator(self, schema: Json | None) -> Draft202012Validator | None:
        if schema is None:
            return None
        whole = {**to_json_schema(schema), "components": self._components}
        return Draft202012Validator(whole, formats={"decimal": _is_decimal}, validate_formats=True)

    def _operation(self, name: str, operation: Json) -> Operation:
        return Operation(
            name=name,
            query=operation["query"],
            request=self._validator(operation["request"]),
            answers={status: self._validator(body) for status, body in operation["responses"].items()},
        )

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        """The operation and what its path names, None where nothing is described."""
        for pattern, template in self._routes:
            match = pattern.fullmatch(path)
            if match and f"{method} {template}" in self._operations:
                return self._operations[f"{method} {template}"], match.groupdict()
        return None


@cache
def patched() -> Description:
    return Description()
