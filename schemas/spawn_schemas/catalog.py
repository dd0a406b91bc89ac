"""`GET /v1/catalog` as structs: what can be bought, where, for how much, and how to pay."""

import msgspec

from spawn_schemas.money import UsdcText


class OfferView(msgspec.Struct, frozen=True, kw_only=True):
    """One server type in one location. Of a calendar month (UTC) at most `monthly_burn_max` is charged, if not null.

    In each, `included_traffic_bytes` may be sent; 2^40 bytes more cost `overage_usdc_per_tb`, null: nothing.
    """

    type: str
    location: str
    provider_type: str
    architecture: str
    cores: int
    memory_gb: int
    disk_gb: int
    daily_burn: UsdcText
    monthly_burn_max: UsdcText | None
    deposit: UsdcText
    minimum_deposit: UsdcText
    included_traffic_bytes: int
    overage_usdc_per_tb: UsdcText | None


class ImageView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    description: str


class LocationView(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    city: str
    country: str


class FeeView(msgspec.Struct, frozen=True, kw_only=True):
    method: str
    path: str
    fee: UsdcText
    summary: str


class PaymentTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How to pay. No payment is smaller than `minimum`; what it carries above a call's price becomes balance."""

    scheme: str
    network: str
    asset: str
    pay_to: str
    minimum: UsdcText


class CatalogView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be bought, what it costs, and how to pay."""

    offers: tuple[OfferView, ...]
    images: tuple[ImageView, ...]
    locations: tuple[LocationView, ...]
    fees: tuple[FeeView, ...]
    payment: PaymentTerms
