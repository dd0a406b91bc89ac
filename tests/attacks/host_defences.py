"""What keeps everybody but a lent machine from speaking for it, and that machine from speaking for others."""

from typing import Final

from tests.attacks.defence import Defence

HOSTS: Final = "spawn/services/hosts.py"

OF_HOSTS: Final = (
    Defence(
        name="a token is used once",
        file=HOSTS,
        before='    if token["used_at"] is not None:',
        after="    if False:",
        attacks=("host: a token that was used",),
    ),
    Defence(
        name="a token is good for a day",
        file=HOSTS,
        before=' or token["expires_at"] <= now:',
        after=":",
        attacks=("host: a token that has expired",),
    ),
    Defence(
        name="a registration is proven by its key",
        file=HOSTS,
        before="        if not verifies(\n            wanted.public_key, wanted.proof, wire",
        after="        if False and not verifies(\n            wanted.public_key, wanted.proof, wire",
        attacks=("host: another machine's registration under one's own key",),
    ),
    Defence(
        name="a call is signed by its host",
        file=HOSTS,
        before=" or not verifies(host.public_key, call.signature, _text(call))",
        after="",
        attacks=(
            "host: a heartbeat of another machine",
            "host: a key for another machine",
            "host: another body, path or time under a signature",
        ),
    ),
    Defence(
        name="a call's nonce is used once",
        file=HOSTS,
        before="        if not fresh:",
        after="        if False:",
        attacks=("host: a signed call again",),
    ),
    Defence(
        name="a call is of this minute",
        file=HOSTS,
        before=" and abs(self._clock.now_s() - timestamp) <= wire.CLOCK_SKEW_S",
        after="",
        attacks=("host: a signed call that was kept back",),
    ),
    Defence(
        name="a host answers its own orders",
        file="spawn/services/host_reports.py",
        before="    if issued is None or issued.host_id != host_id:",
        after="    if issued is None:",
        attacks=("host: an answer to another machine's order",),
    ),
)
