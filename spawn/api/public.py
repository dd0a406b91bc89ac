"""What anybody may ask: the catalog, an action by its unguessable id, and whether the service is well."""

from typing import Annotated, Any, Final

from litestar import Request, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from spawn_schemas import api, catalog
from spawn_schemas.ids import ActionId
from spawn_schemas.money import format_usdc

from spawn import __version__
from spawn.api.priced import priced
from spawn.api.services import Services
from spawn.domain import charges
from spawn.payments.curve import checksummed
from spawn.services import views

SELECT_ALIVE: Final = "SELECT 1 AS alive"

Http = Request[Any, Any, Any]
Wait = Annotated[int, QueryParameter(ge=0, le=60, description="Seconds to wait for the action to finish.")]


@get("/v1/catalog", **priced(charges.FREE, "What is for sale, where, and for how much"))
async def show_catalog(request: Http, services: NamedDependency[Services]) -> catalog.CatalogView:
    sold, settings = services.shop.catalog, services.settings
    return catalog.CatalogView(
        offers=tuple(
            catalog.OfferView(
                type=offer.type,
                location=offer.location,
                provider_type=offer.provider_type,
                architecture=offer.architecture,
                cores=offer.cores,
                memory_gb=offer.memory_gb,
                disk_gb=offer.disk_gb,
                daily_burn=format_usdc(offer.daily_usdc),
                monthly_burn_max=None if offer.monthly_usdc is None else format_usdc(offer.monthly_usdc),
                deposit=format_usdc(offer.deposit_usdc),
                minimum_deposit=format_usdc(offer.daily_usdc),
                included_traffic_bytes=offer.included_bytes,
                overage_usdc_per_tb=None if offer.tb_usdc is None else format_usdc(offer.tb_usdc),
            )
            for offer in sold.offers
        ),
        images=tuple(catalog.ImageView(name=i.name, description=i.description) for i in sold.images),
        locations=tuple(
            catalog.LocationView(name=place.name, city=place.city, country=place.country)
            for place in sold.locations
        ),
        fees=request.app.state.fees,
        payment=catalog.PaymentTerms(
            scheme="exact",
            network=settings.x402_network,
            asset=checksummed(services.terms.asset),
            pay_to=checksummed(services.terms.pay_to),
            minimum=format_usdc(settings.minimum_charge_usdc),
        ),
    )


@get("/v1/actions/{action_id:str}", **priced(charges.FREE, "Follow an action", 400, 404))
async def show_action(
    action_id: FromPath[str], services: NamedDependency[Services], wait: Wait = 0
) -> api.ActionShown:
    operation = await services.operator.finished(ActionId(action_id), wait)
    return api.ActionShown(action=views.action_view(operation))


@get("/health", **priced(charges.FREE, "Whether the service is well"))
async def health(services: NamedDependency[Services]) -> api.Health:
    """Well means: the database answers this process. Otherwise the answer is a 503 or a 500."""
    await services.db.read(SELECT_ALIVE, {})
    return api.Health(
        status="ok", version=__version__, schema=services.schema, providers=tuple(services.providers)
    )


HANDLERS = (show_catalog, show_action, health)
