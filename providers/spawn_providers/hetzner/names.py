"""What our sizes, machines and keys are called at Hetzner, and what a machine's labels say.

Invariant: pure, and a machine's name is a function of our id alone, so that whoever lost an answer knows which name to
look for; what a label cannot hold is refused before anything is asked for.
"""

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping
from hashlib import md5
from typing import Final

from spawn_schemas.ids import Address, ServerId, parse_address

from spawn_providers.base import Refused, RefusedCode, Spec

SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "small": ("cx23", "cpx21", "cpx22"),
    "medium": ("cx33", "cpx31", "cpx32"),
    "large": ("cx43", "cpx41", "cpx42"),
    "arm-small": ("cax11",),
}
"""The types that a size may be, the one we would rather sell first: which of them there is, the location decides."""
ID_LABEL: Final = "spawn-id"
WALLET_LABEL: Final = "spawn-wallet"
HOSTNAME_LABEL: Final = "spawn-hostname"
TYPE_LABEL: Final = "spawn-type"
"""The type as ordered. What a machine has become by resizing, it says itself."""
KEY_LABEL: Final = "spawn-key"
"""On an SSH key: it is ours to delete. It names no wallet, because several may have brought the same key."""
_USES_LABEL: Final = "spawn-key-"
"""On a server, with a key's fingerprint behind it: the references to that key, counted where they cannot be lost."""

_ID_PREFIX: Final = "srv_"
_NAME_PREFIX: Final = "sp-"
# What is left of RFC 1123's 63 characters behind our prefix; lower case, because host names know no other.
_KEY: Final = re.compile(r"srv_([a-z0-9]{1,60})")
_LABEL_VALUE: Final = re.compile(r"|[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def size_of(provider_type: str) -> str | None:
    """What a machine is sold as, or was; None for a type that no size of ours may be."""
    return next((size for size, names in SIZES.items() if provider_type in names), None)


def server_name(key: ServerId) -> str:
    """The name of the one machine made for `key`. Raises `Refused(invalid)` for what is no id of ours."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise Refused(RefusedCode.INVALID, "a server's id must be srv_ and 1 to 60 small letters and digits")
    return _NAME_PREFIX + match[1]


def server_labels(key: ServerId, spec: Spec) -> dict[str, str]:
    """Whose a machine is and what was ordered, with a reference to each of its keys. Raises `Refused(invalid)`."""
    labels = {
        ID_LABEL: key,
        WALLET_LABEL: spec.owner.lower(),
        HOSTNAME_LABEL: spec.hostname,
        TYPE_LABEL: spec.provider_type,
    }
    for name, value in labels.items():
        if _LABEL_VALUE.fullmatch(value) is None:
            raise Refused(
                RefusedCode.INVALID,
                f"{name.removeprefix('spawn-')} cannot be kept with the machine: use at most 63 letters, digits, "
                "dots, dashes and underscores, with a letter or digit at both ends",
            )
    return labels | {uses_label(fingerprint_of(key)): "" for key in spec.public_keys}


def owner_of(labels: Mapping[str, str]) -> tuple[ServerId | None, Address | None, str | None]:
    """Our id, the wallet and the hostname that labels tell of, None for what they do not say or nobody can mean."""
    key: str | None = labels.get(ID_LABEL)
    if key is None or _KEY.fullmatch(key) is None:
        key = None
    try:
        owner = parse_address(labels.get(WALLET_LABEL, ""))
    except ValueError:
        owner = None
    return None if key is None else ServerId(key), owner, labels.get(HOSTNAME_LABEL)


def fingerprint_of(public_key: str) -> str:
    """The MD5 fingerprint by which Hetzner knows a key: pairs of hex digits, with colons between.

    Raises `Refused(invalid)` for a text that is no public key.
    """
    try:
        blob = b64decode(public_key.split()[1], validate=True)
    except (IndexError, NotBase64, ValueError):
        raise Refused(RefusedCode.INVALID, "a public key must be its type and its base64 form") from None
    # The provider's name for a key, and no proof of anything.
    digits = md5(blob, usedforsecurity=False).hexdigest()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def key_name(fingerprint: str) -> str:
    return _NAME_PREFIX + fingerprint.replace(":", "")


def uses_label(fingerprint: str) -> str:
    return _USES_LABEL + fingerprint.replace(":", "")


def key_names(public_keys: Iterable[str]) -> set[str]:
    return {key_name(fingerprint_of(key)) for key in public_keys}


def used_keys(labels: Iterable[str]) -> set[str]:
    """The names of the keys that a server's labels refer to."""
    return {_NAME_PREFIX + name.removeprefix(_USES_LABEL) for name in labels if name.startswith(_USES_LABEL)}
