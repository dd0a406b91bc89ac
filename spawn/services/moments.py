"""Moments as the wire shows them."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=4096)
def moment(at: int) -> str:
    """Unix seconds as ISO 8601 UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
