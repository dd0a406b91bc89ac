"""The API reference, rendered for people from the same description that machines read.

Invariant: the page adds no fact of its own but the list of error codes, which is the table that answers use.
"""

import json
from collections.abc import Iterable
from html import escape
from typing import Any, Final

from spawn_schemas.errors import Code

from spawn.api.errors import STATUS
from spawn.api.style import inline, page, verb

_GROUPS: Final = (
    ("servers", "Servers", ("/v1/servers", "/v1/commands")),
    ("ssh-keys", "SSH keys", ("/v1/ssh-keys",)),
    ("balance", "Balance", ("/v1/balance", "/v1/suspense")),
    ("sessions", "Sessions", ("/v1/sessions",)),
    ("events", "Events and webhooks", ("/v1/events", "/v1/webhooks")),
    ("hosts", "Lent machines", ("/v1/hosts", "/api/hosts")),
    ("free", "Free for all", ("/v1/catalog", "/v1/actions", "/v1/boots", "/health")),
)
"""Id, title and the beginnings of paths; the first that fits takes the route."""

_VERBS: Final = ("post", "get", "patch", "delete")

_CALLING: Final = """
<p>Answer a 402 with an x402 payment (<code>PAYMENT-SIGNATURE</code>, or <code>X-PAYMENT</code> in version 1), or sign
the request with your wallet (<code>Signature</code>, RFC 9421 as ERC-8128 profiles it) to pay from your balance. Either
says which wallet calls. A call that is refused costs nothing; a payment that came with it stays yours, as balance.</p>
<p>What only reads is also paid from the balance by a sign-in (<code>SIGN-IN-WITH-X</code>, for the text in the 402), or
by the bearer of <code>POST /v1/sessions</code>, which lasts for 15 minutes.</p>
<p>Send an <code>Idempotency-Key</code> with whatever changes something. After a 429 or a 503, send the very same
request again when <code>Retry-After</code> has passed, with the same payment.</p>
<p>Answers carry <code>Spawn-Fee</code> (what the call cost), <code>Spawn-Balance</code> (what you can spend),
<code>Spawn-Runway</code> (seconds until the first of your servers runs out of money) and, for an x402 payment,
<code>PAYMENT-RESPONSE</code> (<code>X-PAYMENT-RESPONSE</code> in version 1).</p>
"""

Json = dict[str, Any]


def render(document: Json) -> str:
    """The reference page."""
    grouped: dict[str, list[str]] = {key: [] for key, _, _ in _GROUPS}
    for path, methods in document["paths"].items():
        key = next(key for key, _, begins in _GROUPS if path.startswith(begins))
        grouped[key] += [_operation(m, path, methods[m], document) for m in _VERBS if m in methods]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in _GROUPS)
    sections = "".join(f'<h2 id="{key}">{title}</h2>{"".join(grouped[key])}' for key, title, _ in _GROUPS)
    info = document["info"]
    return page(
        f"{info['title']} API",
        f'<p><a href="/">{escape(info["title"])}</a></p><h1>API reference</h1>'
        f'<p class="lead">{inline(info["description"])}</p>'
        f'<nav>{links}<a href="#errors">Errors</a><a href="/openapi.json">openapi.json</a>'
        f'<span class="dim">version {escape(info["version"])}</span></nav>'
        f"<h2>Calling</h2>{_CALLING}{sections}{_errors(document)}",
    )


def _operation(method: str, path: str, operation: Json, document: Json) -> str:
    price = operation.get("description", "").strip("*")
    parts = [f"<p>{inline(price)}</p>"]
    parameters = [p for p in operation.get("parameters", ()) if "$ref" not in p]
    if parameters:
        parts.append(f"<h3>Parameters</h3>{_table(_parameter(p, document) for p in parameters)}")
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        parts.append(
            f"<h3>Body</h3>{_table(_fields(body['schema'], document))}{_example(body.get('example'))}"
        )
    parts.append(_answers(operation["responses"], document))
    return (
        f'<details id="{method}-{escape(path)}"><summary>{verb(method)}<code>{escape(path)}</code>'
        f'<span class="what">{inline(operation.get("summary", ""))}</span>'
        f'<span class="price">{escape(operation["x-price"])}</span></summary>'
        f'<div class="inside">{"".join(parts)}</div></details>'
    )


def _table(rows: Iterable[str], head: tuple[str, ...] = ()) -> str:
    titles = "".join(f"<th>{title}</th>" for title in head)
    thead = f"<thead><tr>{titles}</tr></thead>" if head else ""
    return f'<table class="rows">{thead}<tbody>{"".join(rows)}</tbody></table>'


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _parameter(parameter: Json, document: Json) -> str:
    need = "required" if parameter.get("required") else "optional"
    schema = parameter.get("schema", {})
    described = {**schema, "description": parameter.get("description") or schema.get("description", "")}
    return _row(
        f"<code>{escape(parameter['name'])}</code>",
        f'<span class="dim">{escape(parameter["in"])}, {need}</span>',
        _describe(described, document),
    )


def _fields(schema: Json, document: Json) -> list[str]:
    resolved = _resolve(schema, document)
    required = set(resolved.get("required", ()))
    return [
        _row(
            f"<code>{escape(name)}</code>",
            f'<span class="dim">{"required" if name in required else "optional"}</span>',
            _describe(field, document),
        )
        for name, field in sorted(
            resolved.get("properties", {}).items(), key=lambda item: item[0] not in required
        )
    ]


def _resolve(schema: Json, document: Json) -> Json:
    """Follow a reference, past the null that stands for a missing value."""
    for choice in schema.get("oneOf", []):
        if choice.get("type") != "null":
            return _resolve(choice, document)
    if "$ref" in schema:
        found: Json = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return found
    return schema


def _describe(field: Json, document: Json) -> str:
    """What a field is for, then what it may hold."""
    resolved = _resolve(field, document)
    limits = {**resolved, **field}
    rules = [_type(resolved, document)]
    if "enum" in limits:
        rules.append(f"one of {', '.join(f'`{value}`' for value in limits['enum'])}")
    if "minimum" in limits:
        rules.append(f"{int(limits['minimum'])} to {int(limits['maximum'])}")
    if "maxLength" in limits:
        rules.append(f"at most {limits['maxLength']} characters")
    if "maxItems" in limits:
        rules.append(f"at most {limits['maxItems']}")
    if limits.get("default") not in (None, []):
        rules.append(f"default `{json.dumps(limits['default'])}`")
    if limits.get("examples"):
        rules.append(f"such as `{limits['examples'][0]}`")
    text = limits.get("description", "")
    return f'{f"<p>{inline(text)}</p>" if text else ""}<span class="dim">{inline(", ".join(rules))}</span>'


def _type(schema: Json, document: Json) -> str:
    if schema.get("type") == "array":
        return f"list of {_type(_resolve(schema.get('items', {}), document), document)}s"
    return str(schema.get("title") or schema.get("type") or "any")


def _answers(responses: Json, document: Json) -> str:
    done = {status: response for status, response in responses.items() if status.startswith("2")}
    refused = {status: response for status, response in responses.items() if status not in done}
    parts = []
    for status, response in done.items():
        body: Json = next(iter(response.get("content", {}).values()), {})
        schema = _resolve(body.get("schema", {}), document)
        meaning = f"<p>{inline(schema['description'])}</p>" if schema.get("description") else ""
        parts.append(f"<h3>Answer: {escape(status)}</h3>{meaning}{_example(body.get('example'))}")
    if refused:
        rows = (
            _row(f"<code>{status}</code>", inline(response.get("description", "")))
            for status, response in sorted(refused.items())
        )
        parts.append(
            f'<h3>Refusals</h3>{_table(rows)}<p class="dim"><a href="#errors">What they look like</a></p>'
        )
    return "".join(parts)


def _errors(document: Json) -> str:
    example = {
        "error": {
            "code": Code.INSUFFICIENT_DEPOSIT.value,
            "message": "This needs 5.01 USDC and 0.60 is available: 4.41 is missing.",
            "status": STATUS[Code.INSUFFICIENT_DEPOSIT],
            "retryable": False,
            "retry_after": None,
            "details": {"need": "5.01", "have": "0.60", "short": "4.41"},
            "next": 'POST /v1/balance/deposit {"amount": "4.41"}',
            "request_id": "req_16bd08c1692ed44155ac",
        }
    }
    meaning = document["components"]["schemas"]["ErrorBody"].get("description", "")
    by_status = sorted(STATUS.items(), key=lambda item: (item[1], item[0].value))
    rows = (_row(f"<code>{status}</code>", f"<code>{code.value}</code>") for code, status in by_status)
    return (
        f'<h2 id="errors">Errors</h2><p>{inline(meaning)}</p>{_example(example)}'
        "<p>A 402 has another body, which x402 clients can read; its challenge is in <code>PAYMENT-REQUIRED</code>.</p>"
        f"{_table(rows, ('status', 'code'))}"
    )


def _example(example: object) -> str:
    return (
        "" if example is None else f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
    )
