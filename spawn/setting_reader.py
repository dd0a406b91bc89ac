"""Reading the settings from `SPAWN_*`, and refusing what cannot be meant.

Invariant: a name nobody knows is refused, so that a typing error never silently means the default; no message repeats
a value, which may be a secret.
"""

import difflib
import math
from collections.abc import Mapping
from itertools import chain
from typing import Any, Final

import msgspec
from spawn_schemas.ids import parse_address
from spawn_schemas.money import USDC

from spawn.domain.community import parse_images, parse_ports, parse_range, parse_size
from spawn.domain.warnings import Policy
from spawn.setting_forms import (
    are_networks,
    is_address,
    is_amount,
    is_caip2,
    is_host_name,
    is_http,
    is_ip,
    is_link,
    is_listen,
    is_name_or_ip,
    is_price,
    is_private_key,
    is_secret,
    is_timeout,
    is_token,
    is_url,
    listed,
    parse_duration,
    parses,
)
from spawn.settings import DEVNET_PAY_TO, HETZNER_ENDPOINT, InvalidSetting, Settings

_TEST_PREFIX: Final = "SPAWN_TEST_"
_PATIENCE_S: Final = 60
"""The longest that a call may be made to wait."""
_SECONDS: Final = f"0 to {_PATIENCE_S} seconds"
_RECONCILE_HETZNER_S: Final = 600
_TIMEOUT: Final = "0.1 to 3600 seconds"
_RATE_MAX: Final = 1_000_000
_RATES: Final = f"0 (no limit) to {_RATE_MAX} calls a minute"
_NETWORKS: Final = (
    "a comma list of addresses and networks, such as {}, with no bit set after the prefix, "
    "and never everybody (/0)"
)


_Check = tuple[str, bool, str]
"""A setting's name, whether it can be meant, and what it should be."""


def read_settings(environ: Mapping[str, str], **overrides: object) -> Settings:
    """Build the settings from the environment; `overrides` win. Raises InvalidSetting."""
    values: dict[str, object] = {}
    known = set(Settings.__struct_fields__)
    for name, text in environ.items():
        if not name.startswith("SPAWN_") or name.startswith(_TEST_PREFIX):
            continue
        field = name.removeprefix("SPAWN_").lower()
        if field not in known or name != name.upper():
            raise InvalidSetting(_unknown(name, known))
        values[field] = text
    values.update(overrides)
    if values.get("providers") == "hetzner":
        # An inventory of a thousand servers is twenty of the calls that a project has.
        values.setdefault("reconcile_every_s", _RECONCILE_HETZNER_S)
    settings = Settings(**{field.name: _typed(field, values) for field in msgspec.structs.fields(Settings)})
    if not settings.public_url and settings.listen_host_is_wildcard:
        raise InvalidSetting(
            "SPAWN_PUBLIC_URL must say how callers reach a service that listens on every address: "
            "signed requests are bound to it."
        )
    if not settings.public_url:
        settings = msgspec.structs.replace(settings, public_url=f"http://{settings.listen}")
    _check(settings)
    return settings


def _typed(field: msgspec.structs.FieldInfo, values: Mapping[str, object]) -> Any:
    """The setting's value, or its default. The message never repeats a value, which may be a secret."""
    try:
        return msgspec.convert(values.get(field.name, field.default), field.type, strict=False)
    except msgspec.ValidationError as error:
        wanted = "a whole number" if field.type is int else "a number"
        raise InvalidSetting(f"SPAWN_{field.name.upper()} should be {wanted}.") from error


def _unknown(name: str, known: set[str]) -> str:
    names = [f"SPAWN_{field.upper()}" for field in sorted(known)]
    close = difflib.get_close_matches(name.upper(), names, n=1)
    hint = f" Did you mean {close[0]}?" if close else f" Known are: {', '.join(names)}."
    return f"{name} is no setting of this version.{hint}"


def _check(settings: Settings) -> None:
    checks = (_door_checks, _chain_checks, _price_checks, _machine_checks, _lent_checks, _work_checks)
    for name, fine, wanted in chain.from_iterable(check(settings) for check in checks):
        if not fine:
            raise InvalidSetting(f"{name} should be {wanted}.")
    _check_rail(settings)
    _check_provider(settings)


def _door_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        ("SPAWN_LISTEN", is_listen(settings.listen), "host:port, such as 127.0.0.1:8402"),
        ("SPAWN_BODY_MAX_BYTES", settings.body_max_bytes > 0, "more than 0"),
        (
            "SPAWN_HEAD_MAX_BYTES",
            4096 <= settings.head_max_bytes <= 65_536,
            "4096 to 65536: a payment alone is half of the least",
        ),
        ("SPAWN_HEAD_TIMEOUT_S", is_timeout(settings.head_timeout_s), _TIMEOUT),
        ("SPAWN_BODY_TIMEOUT_S", is_timeout(settings.body_timeout_s), _TIMEOUT),
        ("SPAWN_IDLE_TIMEOUT_S", is_timeout(settings.idle_timeout_s), _TIMEOUT),
        ("SPAWN_ANSWER_TIMEOUT_S", is_timeout(settings.answer_timeout_s), _TIMEOUT),
        ("SPAWN_CONNECTIONS_MAX", settings.connections_max > 0, "more than 0"),
        ("SPAWN_CONNECTIONS_PER_ADDRESS_MAX", settings.connections_per_address_max > 0, "more than 0"),
        ("SPAWN_STREAMS_MAX", settings.streams_max >= 0, "0 (none) or more"),
        ("SPAWN_STREAMS_PER_WALLET_MAX", settings.streams_per_wallet_max > 0, "more than 0"),
        ("SPAWN_RATE_ADDRESS_PER_MINUTE", 0 <= settings.rate_address_per_minute <= _RATE_MAX, _RATES),
        ("SPAWN_RATE_WALLET_PER_MINUTE", 0 <= settings.rate_wallet_per_minute <= _RATE_MAX, _RATES),
        (
            "SPAWN_TRUSTED_PROXIES",
            are_networks(settings.trusted_proxies),
            _NETWORKS.format("10.0.0.0/8,2001:db8::1"),
        ),
        (
            "SPAWN_WEBHOOK_NETWORKS",
            are_networks(settings.webhook_networks),
            _NETWORKS.format("127.0.0.0/8,::1"),
        ),
    )


def _chain_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        (
            "SPAWN_PAYMENTS",
            settings.payments in {"devnet", "self", "facilitator"},
            "devnet, self or facilitator",
        ),
        (
            "SPAWN_RPC_URL",
            settings.rpc_url == "" or is_http(settings.rpc_url),
            "http://… or https://… of a node",
        ),
        ("SPAWN_RPC_TIMEOUT_S", is_timeout(settings.rpc_timeout_s), _TIMEOUT),
        ("SPAWN_CONFIRMATIONS", 1 <= settings.confirmations <= 1000, "1 to 1000 blocks"),
        ("SPAWN_SETTLE_WAIT_S", 0 <= settings.settle_wait_s <= _PATIENCE_S, _SECONDS),
        (
            "SPAWN_RELAYER_KEY",
            _are_keys(settings.relayer_keys),
            "a comma list of private keys, 64 hex digits each, none twice",
        ),
        ("SPAWN_RELAY_MULTICALL", is_address(settings.relay_multicall), "an address, 0x and 40 hex digits"),
        ("SPAWN_RELAY_BATCH_MAX", 1 <= settings.relay_batch_max <= 100, "1 to 100 payments a transaction"),
        ("SPAWN_RELAY_ALONE_FROM", is_amount(settings.relay_alone_from), "an amount such as 100.00"),
        ("SPAWN_RELAY_BUMP_AFTER_S", 1 <= settings.relay_bump_after_s <= 600, "1 to 600 seconds"),
        (
            "SPAWN_RELAY_FEE_CAP_GWEI",
            1e-9 <= settings.relay_fee_cap_gwei <= 500,
            "0.000000001 (1 wei) to 500",
        ),
        (
            "SPAWN_X402_FACILITATOR_URL",
            all(is_http(url) for url in settings.facilitator_urls),
            "a comma list of http(s) addresses, the preferred one first",
        ),
        ("SPAWN_FACILITATOR_TIMEOUT_S", is_timeout(settings.facilitator_timeout_s), _TIMEOUT),
        (
            "SPAWN_CDP_KEY_ID",
            bool(settings.cdp_key_id) == bool(settings.cdp_key_secret),
            "set together with SPAWN_CDP_KEY_SECRET, or not at all",
        ),
        (
            "SPAWN_SUSPENSE_FROM_BLOCK",
            settings.suspense_from_block >= -1,
            "a block number, or -1 for from now on",
        ),
        ("SPAWN_SUSPENSE_DEPTH", 1 <= settings.suspense_depth <= 10_000, "1 to 10000 blocks"),
        ("SPAWN_SUSPENSE_EVERY_S", 1 <= settings.suspense_every_s <= 86_400, "1 to 86400 seconds"),
        ("SPAWN_TREASURY_EVERY_S", 1 <= settings.treasury_every_s <= 86_400, "1 to 86400 seconds"),
        ("SPAWN_X402_NETWORK", is_caip2(settings.x402_network), "a CAIP-2 name such as eip155:84532"),
        ("SPAWN_X402_PAY_TO", is_address(settings.x402_pay_to), "an address, 0x and 40 hex digits"),
        ("SPAWN_X402_ASSET", is_address(settings.x402_asset), "an address, 0x and 40 hex digits"),
    )


def _price_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        ("SPAWN_ETH_PRICE", is_amount(settings.eth_price), "USDC for one ether, such as 3000.00"),
        ("SPAWN_GAS_PRICE_GWEI", 0 <= settings.gas_price_gwei <= 10_000, "0 to 10000"),
        ("SPAWN_FACILITATOR_FEE", is_amount(settings.facilitator_fee), "an amount such as 0.001"),
        (
            "SPAWN_EUR_PRICE",
            is_amount(settings.eur_price) and settings.eur_price_usdc > 0,
            "USDC for one euro, such as 1.08",
        ),
        (
            "SPAWN_EUR_SOURCE",
            settings.eur_source == "" or is_http(settings.eur_source),
            "http://… or https://… of the euro's daily rates, or nothing for SPAWN_EUR_PRICE",
        ),
        (
            "SPAWN_MINIMUM_CHARGE",
            is_amount(settings.minimum_charge) and settings.minimum_charge_usdc <= USDC,
            "an amount up to 1.00, the most that stock clients pay unasked",
        ),
        ("SPAWN_PRICE_FLOOR_PERCENT", 0 <= settings.price_floor_percent <= 1000, "0 to 1000"),
        ("SPAWN_PRICE_MARGIN_PERCENT", 0 <= settings.price_margin_percent <= 90, "0 (as listed) to 90"),
        ("SPAWN_DEPOSIT_DEFAULT", is_amount(settings.deposit_default), "an amount such as 1.00"),
        ("SPAWN_DEPOSIT_MINIMUM", is_amount(settings.deposit_minimum), "an amount such as 0.01"),
        ("SPAWN_DEPOSIT_DAILY_CAP", is_amount(settings.deposit_daily_cap), "an amount such as 2000.00"),
    )


def _machine_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        (
            "SPAWN_PROVIDERS",
            settings.providers in {"simulated", "hetzner", "community"},
            "simulated, hetzner or community",
        ),
        ("SPAWN_SIMULATED_SPEED", 0 < settings.simulated_speed < math.inf, "more than 0; 1 is real time"),
        (
            "SPAWN_HETZNER_TOKEN",
            is_token(settings.hetzner_token),
            "a token of Hetzner Cloud, without spaces around it",
        ),
        ("SPAWN_HETZNER_ENDPOINT", is_http(settings.hetzner_endpoint), "http://… or https://… of its API"),
        (
            "SPAWN_HETZNER_NETWORK_ID",
            settings.hetzner_network_id >= 0,
            "the number of a network, or 0 for none",
        ),
        (
            "SPAWN_HETZNER_FIREWALL_ID",
            settings.hetzner_firewall_id >= 0,
            "the number of a firewall, or 0 for none",
        ),
    )


def _lent_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        (
            "SPAWN_COMMUNITY_HOST",
            settings.community_host == "" or is_host_name(settings.community_host),
            "a host's name, as `spawn hosts add` was told",
        ),
        (
            "SPAWN_COMMUNITY_DAILY_USDC",
            settings.community_daily_usdc == "" or is_price(settings.community_daily_usdc),
            "USDC for 24 hours, more than 0; nothing for what the host asks",
        ),
        (
            "SPAWN_COMMUNITY_IMAGES",
            parses(parse_images, settings.community_images),
            "a comma list of name=reference@sha256:…, no name twice",
        ),
        (
            "SPAWN_COMMUNITY_SIZE",
            parses(parse_size, settings.community_size),
            "cores, GB of memory and GB of disk, such as 2,4,40",
        ),
        (
            "SPAWN_COMMUNITY_PORTS",
            parses(parse_ports, settings.community_ports),
            "a comma list of ports, those by host name with /http, such as 22,8888/http",
        ),
        ("SPAWN_HOST_SHARE_PERCENT", 0 <= settings.host_share_percent <= 90, "0 to 90"),
        ("SPAWN_LINK_LISTEN", is_listen(settings.link_listen), "host:port, such as 127.0.0.1:8403"),
        (
            "SPAWN_LINK_URL",
            settings.link_url == "" or is_link(settings.link_url),
            "wss://host[:port]; ws:// only for an address of this machine",
        ),
        ("SPAWN_RELAY_LISTEN", is_ip(settings.relay_listen), "an address of this machine, such as 0.0.0.0"),
        (
            "SPAWN_RELAY_PORTS",
            parses(parse_range, settings.relay_ports),
            "two ports from 1024 to 65535, such as 20000-20999",
        ),
        (
            "SPAWN_RELAY_HOST",
            settings.relay_host == "" or is_name_or_ip(settings.relay_host),
            "the name or address that tenants are told",
        ),
        (
            "SPAWN_RELAY_HTTP_LISTEN",
            is_listen(settings.relay_http_listen),
            "host:port, such as 127.0.0.1:8404",
        ),
        (
            "SPAWN_RELAY_HTTP_URL",
            settings.relay_http_url == "" or is_url(settings.relay_http_url),
            "http://host[:port] or https://host[:port], below whose host each HTTP port has a name, or nothing",
        ),
    )


def _work_checks(settings: Settings) -> tuple[_Check, ...]:
    return (
        (
            "SPAWN_DATABASE_CONNECTIONS",
            1 <= settings.database_connections <= 100,
            "1 to 100; a server takes 100 in all unless it is told otherwise",
        ),
        ("SPAWN_DATABASE_RETRIES", 0 <= settings.database_retries <= 0.5, "0 to 0.5; it is for tests"),
        ("SPAWN_PUBLIC_URL", is_url(settings.public_url), "http://host[:port] or https://host[:port]"),
        ("SPAWN_SECRET_KEY", is_secret(settings.secret_key), "64 hex digits (32 random bytes)"),
        (
            "SPAWN_WARNINGS",
            _warns(settings),
            "a comma list of runways such as 7d,3d,1d,6h: the longest first, none shorter than a minute",
        ),
        ("SPAWN_GRACE_S", 0 <= settings.grace_s <= 30 * 86_400, "0 to 2592000 seconds"),
        ("SPAWN_FIRST_ANSWER_S", 0 <= settings.first_answer_s <= _PATIENCE_S, _SECONDS),
        ("SPAWN_IN_FLIGHT_WAIT_S", 0 <= settings.in_flight_wait_s <= _PATIENCE_S, _SECONDS),
        ("SPAWN_X402_TIMEOUT_S", 30 <= settings.x402_timeout_s <= 3600, "30 to 3600 seconds"),
        ("SPAWN_TICK_S", 0.01 <= settings.tick_s <= 60, "0.01 to 60 seconds"),
        ("SPAWN_LEASE_S", 5 <= settings.lease_s <= 3600, "5 to 3600 seconds"),
        ("SPAWN_BURN_EVERY_S", 1 <= settings.burn_every_s <= 3600, "1 to 3600 seconds"),
        ("SPAWN_EVENTS_KEEP_S", settings.events_keep_s >= 86_400, "86400 (a day) or more"),
        ("SPAWN_RECONCILE_EVERY_S", 1 <= settings.reconcile_every_s <= 86_400, "1 to 86400 seconds"),
    )


_RAIL_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "devnet": (),
    "self": ("rpc_url", "relayer_key"),
    "facilitator": ("rpc_url", "x402_facilitator_url"),
}


def _check_rail(settings: Settings) -> None:
    """What a way to settle needs besides the defaults; and keys or facilitators of another, which would lie idle."""
    needed = _RAIL_NEEDS[settings.payments]
    for name in needed:
        if not getattr(settings, name):
            raise InvalidSetting(f"SPAWN_{name.upper()} is needed with SPAWN_PAYMENTS={settings.payments}.")
    for name in ("relayer_key", "x402_facilitator_url"):
        if name not in needed and getattr(settings, name):
            raise InvalidSetting(
                f"SPAWN_{name.upper()} has no use with SPAWN_PAYMENTS={settings.payments}: take it out, or set "
                f"SPAWN_PAYMENTS={'self' if name == 'relayer_key' else 'facilitator'}."
            )
    if settings.payments != "devnet" and settings.pay_to == parse_address(DEVNET_PAY_TO):
        raise InvalidSetting("SPAWN_X402_PAY_TO is play money's address, which nobody owns: set your own.")


def _check_provider(settings: Settings) -> None:
    """Machines that cost money need a token, and are not sold for play money; lent ones need a host and images."""
    if settings.providers == "community":
        for name in ("community_host", "community_images"):
            if not getattr(settings, name):
                raise InvalidSetting(f"SPAWN_{name.upper()} is needed with SPAWN_PROVIDERS=community.")
    if settings.providers != "hetzner":
        return
    if not settings.hetzner_token:
        raise InvalidSetting(
            "SPAWN_HETZNER_TOKEN is needed with SPAWN_PROVIDERS=hetzner: make one with read and write access in the "
            "project's console."
        )
    if settings.payments == "devnet" and settings.hetzner_endpoint == HETZNER_ENDPOINT:
        raise InvalidSetting(
            "SPAWN_PAYMENTS=devnet is play money, which anybody can make, and would buy real machines at Hetzner: set "
            "SPAWN_PAYMENTS to self or facilitator."
        )


def _are_keys(keys: tuple[str, ...]) -> bool:
    return all(map(is_private_key, keys)) and len({int(key, 16) for key in keys}) == len(keys)


def _warns(settings: Settings) -> bool:
    try:
        thresholds_s = tuple(map(parse_duration, listed(settings.warnings)))
        Policy(thresholds_s=thresholds_s)
    except ValueError:
        return False
    return min(thresholds_s) >= 60
