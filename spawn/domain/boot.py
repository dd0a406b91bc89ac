"""What a machine is told at its first start, beside what its buyer tells it: its SSH host key, and whom to report to.

Invariant: pure; the same buyer's data and the same `Boot` give the same text, and its size is known before there is a
key or a URL. `user_data.check` comes first.
"""

from typing import Final

import msgspec
from spawn_providers import cloud_init

from spawn.domain import reporter
from spawn.domain.host_keys import SEED_BYTES, HostKey, host_key

_ANY_KEY: Final = host_key(bytes(SEED_BYTES))
"""All keys are of one length."""


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """`callback_url` is where the machine posts {"ssh": true}, and {"cloud_init": "done" or "failed", "log": "…"}."""

    host_key: HostKey | None = None
    callback_url: str | None = None

    def __repr__(self) -> str:
        return "Boot(…)"


def merged(user_data: str | None, boot: Boot) -> str | None:
    """The text for the provider. None where neither has anything to say."""
    parts = []
    if boot.callback_url is not None:
        report = reporter.program(boot.callback_url)
        parts.append(cloud_init.Part(type="text/cloud-boothook", text=report))
    if boot.host_key is not None:
        keys = {"ed25519_private": boot.host_key.private, "ed25519_public": boot.host_key.public}
        parts.append(cloud_init.config({"ssh_keys": keys}))
    return cloud_init.joined(user_data, *parts)


def size(user_data: str | None, *, host_key: bool, callback_url: str | None) -> int:
    """The bytes of `merged`; any URL of the same length does."""
    boot = Boot(host_key=_ANY_KEY if host_key else None, callback_url=callback_url)
    return len((merged(user_data, boot) or "").encode())
