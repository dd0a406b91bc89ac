"""`/v1/webhooks`: where a wallet's events are sent, and what became of them."""

from typing import Annotated

from litestar import Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter
from spawn_schemas import api
from spawn_schemas import webhooks as wire
from spawn_schemas.ids import WebhookId

from spawn.api.arrivals import Arrival
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.services import webhooks

Limit = Annotated[int, QueryParameter(ge=1, le=100, description="Deliveries per page.")]
Cursor = Annotated[
    str | None,
    QueryParameter(
        description="`next_cursor` of the page before.", schema_extra={"pattern": r"^c[0-9]{1,18}$(?!\n)"}
    ),
]


@post("/v1/webhooks", status_code=201, **priced(charges.WEBHOOK, "Register a webhook", 409))
async def create_webhook(
    arrival: NamedDependency[Arrival],
    services: NamedDependency[Services],
    data: JSONBody[wire.CreateWebhook | None] = None,
) -> Response[wire.WebhookCreated]:
    shop = services.shop
    return await services.gate.run_with_body(
        arrival,
        data,
        lambda body: webhooks.CreateWebhook(body, services.outbound, shop.vault, shop.entropy),
    )


@get("/v1/webhooks", **priced(charges.READ, "List your webhooks"))
async def list_webhooks(
    arrival: NamedDependency[Arrival], services: NamedDependency[Services]
) -> Response[wire.WebhookList]:
    return await services.gate.run(arrival, webhooks.ListWebhooks)


@get("/v1/webhooks/{webhook_id:str}", **priced(charges.READ, "Show a webhook", 403, 404))
async def show_webhook(
    arrival: NamedDependency[Arrival], webhook_id: FromPath[str], services: NamedDependency[Services]
) -> Response[wire.WebhookShown]:
    return await services.gate.run(arrival, lambda: webhooks.ShowWebhook(WebhookId(webhook_id)))


@patch(
    "/v1/webhooks/{webhook_id:str}",
    **priced(charges.WEBHOOK, "Change a webhook, or enable it again", 403, 404),
)
async def update_webhook(
    arrival: NamedDependency[Arrival],
    webhook_id: FromPath[str],
    services: NamedDependency[Services],
    data: JSONBody[wire.UpdateWebhook | None] = None,
) -> Response[wire.WebhookShown]:
    return await services.gate.run_with_body(
        arrival, data, lambda body: webhooks.UpdateWebhook(WebhookId(webhook_id), body, services.outbound)
    )


@delete(
    "/v1/webhooks/{webhook_id:str}", status_code=200, **priced(charges.WEBHOOK, "Delete a webhook", 403, 404)
)
async def delete_webhook(
    arrival: NamedDependency[Arrival], webhook_id: FromPath[str], services: NamedDependency[Services]
) -> Response[api.Deleted]:
    return await services.gate.run(
        arrival, lambda: webhooks.DeleteWebhook(WebhookId(webhook_id), services.shop.vault)
    )


@post(
    "/v1/webhooks/{webhook_id:str}/test",
    status_code=200,
    **priced(charges.WEBHOOK, "Send a webhook a test event", 403, 404),
)
async def test_webhook(
    arrival: NamedDependency[Arrival], webhook_id: FromPath[str], services: NamedDependency[Services]
) -> Response[wire.WebhookTested]:
    return await services.gate.run(arrival, lambda: webhooks.TestWebhook(WebhookId(webhook_id)))


@post(
    "/v1/webhooks/{webhook_id:str}/secret",
    status_code=200,
    **priced(charges.WEBHOOK, "Replace a webhook's secret", 403, 404),
)
async def rotate_secret(
    arrival: NamedDependency[Arrival], webhook_id: FromPath[str], services: NamedDependency[Services]
) -> Response[wire.SecretRotated]:
    shop = services.shop
    return await services.gate.run(
        arrival, lambda: webhooks.RotateSecret(WebhookId(webhook_id), shop.vault, shop.entropy)
    )


@get(
    "/v1/webhooks/{webhook_id:str}/deliveries",
    **priced(charges.READ, "List what was sent to a webhook", 403, 404),
)
async def list_deliveries(
    arrival: NamedDependency[Arrival],
    webhook_id: FromPath[str],
    services: NamedDependency[Services],
    cursor: Cursor = None,
    limit: Limit = 25,
) -> Response[wire.DeliveryList]:
    return await services.gate.run(
        arrival, lambda: webhooks.ListDeliveries(WebhookId(webhook_id), cursor=cursor, limit=limit)
    )


HANDLERS = (
    create_webhook,
    list_webhooks,
    show_webhook,
    update_webhook,
    delete_webhook,
    test_webhook,
    rotate_secret,
    list_deliveries,
)
