"""What a visitor sees: the front page for people and for agents, and the API reference rendered from its description.

Invariant: nothing here is fetched from anywhere else: a page is whole in one answer.
"""

from collections.abc import Iterator
from html import escape
from typing import Any, Final

from litestar import Request, Response, get
from litestar.di import NamedDependency
from spawn_providers.catalog import Catalog
from spawn_schemas.money import Usdc, format_usdc

from spawn.api import description, reference
from spawn.api.description import INTRODUCTION
from spawn.api.priced import price_tag, price_text, priced
from spawn.api.routes import charged_routes
from spawn.api.services import Services
from spawn.api.style import inline, page, verb
from spawn.domain import charges
from spawn.payments.curve import checksummed
from spawn.payments.exact import Terms
from spawn.settings import DEVNET_NETWORK

Http = Request[Any, Any, Any]

_STEPS: Final = (
    "`GET /v1/catalog`: what is for sale, where, and for how much.",
    "`POST /v1/servers` with a name, type, image and location. The answer is a 402 with the price.",
    "Pay with any x402 client, of version 2 or 1, and repeat: your wallet owns the server. Put `fund` into the body to "
    "pay the deposit in the same call, and `deposit` to choose how much is set aside.",
    "`GET /v1/servers/{id}?wait=30` until it is running and has an address.",
    "`DELETE /v1/servers/{id}` when you are done: what is left of the deposit returns to your balance.",
)
_RULES: Final = (
    "Send an `Idempotency-Key` with every POST and DELETE: a retry never pays or acts twice.",
    "After 503 `settlement_pending`, repeat the same request with the same payment; never sign a new one.",
    "Reads are cheap from the balance: sign the request with your wallet (RFC 9421, ERC-8128 profile), or sign in "
    "where the 402 offers `sign-in-with-x`. To read often, `POST /v1/sessions` once: its bearer reads for 15 minutes.",
    "After a 429, wait for `Retry-After` and send the same again, with the same payment. Calls are counted by wallet, "
    "and by address where they prove none.",
    "Every refusal says in `next` what to do; a call that is refused costs nothing.",
    "You are warned before a server's money ends: `GET /v1/events?wait=60` costs nothing, and a webhook tells you "
    "unasked. At the end the server is destroyed with all that is on it.",
)
_COLUMNS: Final = ("type", "cores", "memory", "disk", "per day", "deposit", "locations")


def text_page(catalog: Catalog, terms: Terms, minimum_usdc: Usdc) -> str:
    """The front page as Markdown, for agents and terminals."""
    lines = ["# spawn", "", INTRODUCTION, "", "## Buy a server", ""]
    lines += [f"{number}. {step}" for number, step in enumerate(_STEPS, 1)]
    lines += ["", f"Pay with: {_money(terms, minimum_usdc)}"]
    lines += ["", "## For sale", "", f"| {' | '.join(_COLUMNS)} |", "|---|---:|---:|---:|---:|---:|---|"]
    lines += [f"| {' | '.join(cells)} |" for cells in _offers(catalog)]
    lines += ["", f"Images: {_images(catalog)}."]
    lines += ["", "## Rules that save money", "", *(f"- {rule}" for rule in _RULES)]
    lines += ["", "## Routes", "", "| route | what | price |", "|---|---|---|"]
    lines += [
        f"| `{method} {path}` | {summary} | {price_text(charge)} |"
        for method, path, charge, summary in charged_routes()
    ]
    lines += ["", "The whole API: /openapi.json (OpenAPI 3.1), /docs (the same, for people).", ""]
    return "\n".join(lines)


def front_page(catalog: Catalog, terms: Terms, minimum_usdc: Usdc) -> str:
    """The front page as HTML, for people."""
    steps = "".join(f"<li>{inline(step)}</li>" for step in _STEPS)
    rules = "".join(f"<li>{inline(rule)}</li>" for rule in _RULES)
    return page(
        "spawn",
        f'<h1>spawn</h1><p class="lead">{escape(INTRODUCTION)}</p>'
        '<nav><a href="/docs">API reference</a><a href="/v1/catalog">Catalog</a>'
        '<a href="/openapi.json">openapi.json</a><a href="/health">Health</a></nav>'
        f"<h2>Buy a server</h2><ol>{steps}</ol><p>Pay with: {inline(_money(terms, minimum_usdc))}</p>"
        f"<h2>For sale</h2>{_offer_table(catalog)}"
        f'<p class="dim">Deposits are what is set aside unless you choose less; a day is the least. '
        f"Images: {escape(_images(catalog))}.</p>"
        f"<h2>Rules that save money</h2><ul>{rules}</ul>"
        f"<h2>Routes</h2><p>Paid by x402, or from the balance by a signed request; "
        f"what only reads, also by a sign-in or a session.</p>{_route_table()}",
    )


def _offers(catalog: Catalog) -> Iterator[tuple[str, ...]]:
    """A line for each machine and price, with the locations that share them."""
    places: dict[tuple[str, ...], list[str]] = {}
    for offer in catalog.offers:
        arm = " (arm)" if offer.architecture == "arm" else ""
        line = (
            offer.type,
            f"{offer.cores}{arm}",
            f"{offer.memory_gb} GB",
            f"{offer.disk_gb} GB",
            f"${format_usdc(offer.daily_usdc)}",
            f"${format_usdc(offer.deposit_usdc)}",
        )
        places.setdefault(line, []).append(offer.location)
    return ((*line, ", ".join(locations)) for line, locations in places.items())


def _money(terms: Terms, minimum_usdc: Usdc) -> str:
    """Which money buys here and how little of it, said plainly where it is worth nothing."""
    play = " (a test network: play money)" if terms.network == DEVNET_NETWORK else ""
    return (
        f"USDC `{checksummed(terms.asset)}` on `{terms.network}`{play}, to `{checksummed(terms.pay_to)}`. The smallest "
        f"payment is ${format_usdc(minimum_usdc)}; what it carries above the price of a call becomes balance."
    )


def _images(catalog: Catalog) -> str:
    return ", ".join(image.name for image in catalog.images)


def _offer_table(catalog: Catalog) -> str:
    aligned = [' class="num"' if 0 < index < len(_COLUMNS) - 1 else "" for index in range(len(_COLUMNS))]
    head = "".join(f"<th{align}>{title}</th>" for align, title in zip(aligned, _COLUMNS, strict=True))
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td{align} data-label="{title}">{escape(cell)}</td>'
            for align, title, cell in zip(aligned, _COLUMNS, cells, strict=True)
        )
        + "</tr>"
        for cells in _offers(catalog)
    )
    return f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _route_table() -> str:
    rows = "".join(
        f"<tr><td class='route'>{verb(method)}<code>{escape(path)}</code></td><td>{escape(summary)}</td>"
        f'<td class="num">{escape(price_tag(charge))}</td></tr>'
        for method, path, charge, summary in charged_routes()
    )
    head = "<thead><tr><th>route</th><th>what</th><th class='num'>price</th></tr></thead>"
    return f'<table class="rows">{head}<tbody>{rows}</tbody></table>'


@get("/", include_in_schema=False, **priced(charges.FREE, "What this is, for people and for agents"))
async def index(request: Http, services: NamedDependency[Services]) -> Response[str]:
    """HTML for whoever asks for it (browsers do), Markdown for everybody else."""
    html = "text/html" in request.headers.get("accept", "")
    shown = (front_page if html else text_page)(
        services.shop.catalog, services.terms, services.settings.minimum_charge_usdc
    )
    return Response(shown, media_type="text/html" if html else "text/markdown", headers={"Vary": "Accept"})


@get("/docs", include_in_schema=False, **priced(charges.FREE, "The API reference, for people"))
async def docs() -> Response[str]:
    return Response(reference.render(description.document()), media_type="text/html")


@get("/openapi.json", include_in_schema=False, **priced(charges.FREE, "The API as OpenAPI 3.1"))
async def openapi_json() -> Response[bytes]:
    return Response(description.encoded(), media_type="application/json")


HANDLERS: Final = (index, docs, openapi_json)
