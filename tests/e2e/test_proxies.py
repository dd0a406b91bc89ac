"""Over a real socket, too, only the proxies that SPAWN_TRUSTED_PROXIES names are believed: by default none."""

from pathlib import Path

import httpx

from spawn.settings import Settings
from tests.interop.service import spawn_dev


def test_a_caller_on_loopback_cannot_pretend_to_be_many(tmp_path: Path) -> None:
    """HTTP servers like to believe whatever comes from their own machine."""
    allowed = Settings().rate_address_per_minute
    with spawn_dev(tmp_path) as service, httpx.Client(base_url=service.url, trust_env=False) as http:
        asked = 0
        answer = http.get("/v1/servers")
        while answer.status_code == 402 and asked < 2 * allowed:
            asked += 1
            somebody = f"203.0.{asked >> 8}.{asked & 255}"
            answer = http.get("/v1/servers", headers={"X-Forwarded-For": somebody})
    assert answer.status_code == 429
    assert asked >= allowed
    assert answer.headers["Retry-After"] == "1"
