"""The one table of all attacks that the suite makes."""

from typing import Final

from tests.attacks import (
    barred,
    bodies,
    boots,
    browsers,
    chain,
    headers,
    hosts,
    keys,
    limits,
    money,
    ownership,
    paths,
    payments,
    races,
    replays,
    sessions,
    signatures,
    suspense,
    version1,
    webhooks,
    wires,
)
from tests.attacks.kit import Attack

ATTACKS: Final[tuple[Attack, ...]] = (
    *replays.replay.attacks,
    *keys.key.attacks,
    *ownership.theft.attacks,
    *payments.payment.attacks,
    *signatures.signature.attacks,
    *headers.header.attacks,
    *paths.path.attacks,
    *bodies.body.attacks,
    *money.money.attacks,
    *chain.chain.attacks,
    *suspense.suspense.attacks,
    *webhooks.webhook.attacks,
    *boots.boot.attacks,
    *hosts.host.attacks,
    *races.race.attacks,
    *browsers.browser.attacks,
    *version1.version1.attacks,
    *sessions.sign_in.attacks,
    *sessions.session.attacks,
    *limits.limit.attacks,
    *barred.bar.attacks,
    *wires.wire.attacks,
)
