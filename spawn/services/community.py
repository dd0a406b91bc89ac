"""What the settings say of lent machines, as the goods that are sold of them."""

from urllib.parse import urlsplit

from spawn_schemas.money import parse_usdc

from spawn.domain.community import Relay, parse_images, parse_ports, parse_range, parse_size
from spawn.services.rentals import Goods
from spawn.settings import Settings


def goods_of(settings: Settings) -> Goods:
    """The settings were found to be in order before."""
    url = urlsplit(settings.relay_http_url)
    return Goods(
        host=settings.community_host,
        images=parse_images(settings.community_images),
        size=parse_size(settings.community_size),
        ports=parse_ports(settings.community_ports),
        relay=Relay(
            host=settings.relay_name,
            ports=parse_range(settings.relay_ports),
            http_host=url.hostname or "",
            http_port=url.port or (443 if url.scheme == "https" else 80),
        ),
        daily_usdc=parse_usdc(settings.community_daily_usdc) if settings.community_daily_usdc else None,
        share_percent=settings.host_share_percent,
    )
