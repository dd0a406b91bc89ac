"""Names, labels and the selectors that find them.

Invariant: pure. A selector is a list of conditions, and all of them must hold.
"""

import re
from collections.abc import Callable
from typing import Final

from tests.emulators.hetzner.errors import invalid

_NAME: Final = r"[a-z0-9A-Z](?:[a-z0-9A-Z._-]{0,61}[a-z0-9A-Z])?"
_DNS_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_KEY: Final = re.compile(rf"(?:(?P<prefix>{_DNS_LABEL}(?:\.{_DNS_LABEL})*)/)?{_NAME}")
_VALUE: Final = re.compile(rf"(?:{_NAME})?")
_HOSTNAME: Final = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_RESERVED: Final = "hetzner.cloud"

Labels = dict[str, str]
Condition = Callable[[Labels], bool]


def check_labels(labels: Labels) -> None:
    """Raise `invalid_input` unless each key and value may be one."""
    for key, value in labels.items():
        found = _KEY.fullmatch(key)
        if found is None or len(found["prefix"] or "") > 253:
            raise invalid("labels", f"label key '{key}' is not valid")
        if (found["prefix"] or "").endswith(_RESERVED):
            raise invalid("labels", f"label key '{key}' is reserved")
        if not _VALUE.fullmatch(value):
            raise invalid("labels", f"label value '{value}' is not valid")


def check_hostname(name: str) -> None:
    """Raise `invalid_input` unless the name is a host's (RFC 1123)."""
    if len(name) > 253 or not _HOSTNAME.fullmatch(name):
        raise invalid("name", f"'{name}' is not a valid hostname")


_SET: Final = re.compile(r"(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)")
_EQUAL: Final = re.compile(r"(?P<key>[^=!\s]+)\s*(?P<word>==|=|!=)\s*(?P<value>\S*)")
_COMMA: Final = re.compile(r",(?![^(]*\))")


def _condition(text: str) -> Condition:
    if found := _SET.fullmatch(text):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        _check_key(key)
        if found["word"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.fullmatch(text):
        key, value = found["key"], found["value"]
        _check_key(key)
        if not _VALUE.fullmatch(value):
            raise invalid("label_selector", f"'{value}' cannot be the value of a label")
        if found["word"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    absent, key = text.startswith("!"), text.removeprefix("!").strip()
    _check_key(key)
    return lambda labels: (key in labels) is not absent


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise invalid("label_selector", f"'{key}' cannot be the key of a label")


def selector(text: str) -> Condition:
    """The test that a selector puts labels to; raises `invalid_input` where it cannot be read."""
    conditions = [_condition(part.strip()) for part in _COMMA.split(text)] if text.strip() else []
    return lambda labels: all(condition(labels) for condition in conditions)
