"""What keeps webhooks their owners', and us out of where customers would send us."""

from typing import Final

from tests.attacks.defence import Defence

TARGETS: Final = "spawn/domain/targets.py"
OWNERSHIP: Final = "spawn/services/ownership.py"
WEBHOOKS: Final = "spawn/services/webhooks.py"

OF_WEBHOOKS: Final = (
    Defence(
        name="whose webhook it is",
        file=OWNERSHIP,
        before="if webhook.wallet != wallet:",
        after="if not wallet:",
        attacks=(
            "webhooks: GET /deliveries, of another's",
            "webhooks: PATCH webhook to url, of another's",
            "webhooks: POST /secret, of another's",
            "webhooks: DELETE webhook, of another's",
        ),
    ),
    Defence(
        name="only the public internet is dialled",
        file=TARGETS,
        before="if is_own or not is_global(address):",
        after="if False:",
        attacks=(
            "webhooks: cloud metadata, registered",
            "webhooks: cloud metadata, IPv6, by a change",
            "webhooks: a private network, registered",
            "webhooks: loopback, IPv4-mapped, registered",
        ),
    ),
    Defence(
        name="what this machine listens on is not dialled",
        file=TARGETS,
        before="if is_own and target.port == rules.own_port:",
        after="if False:",
        attacks=("webhooks: this very service, registered",),
    ),
    Defence(
        name="a secret is not in the stored answer",
        file=WEBHOOKS,
        before="stored=views.encode(wire.WebhookCreated(webhook=view, secret=None)),",
        after="",
        attacks=("webhooks: a copy of the call that made one",),
    ),
    Defence(
        name="ten webhooks a wallet",
        file=WEBHOOKS,
        before="if webhooks.count_webhooks(tx, wallet) >= WEBHOOKS_MAX:",
        after="if False:",
        attacks=("webhooks: an eleventh",),
    ),
)
