"""The API's own description (OpenAPI 3.1): made by the framework from the handlers' types, completed by us.

Invariant: the committed `openapi.json`, the served one and the page are the same description, and each example in it
is valid against the schema beside it (`tests/arch/test_openapi.py`).
"""

import functools
import inspect
import json
from typing import Any, Final

import msgspec
from litestar import Litestar
from litestar.di import Provide
from litestar.openapi.config import OpenAPIConfig
from spawn_schemas import (
    api,
    boots,
    catalog,
    events,
    hosts,
    inside,
    inventory,
    link,
    orders,
    refusals,
    suspense,
    webhooks,
)

from spawn import __version__
from spawn.api import event_examples
from spawn.api.arrivals import Arrival
from spawn.api.examples import REQUESTS, RESPONSES, answered
from spawn.api.priced import price_tag
from spawn.api.routes import HANDLERS, ROUTES
from spawn.api.routing import Route
from spawn.api.services import Services
from spawn.api.streams import CONTENT_TYPE
from spawn.domain.charges import Charge, Kind

INTRODUCTION: Final = (
    "Rent computers over HTTP with no signup. Payment is authentication: the wallet that pays (x402, USDC on Base) "
    "owns what it bought. A prepaid balance burns down while a server lives."
)

_SCHEMES: Final[dict[str, Any]] = {
    "x402": {
        "type": "apiKey",
        "in": "header",
        "name": "PAYMENT-SIGNATURE",
        "description": "An x402 v2 payment for the challenge in `PAYMENT-REQUIRED`. Its payer is the caller.",
    },
    "x402-v1": {
        "type": "apiKey",
        "in": "header",
        "name": "X-PAYMENT",
        "description": "The same from an x402 v1 client, for the `accepts` in the body of the 402.",
    },
    "signed": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "An HTTP message signature (RFC 9421) of the wallet, as ERC-8128 profiles it, with "
        "`Signature-Input`. It pays from the wallet's balance.",
    },
    "sign-in": {
        "type": "apiKey",
        "in": "header",
        "name": "SIGN-IN-WITH-X",
        "description": "The text that the 402 offers (EIP-4361), signed by the wallet and used once. Good for reading, "
        "paid from the balance.",
    },
    "session": {
        "type": "http",
        "scheme": "bearer",
        "description": "The token of `POST /v1/sessions`. Good for reading, paid from the balance, for 15 minutes.",
    },
}
_PAID_HEADERS: Final[dict[str, Any]] = {
    "Spawn-Fee": {"description": "What the call cost, in USDC.", "required": True},
    "Spawn-Balance": {"description": "What the wallet can spend, in USDC.", "required": True},
    "Spawn-Runway": {"description": "Seconds until the first of the wallet's servers runs out of money."},
    "PAYMENT-RESPONSE": {"description": "The receipt of an x402 v2 payment, JSON in base64."},
    "X-PAYMENT-RESPONSE": {"description": "The receipt of an x402 v1 payment, JSON in base64."},
}
_RETRY_AFTER: Final[dict[str, Any]] = {
    "Retry-After": {"description": "Seconds to wait before the same request is sent again."}
}
_REFUSED_HEADERS: Final[dict[str, dict[str, Any]]] = {
    "402": {"PAYMENT-REQUIRED": {"description": "The x402 v2 challenge, JSON in base64."}},
    "429": _RETRY_AFTER,
    "503": _RETRY_AFTER,
}
_KEY_PARAMETER: Final[dict[str, Any]] = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "description": "1 to 255 printable ASCII characters. The same key with the same request finds the first answer, "
    "for 24 hours; with another request it is a 409.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[ -~]+$(?!\n)"},
}
_LAST_EVENT_ID: Final[dict[str, Any]] = {
    "in": "header",
    "name": "Last-Event-ID",
    "required": False,
    "description": "A cursor, where a stream broke off; it counts before `after`, and only for streams.",
    "schema": {"type": "string"},  # whoever asks for the list may send anything
}
_FOLLOWING: Final = (
    "Oldest first. Ask on with `next_cursor`; with `wait` the answer comes as soon as there is something new. With "
    "`Accept: text/event-stream` the same events come as server-sent events, as they happen: `id` is a cursor, `event` "
    "the type, `data` the event. A stream lasts 15 minutes at most, and goes on where `Last-Event-ID` says."
)


_WIRE: Final = (
    api,
    boots,
    catalog,
    events,
    hosts,
    inside,
    inventory,
    link,
    orders,
    refusals,
    suspense,
    webhooks,
)
"""Where the structs of requests and answers are."""


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document of the API's routes. Nobody may change what it returns."""
    document = _made_by_framework()
    document.pop("servers", None)
    document["components"]["securitySchemes"] = _SCHEMES
    document["components"]["parameters"] = {"IdempotencyKey": _KEY_PARAMETER}
    routes = {f"{route.method} {route.template}": route for route in ROUTES}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            route = routes[f"{method.upper()} {path}"]
            _add_examples(operation, f"{route.method} {route.template}")
            _add_identity(operation, route)
            _add_headers(operation, route.charge)
            _without_null(operation)
            operation["x-price"] = price_tag(route.charge)
    _add_stream(document["paths"]["/v1/events"]["get"])
    for name, schema in document["components"]["schemas"].items():
        struct = _struct(name)
        if told := struct.__doc__:
            schema["description"] = inspect.cleandoc(told)
        if struct.__struct_config__.forbid_unknown_fields:
            schema["additionalProperties"] = False
            _add_items(schema, struct)
    _without_any(document)
    _add_event_data(document["components"]["schemas"])
    return document


@functools.cache
def encoded() -> bytes:
    """The document as it is served and committed: sorted and indented, so that a change is a readable diff."""
    return (json.dumps(document(), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _struct(name: str) -> type[msgspec.Struct]:
    """The struct that a schema is called after; a module may have something else of that name."""
    found = (getattr(module, name, None) for module in _WIRE)
    return next(each for each in found if isinstance(each, type) and issubclass(each, msgspec.Struct))


def _made_by_framework() -> dict[str, Any]:
    """Litestar describes an app only together with serving the description, so it describes one nobody calls."""
    config = OpenAPIConfig(
        title="spawn",
        version=__version__,
        description=INTRODUCTION,
        render_plugins=[],
        use_handler_docstrings=False,
    )
    app = Litestar(
        route_handlers=HANDLERS,
        dependencies={
            "services": Provide(_no_services, sync_to_thread=False),
            "arrival": Provide(_no_arrival, sync_to_thread=False),
        },
        openapi_config=config,
        logging_config=None,
    )
    made: dict[str, Any] = json.loads(msgspec.json.encode(app.openapi_schema.to_schema()))
    return made


def _no_services() -> Services:
    raise RuntimeError("an app that is only described serves no request")


def _no_arrival() -> Arrival:
    raise RuntimeError("an app that is only described serves no request")


def _add_examples(operation: dict[str, Any], route: str) -> None:
    request = operation.get("requestBody")
    if request is not None and route in REQUESTS:
        request["content"]["application/json"]["example"] = msgspec.to_builtins(REQUESTS[route])
    for status, response in operation["responses"].items():
        if status.startswith("2") and route in RESPONSES:
            response["content"]["application/json"]["example"] = answered(route)


def _add_identity(operation: dict[str, Any], route: Route) -> None:
    proofs: tuple[str, ...] = ()
    match route.charge.kind:
        case Kind.FREE:
            pass
        case Kind.DEPOSIT:
            proofs = ("x402", "x402-v1")
            operation["requestBody"]["required"] = False  # without one, the default deposit is paid in
        case Kind.IDENTIFIED | Kind.FEE | Kind.FUNDED:
            proofs = ("x402", "x402-v1", "signed")
            if route.takes_sign_in:
                proofs = (*proofs, "sign-in") if route.opens_session else (*proofs, "sign-in", "session")
    operation["security"] = [{proof: []} for proof in proofs]
    if route.is_priced and route.method != "GET":
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/IdempotencyKey"})


def _add_headers(operation: dict[str, Any], charge: Charge) -> None:
    for status, response in operation["responses"].items():
        headers = _REFUSED_HEADERS.get(status, {})
        if status.startswith("2") and charge.kind is not Kind.FREE:
            headers = _PAID_HEADERS
        if headers:
            response["headers"] = {
                name: {**header, "schema": {"type": "string"}} for name, header in headers.items()
            }


def _add_stream(operation: dict[str, Any]) -> None:
    """What the framework cannot know: that the list is also to be had as it grows."""
    operation["description"] += f"\n\n{_FOLLOWING}\n\n{event_examples.table()}"
    operation["parameters"].append(_LAST_EVENT_ID)
    operation["responses"]["200"]["content"][CONTENT_TYPE] = {"schema": {"type": "string"}}


def _add_event_data(schemas: dict[str, Any]) -> None:
    """The shapes of an event's `data`, which the framework sees as JSON of any kind."""
    structs = sorted(set(events.TYPES.values()), key=lambda struct: struct.__name__)
    refs, shapes = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    for shape in shapes.values():
        shape["description"] = inspect.cleandoc(shape["description"])
    schemas.update(shapes)
    schemas["EventView"]["properties"]["data"] = {"oneOf": [*refs]}


def _add_items(schema: dict[str, Any], struct: type[msgspec.Struct]) -> None:
    """What the items of a list may be, which the framework forgets where it is said of them and not of the list."""
    _, shapes = msgspec.json.schema_components([struct], ref_template="#/components/schemas/{name}")
    for name, told in shapes[struct.__name__]["properties"].items():
        lists = [told, *told.get("anyOf", ())]
        items = next((one["items"] for one in lists if "items" in one), None)
        for one in (schema["properties"][name], *schema["properties"][name].get("oneOf", ())):
            if items is not None and one.get("type") == "array":
                one["items"] = items


def _without_null(operation: dict[str, Any]) -> None:
    """Undo the null that the framework reads from what a handler can do without: no parameter, no needed body is."""
    schemas = [parameter["schema"] for parameter in operation.get("parameters", ()) if "schema" in parameter]
    if operation.get("requestBody", {}).get("required"):
        schemas.append(operation["requestBody"]["content"]["application/json"]["schema"])
    for schema in schemas:
        for choice in schema.pop("oneOf", ()):
            schema.update({} if choice == {"type": "null"} else choice)


def _without_any(node: object) -> None:
    """Undo what the framework makes of `tuple[X, ...]`: "X or anything", which JSON Schema's `oneOf` never allows."""
    if isinstance(node, dict):
        choices = node.get("oneOf")
        if isinstance(choices, list) and {} in choices:
            (only,) = (choice for choice in choices if choice)
            del node["oneOf"]
            node.update(only)
        for child in node.values():
            _without_any(child)
    elif isinstance(node, list):
        for child in node:
            _without_any(child)
