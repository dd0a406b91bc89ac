"""Every setting in one frozen struct: `setting_reader` makes it from `SPAWN_*` once, at the door.

Invariant: a field's name in capitals, behind `SPAWN_`, is the setting's.
"""

from typing import Final
from urllib.parse import urlsplit

import msgspec
from spawn_schemas.ids import Address, parse_address
from spawn_schemas.money import Usdc, parse_usdc

from spawn.domain.targets import Network, Rules, networks
from spawn.domain.warnings import Policy
from spawn.setting_forms import listed, parse_duration

DEVNET_NETWORK: Final = "eip155:84532"
DEVNET_ASSET: Final = "0x036CbD53842c5426634e7929541eC2318f3dCF7e"
DEVNET_PAY_TO: Final = "0x5Ba7Dd0000000000000000000000000000008402"
HETZNER_ENDPOINT: Final = "https://api.hetzner.cloud/v1"
MULTICALL3: Final = "0xcA11bde05977b3631167028862bE2a173976CA11"
"""Where the Multicall3 contract is on nearly every chain."""


def address_of(listen: str) -> tuple[str, int]:
    """Host and port of `host:port`."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


class InvalidSetting(Exception):
    """A setting that cannot be meant; the message names it and says what it should be."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Amounts in USDC as decimal strings, times in seconds unless the name says otherwise.

    `public_url` is how callers reach us; without it, where we listen.
    """

    database_url: str = "sqlite:///spawn.db"
    database_connections: int = 8
    database_retries: float = 0.0
    listen: str = "127.0.0.1:8402"
    public_url: str = ""
    payments: str = "devnet"
    x402_network: str = DEVNET_NETWORK
    x402_pay_to: str = DEVNET_PAY_TO
    x402_asset: str = DEVNET_ASSET
    x402_asset_name: str = "USDC"
    x402_asset_version: str = "2"
    x402_timeout_s: int = 300
    devnet_path: str = "spawn-devnet.db"
    rpc_url: str = ""
    rpc_timeout_s: float = 10.0
    confirmations: int = 1
    settle_wait_s: float = 20.0
    relayer_key: str = ""
    relay_multicall: str = MULTICALL3
    relay_batch_max: int = 50
    relay_alone_from: str = "100.00"
    relay_bump_after_s: int = 15
    relay_fee_cap_gwei: float = 5.0
    x402_facilitator_url: str = ""
    facilitator_timeout_s: float = 15.0
    cdp_key_id: str = ""
    cdp_key_secret: str = ""
    suspense_from_block: int = -1
    suspense_every_s: int = 30
    suspense_depth: int = 32
    treasury_every_s: int = 86_400
    eth_price: str = "3000.00"
    eur_price: str = "1.08"
    eur_source: str = ""
    gas_price_gwei: float = 0.01
    facilitator_fee: str = "0.001"
    minimum_charge: str = "0.001"
    price_floor_percent: int = 105
    price_margin_percent: int = 0
    providers: str = "simulated"
    hetzner_token: str = ""
    hetzner_endpoint: str = HETZNER_ENDPOINT
    hetzner_location: str = ""
    hetzner_network_id: int = 0
    hetzner_firewall_id: int = 0
    hetzner_ssh_key_names: str = ""
    simulated_path: str = "spawn-simulated.db"
    simulated_speed: float = 1.0
    simulated_seed: int = 1
    community_host: str = ""
    community_daily_usdc: str = ""
    community_images: str = ""
    community_size: str = "1,1,10"
    community_ports: str = "22,8888/http"
    host_share_percent: int = 60
    link_listen: str = "127.0.0.1:8403"
    link_url: str = ""
    relay_listen: str = "127.0.0.1"
    relay_ports: str = "20000-20999"
    relay_host: str = ""
    relay_http_listen: str = "127.0.0.1:8404"
    relay_http_url: str = ""
    warnings: str = "7d,3d,1d,6h"
    grace_s: int = 0
    secret_key: str = ""
    deposit_default: str = "1.00"
    deposit_minimum: str = "0.01"
    deposit_daily_cap: str = "2000.00"
    first_answer_s: float = 5.0
    in_flight_wait_s: float = 5.0
    body_max_bytes: int = 131_072
    head_max_bytes: int = 32_768
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 30.0
    answer_timeout_s: float = 30.0
    connections_max: int = 4096
    connections_per_address_max: int = 256
    streams_max: int = 1024
    streams_per_wallet_max: int = 16
    rate_address_per_minute: int = 600
    rate_wallet_per_minute: int = 1200
    trusted_proxies: str = ""
    webhook_networks: str = ""
    tick_s: float = 1.0
    lease_s: int = 50
    burn_every_s: int = 10
    reconcile_every_s: int = 60
    events_keep_s: int = 7_776_000

    @property
    def chain_id(self) -> int:
        return int(self.x402_network.removeprefix("eip155:"))

    @property
    def pay_to(self) -> Address:
        return parse_address(self.x402_pay_to)

    @property
    def authority(self) -> str:
        """What a signed request must name as `@authority`: host, and port unless it is the scheme's own."""
        url = urlsplit(self.public_url)
        own = {"http": 80, "https": 443}[url.scheme]
        host = (url.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        return host if url.port in {None, own} else f"{host}:{url.port}"

    @property
    def link_base(self) -> str:
        """How hosts reach the link, without its path."""
        return self.link_url.rstrip("/") or f"ws://{self.link_listen}"

    @property
    def relay_name(self) -> str:
        """The name or address by which tenants reach the relay's ports."""
        return self.relay_host or (urlsplit(self.public_url).hostname or "")

    @property
    def listen_address(self) -> tuple[str, int]:
        return address_of(self.listen)

    @property
    def listen_host_is_wildcard(self) -> bool:
        return self.listen.rpartition(":")[0].strip("[]") in {"0.0.0.0", "::", "*"}  # noqa: S104 - compared, not bound

    @property
    def deposit_default_usdc(self) -> Usdc:
        return max(parse_usdc(self.deposit_default), self.deposit_minimum_usdc)

    @property
    def deposit_minimum_usdc(self) -> Usdc:
        """A deposit is a payment, and no payment is smaller than the minimum charge."""
        return max(parse_usdc(self.deposit_minimum), self.minimum_charge_usdc)

    @property
    def deposit_daily_cap_usdc(self) -> Usdc:
        return parse_usdc(self.deposit_daily_cap)

    @property
    def relayer_keys(self) -> tuple[str, ...]:
        return listed(self.relayer_key)

    @property
    def facilitator_urls(self) -> tuple[str, ...]:
        """The facilitators in order of preference, without trailing slashes."""
        return tuple(url.rstrip("/") for url in listed(self.x402_facilitator_url))

    @property
    def relay_alone_from_usdc(self) -> Usdc:
        return parse_usdc(self.relay_alone_from)

    @property
    def relay_fee_cap_wei(self) -> int:
        return round(self.relay_fee_cap_gwei * 10**9)

    @property
    def eth_price_usdc(self) -> Usdc:
        return parse_usdc(self.eth_price)

    @property
    def eur_price_usdc(self) -> Usdc:
        return parse_usdc(self.eur_price)

    @property
    def gas_price_wei(self) -> int:
        return round(self.gas_price_gwei * 10**9)

    @property
    def minimum_charge_usdc(self) -> Usdc:
        return parse_usdc(self.minimum_charge)

    @property
    def warning_policy(self) -> Policy:
        """When owners are warned, and how long a server outlives its money. Raises ValueError."""
        return Policy(
            thresholds_s=tuple(parse_duration(text) for text in listed(self.warnings)), grace_s=self.grace_s
        )

    @property
    def trusted_networks(self) -> tuple[Network, ...]:
        """`trusted_proxies`, parsed. Raises ValueError."""
        return networks(self.trusted_proxies)

    @property
    def outbound_rules(self) -> Rules:
        """Where customers may have us connect to. Raises ValueError."""
        return Rules(
            networks=networks(self.webhook_networks),
            own_host=(urlsplit(self.public_url).hostname or "").lower(),
            own_port=self.listen_address[1],
        )
