"""Data for cloud-init: what a buyer sent and what we add, in one MIME message that every version reads alike.

Invariant: pure, and the same parts give the same text. What the buyer sent is in it byte for byte, as the first part; a
part of ours that is a cloud-config adds to it and replaces nothing.
"""

import json
from base64 import encodebytes
from collections.abc import Mapping
from email import message_from_string
from email.message import Message
from typing import Final

import msgspec

FORMS: Final[Mapping[str, str]] = {
    "#cloud-config-archive": "text/cloud-config-archive",
    "#cloud-config-jsonp": "text/cloud-config-jsonp",
    "#cloud-config": "text/cloud-config",
    "#cloud-boothook": "text/cloud-boothook",
    "#include-once": "text/x-include-once-url",
    "#include": "text/x-include-url",
    "#part-handler": "text/part-handler",
    "## template: jinja": "text/jinja2",
    "#!": "text/x-shellscript",
}
"""How text begins that cloud-init knows, and which type it takes it for. The longer of two comes first."""

BY_BEGINNING: Final = "text/plain"
"""The type of a part whose beginning says what it is."""

_SEEN: Final = 4096
"""How far cloud-init looks for the header that makes a text a message."""
_ADD: Final = "dict(no_replace,recurse_list)+list(append)"
"""How a cloud-config is merged into those before it: lists are appended, and what is set stays."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message, and its MIME type."""

    type: str
    text: str


def config(content: Mapping[str, object]) -> Part:
    """A cloud-config of ours. JSON is YAML."""
    text = "#cloud-config\n" + json.dumps({**content, "merge_how": _ADD}) + "\n"
    return Part(type="text/cloud-config", text=text)


def form_of(text: str) -> str | None:
    """The type that cloud-init takes this text for, by how it begins; None where it would ignore it."""
    begins = text.lstrip().lower()
    return next((type_ for prefix, type_ in FORMS.items() if begins.startswith(prefix)), None)


def message_of(text: str) -> Message | None:
    """The MIME message that cloud-init takes this text for, if it does."""
    if form_of(text) is not None or "mime-version:" not in text[:_SEEN].lower():
        return None
    message = message_from_string(text)
    return None if message["MIME-Version"] is None else message


def joined(user_data: str | None, *parts: Part) -> str | None:
    """One text for cloud-init of `user_data`, if there is any, and these parts; None of nothing."""
    given = user_data if user_data and not user_data.isspace() else None
    if not parts:
        return given
    bodies = [_body(part) for part in parts]
    if given is not None:
        # A message says itself what it is, and becomes a part as it stands.
        whole = given if message_of(given) is not None else _body(Part(type=BY_BEGINNING, text=given))
        bodies.insert(0, whole)
    boundary = _boundary(bodies)
    head = f'Content-Type: multipart/mixed; boundary="{boundary}"\nMIME-Version: 1.0\n'
    return head + "".join(f"\n--{boundary}\n{body}" for body in bodies) + f"\n--{boundary}--\n"


def _body(part: Part) -> str:
    # Lines that end otherwise, and what is not ASCII, do not survive how cloud-init parses a message.
    if part.text.isascii() and "\r" not in part.text:
        return f"Content-Type: {part.type}\n\n{part.text}"
    encoded = encodebytes(part.text.encode()).decode()
    return f"Content-Type: {part.type}\nContent-Transfer-Encoding: base64\n\n{encoded}"


def _boundary(bodies: list[str]) -> str:
    """The first of a list of names that none of them has in it."""
    number = 0
    while any(f"spawn-{number}-" in body for body in bodies):
        number += 1
    return f"spawn-{number}-"
