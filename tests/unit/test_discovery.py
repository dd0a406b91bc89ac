"""The `bazaar` metadata of every priced route: true to the route, valid to the SDK, small enough to be sent back."""

from base64 import b64encode
from typing import Any, Final

import msgspec
import pytest
from eth_account import Account
from litestar.handlers import HTTPRouteHandler
from pydantic import ValidationError
from spawn_schemas.x402 import SCHEME_EXACT, PaymentRequired, PaymentRequirements, Resource
from x402 import x402ClientSync
from x402.extensions.bazaar import (
    bazaar_resource_server_extension,
    extract_discovery_info,
    validate_discovery_extension,
    validate_discovery_extension_spec,
)
from x402.extensions.bazaar.types import parse_discovery_extension
from x402.extensions.payment_identifier import append_payment_identifier_to_extensions
from x402.extensions.sign_in_with_x import DeclareSIWxOptions, declare_siwx_extension
from x402.http.types import HTTPRequestContext
from x402.http.utils import decode_payment_required_header, encode_payment_signature_header
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentPayload
from x402.schemas import PaymentRequired as SdkPaymentRequired

from spawn.api.description import document
from spawn.api.discovery import SERVICE_NAME, TAGS, bazaar, output_schema
from spawn.api.examples import REQUESTS, RESPONSES
from spawn.api.routes import HANDLERS
from spawn.domain.charges import Kind
from spawn.payments.challenge import PAYMENT_IDENTIFIER
from spawn.payments.header import MAX_HEADER_BYTES

ORIGIN: Final = "https://spawn.example"
SIGN_IN: Final = {
    "version": "1",
    "domain": "spawn.example",
    "uri": f"{ORIGIN}/v1/servers/srv_mfzwizltoq4dgnbvgy3tqojqme/deposit",
    "resources": [f"{ORIGIN}/v1/servers/srv_mfzwizltoq4dgnbvgy3tqojqme/deposit"],
    "nonce": "0" * 32,
    "issuedAt": "2026-02-24T10:00:00Z",
    "expirationTime": "2026-02-24T10:05:00Z",
    "statement": "Sign in to see what you rent; this moves no money.",
}

Json = dict[str, Any]


def priced() -> dict[str, HTTPRouteHandler]:
    """Each priced route's handler by method and path, as the price list spells them."""
    return {
        f"{method} {path.replace(':str', '')}": handler
        for handler in HANDLERS
        for path in handler.paths
        for method in handler.http_methods
        if handler.opt["charge"].kind is not Kind.FREE
    }


ROUTES: Final = priced()
every_route: Final = pytest.mark.parametrize("route", ROUTES)


def declared(route: str) -> Json:
    """The extension as a client reads it: through JSON."""
    path = route.partition(" ")[2]
    extension: Json = msgspec.json.decode(msgspec.json.encode(bazaar(ROUTES[route], path)))
    return extension


def errors(extension: Json) -> list[str]:
    """What the SDK's types and both of its validators have against an extension."""
    try:
        parsed = parse_discovery_extension(extension)
    except ValidationError as error:
        return [str(error)]
    conforming = validate_discovery_extension_spec(extension)
    return [*validate_discovery_extension(parsed).errors, *conforming.errors]


@every_route
def test_the_sdk_finds_it_valid(route: str) -> None:
    assert errors(declared(route)) == []


@every_route
def test_what_is_no_call_of_the_route_is_not_valid(route: str) -> None:
    """The schema says something: another method, a part left out, or a field that the route does not know."""
    parts = declared(route)["info"]["input"]
    for part, value in parts.items():
        changed = declared(route)
        changed["info"]["input"][part] = value | {"unknown": 1} if isinstance(value, dict) else "OTHER"
        assert errors(changed), part
        del changed["info"]["input"][part]
        # A call may do without a query, and the SDK's types read a missing body as an empty one.
        assert errors(changed) or part in {"queryParams", "body"}, part
    changed = declared(route)
    changed["info"]["input"]["unknown"] = 1
    assert errors(changed)


@every_route
def test_it_says_what_openapi_says(route: str) -> None:
    method, _, path = route.partition(" ")
    operation = document()["paths"][path][method.lower()]
    shapes = declared(route)["schema"]["properties"]["input"]["properties"]
    for where, part in (("path", "pathParams"), ("query", "queryParams")):
        told = {p["name"]: p["schema"] for p in operation.get("parameters", ()) if p.get("in") == where}
        said = shapes.get(part, {}).get("properties", {})
        assert {name: shape(said[name]) for name in said} == {name: shape(told[name]) for name in told}
    body = operation.get("requestBody")
    told = {} if body is None else shape(body["content"]["application/json"]["schema"])
    said = shapes.get("body", {})
    assert shape(said).get("properties", {}) == told.get("properties", {})
    assert sorted(said.get("required", ())) == sorted(told.get("required", ()))


def shape(schema: Json) -> Json:
    """What `bazaar` and `openapi.json` both say of a value."""
    if "oneOf" in schema:
        (only,) = (choice for choice in schema["oneOf"] if choice != {"type": "null"})
        return shape(only)
    if "$ref" in schema:
        return shape(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    names = ("type", "enum", "required", "minimum", "maximum")
    kept = {name: schema[name] for name in names if name in schema}
    if "enum" in kept:
        kept.pop("type", None)  # the values say it
    if "properties" in schema:
        kept["properties"] = {name: shape(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        kept["items"] = shape(schema["items"])
    return kept


@every_route
def test_the_examples_are_those_of_the_reference(route: str) -> None:
    info = declared(route)["info"]
    assert info["output"] == {
        "type": "json",
        "example": msgspec.json.decode(msgspec.json.encode(RESPONSES[route])),
    }
    if route in REQUESTS:
        assert msgspec.convert(info["input"]["body"], type(REQUESTS[route])) == REQUESTS[route]
    else:
        assert info["input"].get("body", {}) == {}


class Adapter:
    """As much of a framework's request as the SDK's server asks for a dynamic route."""

    def __init__(self, path: str) -> None:
        self._path = path

    def get_path(self) -> str:
        return self._path


@every_route
def test_a_server_of_the_sdk_would_fill_in_the_same(route: str) -> None:
    """Method, template and path parameters are what the SDK makes of the call that the example describes."""
    method, _, path = route.partition(" ")
    ours = declared(route)
    in_path = ours["info"]["input"].get("pathParams", {})
    context = HTTPRequestContext(
        adapter=Adapter(path.format(**in_path)),  # type: ignore[arg-type]  # it asks for the path only
        path=path.format(**in_path),
        method=method,
        route_pattern=path.replace("{", "[").replace("}", "]"),
    )
    assert bazaar_resource_server_extension.enrich_declaration(declared(route), context) == ours


def challenge(route: str, *, signing_in: bool = True) -> bytes:
    """A challenge with everything that one may hold, and every text as long as ours get."""
    path = route.partition(" ")[2]
    in_path = declared(route)["info"]["input"].get("pathParams", {})
    extensions = PAYMENT_IDENTIFIER | {"bazaar": bazaar(ROUTES[route], path)}
    if signing_in:
        declaration = declare_siwx_extension(DeclareSIWxOptions(network="eip155:84532"))["sign-in-with-x"]
        public = {name: value for name, value in declaration.items() if name != "_options"}
        extensions["sign-in-with-x"] = public | {"info": SIGN_IN}
    required = PaymentRequired(
        x402_version=2,
        error="invalid_exact_evm_payload_authorization_valid_before",
        resource=Resource(
            url=f"{ORIGIN}{path.format(**in_path)}?status=running&limit=100&page=1000000",
            description="Rename a server, or stop its renewal",
            mime_type="application/json",
            service_name=SERVICE_NAME,
            tags=TAGS,
        ),
        accepts=(
            PaymentRequirements(
                scheme=SCHEME_EXACT,
                network="eip155:84532",
                amount="1000",
                asset="0x036CbD53842c5426634e7929541eC2318f3dCF7e",
                pay_to="0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                max_timeout_seconds=300,
                extra={"name": "USDC", "version": "2", "paymentFlow": "upfront"},
            ),
        ),
        extensions=extensions,
    )
    return b64encode(msgspec.json.encode(required))


def paid(header: bytes) -> PaymentPayload:
    """The stock client's payment, with a name of its own of the greatest length."""
    required = decode_payment_required_header(header.decode())
    assert isinstance(required, SdkPaymentRequired)
    assert required.extensions is not None
    append_payment_identifier_to_extensions(required.extensions, "p" * 128)
    signer = EthAccountSigner(Account.from_key("0x" + "11" * 32))
    payload = x402ClientSync().register("eip155:*", ExactEvmScheme(signer)).create_payment_payload(required)
    assert isinstance(payload, PaymentPayload)
    return payload


@every_route
@pytest.mark.parametrize(("signing_in", "limit"), [(False, 4 * 1024), (True, 6 * 1024)])
def test_challenge_and_payment_pass_through_proxies(route: str, signing_in: bool, limit: int) -> None:
    """Of the 8 KiB that proxies commonly take as one header line; a payment holds its whole challenge and itself."""
    header = challenge(route, signing_in=signing_in)
    assert len(header) <= limit
    assert len(encode_payment_signature_header(paid(header))) <= MAX_HEADER_BYTES


@every_route
def test_a_facilitator_can_catalogue_the_route_from_a_payment(route: str) -> None:
    method, _, path = route.partition(" ")
    payload = paid(challenge(route))
    found = extract_discovery_info(payload, payload.accepted)
    assert found is not None
    assert found.method == method
    assert found.resource_url == ORIGIN + path.replace("{", ":").replace("}", "")
    assert found.route_template == (found.resource_url.removeprefix(ORIGIN) if "{" in path else None)
    assert (found.service_name, found.tags) == (SERVICE_NAME, list(TAGS))


@every_route
def test_a_facilitator_of_version_1_catalogues_what_has_one_url(route: str) -> None:
    method, _, path = route.partition(" ")
    schema = msgspec.json.decode(msgspec.json.encode(output_schema(bazaar(ROUTES[route], path))))
    accept = {"resource": f"{ORIGIN}{path}", "outputSchema": schema}
    found = extract_discovery_info({"x402Version": 1}, accept)
    if "{" in path:
        assert found is None
        return
    assert found is not None
    info = found.discovery_info.model_dump(by_alias=True, exclude_none=True)
    ours = declared(route)["info"]
    assert (found.method, found.resource_url) == (method, f"{ORIGIN}{path}")
    for part in ("type", "method", "bodyType", "body", "queryParams"):
        assert info["input"].get(part) == ours["input"].get(part), part
    assert info["output"]["example"] == ours["output"]["example"]


def test_a_route_without_an_example_is_refused() -> None:
    with pytest.raises(KeyError, match="GET /v1/unexampled"):
        bazaar(ROUTES["GET /v1/balance"], "/v1/unexampled")
