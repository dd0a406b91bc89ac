"""What catalogues of x402 services learn of a priced route: the `bazaar` extension of its challenge.

Everything is read from what the route declares already: path, parameters, body and example. It is not read from
`openapi.json`, which takes the framework a hundred times longer to make than a start may take; a test compares the two.
Invariant: the metadata of a route is the same for every caller, refers to nothing outside itself, and is small,
because a stock client sends all of it back with its payment, and proxies commonly refuse a header line of 8 KiB.
"""

from collections.abc import Iterator
from inspect import signature
from typing import Any, Final, get_args, get_type_hints

import msgspec
from litestar.handlers import HTTPRouteHandler
from litestar.params import BodyKwarg, PathParameter, QueryParameter

from spawn.api.examples import REQUESTS, RESPONSES, answered

SERVICE_NAME: Final = "spawn"
"""How a catalogue calls us: at most 32 printable ASCII characters (x402, `bazaar`)."""
TAGS: Final = ("compute", "servers", "vps", "hosting", "agents")
"""How a catalogue finds us: at most five, of 32 printable ASCII characters each (x402, `bazaar`)."""

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_IDS: Final = {
    "server_id": RESPONSES["POST /v1/servers"].server.id,
    "key_id": RESPONSES["POST /v1/ssh-keys"].ssh_key.id,
    "webhook_id": RESPONSES["POST /v1/webhooks"].webhook.id,
    "command_id": RESPONSES["POST /v1/servers/{server_id}/exec"].ran.id,
}
"""An example of each path parameter: the id in the example answer of the call that makes such a thing."""
_KEPT: Final = ("type", "enum", "required", "additionalProperties", "minimum", "maximum")
"""What a caller must know to form a call. Prose, patterns, lengths and defaults are left to `/openapi.json`."""
_OUTPUT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "example": {"type": "object"}},
    "required": ["type"],
}
"""An answer is described by its example alone: its schema would double the header, and is in `/openapi.json`."""

Json = dict[str, Any]


def bazaar(handler: HTTPRouteHandler, path: str) -> Json:
    """The `bazaar` extension of a route with one method; `path` as the price list has it: `/v1/servers/{server_id}`.

    A path with parameters brings a `routeTemplate`: facilitators put it in place of the path of `resource.url`, and so
    catalogue every call of the route as one. Raises KeyError where the route, or a path parameter, lacks an example.
    """
    (method,) = handler.http_methods
    route = f"{method} {path}"
    values: Json = {"type": "http", "method": method}
    shapes: Json = {
        "type": {"type": "string", "const": "http"},
        "method": {"type": "string", "enum": [method]},
    }
    for name, value, shape in _parts(handler, route):
        values[name], shapes[name] = value, shape
    given = _object(shapes, required=[name for name in shapes if name != "queryParams"])
    template = {"routeTemplate": path.replace("{", ":").replace("}", "")} if "{" in path else {}
    return {
        **template,
        "info": {
            "input": values,
            "output": {"type": "json", "example": answered(route)},
        },
        "schema": {
            "$schema": _DRAFT,
            "type": "object",
            "properties": {"input": given, "output": _OUTPUT},
            "required": ["input"],
        },
    }


def output_schema(extension: Json) -> Json:
    """What `bazaar` says, as x402 v1 had it inside an accept.

    Version 1 has no templates, so each server would be catalogued by itself: such routes are not discoverable there.
    """
    given = dict(extension["info"]["input"])
    if "body" in given:
        given["bodyFields"] = given.pop("body")
    given["discoverable"] = "routeTemplate" not in extension
    return {"input": given, "output": extension["info"]["output"]["example"]}


def _parts(handler: HTTPRouteHandler, route: str) -> Iterator[tuple[str, Any, Json]]:
    """Name, example and shape of each part of a call that the route takes."""
    in_path: Json = {}
    in_query: Json = {}
    defaults: Json = {}
    body: Json = _object({}, required=[])
    for name, hint in get_type_hints(handler.fn, include_extras=True).items():
        kind, *declared = get_args(hint) or (hint,)
        match declared:
            case [PathParameter()]:
                in_path[name] = _shape(kind)
            case [QueryParameter() as told]:
                in_query[told.name or name] = _shape(kind) | _limits(told)
                defaults[told.name or name] = signature(handler.fn).parameters[name].default
            case [BodyKwarg()]:
                body = _shape(kind)
            case _:
                continue  # what the service hands in, and what it answers
    if in_path:
        yield "pathParams", {name: _IDS[name] for name in in_path}, _object(in_path, required=[*in_path])
    if in_query:
        yield "queryParams", _present(defaults), _object(in_query, required=[])
    if route.partition(" ")[0] in _WITH_BODY:
        # To the SDKs a POST without `bodyType` is no call: where a route takes no body, it is called with an empty one.
        yield "bodyType", "json", {"type": "string", "enum": ["json"]}
        yield "body", _present(msgspec.to_builtins(REQUESTS.get(route, {}))), body


def _present(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def _object(properties: Json, *, required: list[str]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _limits(told: QueryParameter) -> Json:
    """What the route says of a parameter beyond its type."""
    more = {name: value for name, value in (told.schema_extra or {}).items() if name in _KEPT}
    return _present({"minimum": told.ge, "maximum": told.le}) | more


def _shape(kind: Any) -> Json:
    """The schema of a type, cut down to its shape and whole in itself."""
    schema = msgspec.json.schema(kind)
    return _cut(schema, schema.get("$defs", {}))


def _cut(schema: Json, definitions: Json) -> Json:
    """References are followed; null, which stands for a value left out, is no choice."""
    if "$ref" in schema:
        return _cut(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        (only,) = (choice for choice in schema["anyOf"] if choice.get("type") != "null")
        return _cut(only, definitions)
    shape: Json = {name: schema[name] for name in _KEPT if name in schema}
    if "properties" in schema:
        fields = schema["properties"].items()
        shape["properties"] = {name: _cut(field, definitions) for name, field in fields}
    if "items" in schema:
        shape["items"] = _cut(schema["items"], definitions)
    return shape
