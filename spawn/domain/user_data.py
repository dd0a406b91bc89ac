"""What a buyer tells cloud-init, read before it is paid for: a machine ignores in silence what it cannot read.

Invariant: whatever the text, reading it takes time in proportion to its length. No refusal repeats more of it than a
name.
"""

from email.message import Message
from typing import Any, Final, NoReturn

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from spawn_providers import cloud_init
from spawn_schemas.errors import Code, SpawnError

_DEPTH_MAX: Final = 64
_BOUNDARIES_MAX: Final = 32
"""How often a message may say `boundary`: Python's parser calls itself, and compares each line, for each one open."""
_PROBLEM_MAX: Final = 120
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONFIG: Final = "text/cloud-config"
_ARCHIVE: Final = "text/cloud-config-archive"
_BY_BEGINNING: Final = frozenset({cloud_init.BY_BEGINNING, "text/x-not-multipart", "text/x-shellscript"})
_NEXT: Final = "Correct user_data, or leave it out. Nothing was ordered or paid."


def check(user_data: str | None, *, host_key: bool) -> None:
    """Raise `invalid_request` for data that the machine would ignore, or that has SSH host keys beside ours."""
    if user_data is None or not user_data or user_data.isspace():
        return
    type_ = cloud_init.form_of(user_data)
    if type_ is not None:
        _check(type_, user_data, host_key=host_key)
    elif not user_data.isascii() and "mime-version:" in user_data.lower():
        _refuse("user_data is a MIME message that is not all ASCII: encode such parts by base64")
    elif user_data.lower().count("boundary") > _BOUNDARIES_MAX:
        _refuse(f"user_data is a message with more than {_BOUNDARIES_MAX} boundaries")
    else:
        _check_message(cloud_init.message_of(user_data), host_key=host_key)


def _check_message(message: Message | None, *, host_key: bool) -> None:
    if message is None:
        forms = ", ".join(cloud_init.FORMS)
        _refuse(f"cloud-init would ignore user_data: it begins with none of {forms}, and is no MIME message")
    parts = [part for part in message.walk() if part.get_content_maintype() != "multipart"]
    if not parts:
        _refuse("user_data is a MIME message without parts: look at its boundary")
    for part in parts:
        content = part.get_payload(decode=True)
        text = content.decode(errors="replace") if isinstance(content, bytes) else ""
        type_ = part.get_content_type()
        if type_ in _BY_BEGINNING:
            type_ = cloud_init.form_of(text) or type_
        _check(type_, text, host_key=host_key)


def _check(type_: str, text: str, *, host_key: bool) -> None:
    if type_ == _ARCHIVE:
        _check_archive(text, host_key=host_key)
    elif type_ == _CONFIG:
        _check_config(text, host_key=host_key)


def _check_archive(text: str, *, host_key: bool) -> None:
    """A list of parts, each a text or a mapping with its `content` and perhaps its `type`."""
    entries, _ = _load(text)
    if entries is None:
        return
    if not isinstance(entries, list):
        _refuse("a #cloud-config-archive is a YAML list")
    for entry in entries:
        content = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(content, str):
            continue
        type_ = entry.get("type") if isinstance(entry, dict) else None
        # An archive in an archive is not opened, so no text is read more than twice.
        if (type_ or cloud_init.form_of(content) or _CONFIG) == _CONFIG:
            _check_config(content, host_key=host_key)


def _check_config(text: str, *, host_key: bool) -> None:
    content, keys = _load(text)
    if not isinstance(content or {}, dict):
        _refuse("a #cloud-config is a YAML mapping")
    if host_key and "ssh_keys" in keys:
        raise SpawnError(
            Code.INVALID_REQUEST,
            "user_data sets ssh_keys, and we plant an SSH host key of our own, which the server then shows.",
            next='Leave ssh_keys out of user_data, or keep yours and order with "host_key": false.',
        )


def _load(text: str) -> tuple[object, set[str]]:
    """The content, and its keys: with a merge (`<<`) those of all mappings in it, since it may bring any of them."""
    try:
        names, merges = _survey(text)
        if merges:
            # Merges of merges grow without bound, so they are not carried out.
            return ({}, names)
        content = yaml.load(text, Loader=_LOADER)  # noqa: S506 - it is a SafeLoader, the one written in C
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0][:_PROBLEM_MAX]
        _refuse(f"user_data has YAML that cloud-init cannot read{line}: {problem}", error)
    return content, {str(key) for key in content} if isinstance(content, dict) else set()


def _survey(text: str) -> tuple[set[str], bool]:
    """The names in a YAML text, and whether one is that of a merge. Raises YAMLError for what is nested too deeply."""
    names: set[str] = set()
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) <= len("ssh_keys"):
                names.add(event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _DEPTH_MAX:
                raise yaml.MarkedYAMLError(problem="it is nested too deeply", problem_mark=event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return names, "<<" in names


def _refuse(reason: str, cause: Exception | None = None) -> NoReturn:
    raise SpawnError(Code.INVALID_REQUEST, f"{reason}.", next=_NEXT) from cause
