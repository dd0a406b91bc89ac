"""Makes `description.json`: the structure of Hetzner Cloud's published description, without a word of its prose.

Invariant: what is written follows from the given file and from `PATHS` alone. Run it when the description changes:
`python -m tests.emulators.hetzner.extract FILE`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

OUT: Final = Path(__file__).with_name("description.json")

PATHS: Final = frozenset(
    {"actions", "datacenters", "firewalls", "images", "locations", "networks", "pricing", "primary_ips"}
    | {"server_types", "servers", "ssh_keys"}
)
"""The first segments of what we take over."""

_PREFIX: Final = "#/components/schemas/"
_METHODS: Final = ("get", "post", "put", "delete")
_KEPT: Final = frozenset(
    {"$ref", "type", "required", "enum", "nullable", "format", "pattern", "default"}
    | {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
)


def structure(schema: Any) -> Any:
    """A schema without what only people read. A property may be called `description`, and stays."""
    if not isinstance(schema, dict):
        return schema
    kept: Json = {key: value for key, value in schema.items() if key in _KEPT}
    if "properties" in schema:
        kept["properties"] = {name: structure(value) for name, value in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            kept[key] = structure(schema[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in schema:
            kept[key] = [structure(part) for part in schema[key]]
    return kept


def _body(message: Json) -> Json | None:
    content = message.get("content", {}).get("application/json")
    return structure(content["schema"]) if content else None


def _operation(operation: Json) -> Json:
    return {
        "query": {
            parameter["name"]: {
                "required": parameter.get("required", False),
                "schema": structure(parameter["schema"]),
            }
            for parameter in operation.get("parameters", ())
            if parameter["in"] == "query"
        },
        "request": _body(operation.get("requestBody", {})),
        "responses": {status: _body(response) for status, response in operation["responses"].items()},
    }


def references(value: Any) -> Iterator[str]:
    """The names of the schemas that are referred to, somewhere inside."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"].removeprefix(_PREFIX)
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def extract(published: Json) -> Json:
    """The operations below `PATHS`, and every schema that they lead to."""
    paths = {
        path: {method: _operation(methods[method]) for method in _METHODS if method in methods}
        for path, methods in published["paths"].items()
        if path.split("/")[1] in PATHS
    }
    schemas: Json = {}
    ahead = list(references(paths))
    while ahead:
        name = ahead.pop()
        if name not in schemas:
            schemas[name] = structure(published["components"]["schemas"][name])
            ahead.extend(references(schemas[name]))
    return {"paths": paths, "components": {"schemas": schemas}}


def main(source: str) -> None:
    extracted = extract(json.loads(Path(source).read_text()))
    OUT.write_text(json.dumps(extracted, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
