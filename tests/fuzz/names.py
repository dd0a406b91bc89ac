"""Every fuzz target by its name, as module and attribute: a worker imports only its own, instrumented."""

from typing import Final

ACCEPTED: Final = "accepted"
"""The file in which a worker counts what its target accepted."""

TARGETS: Final[dict[str, tuple[str, str]]] = {
    "payment": ("tests.fuzz.payments", "VERSION_2"),
    "payment-v1": ("tests.fuzz.payments", "VERSION_1"),
    "signature": ("tests.fuzz.signatures", "TARGET"),
    "sign-in": ("tests.fuzz.sign_ins", "SIGN_IN"),
    "session": ("tests.fuzz.sign_ins", "SESSION"),
    "ssh-key": ("tests.fuzz.keys", "TARGET"),
    "address": ("tests.fuzz.addresses", "TARGET"),
    "request": ("tests.fuzz.requests", "TARGET"),
}
PLANTED: Final[dict[str, tuple[str, str]]] = {
    "planted": ("tests.fuzz.planted", "DEFECT"),
    "planted-slow": ("tests.fuzz.planted", "SLOW"),
}
"""Targets of the tests of all this."""
