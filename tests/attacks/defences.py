"""The one table of all defences that the suite proves to be needed."""

from typing import Final

from tests.attacks.book_defences import OF_BOOKS
from tests.attacks.boot_defences import OF_BOOTS
from tests.attacks.defence import Defence
from tests.attacks.host_defences import OF_HOSTS
from tests.attacks.payment_defences import OF_PAYMENTS
from tests.attacks.proof_defences import OF_PROOFS
from tests.attacks.request_defences import OF_REQUESTS
from tests.attacks.webhook_defences import OF_WEBHOOKS

DEFENCES: Final[tuple[Defence, ...]] = (
    *OF_PAYMENTS,
    *OF_PROOFS,
    *OF_REQUESTS,
    *OF_BOOKS,
    *OF_BOOTS,
    *OF_HOSTS,
    *OF_WEBHOOKS,
)
