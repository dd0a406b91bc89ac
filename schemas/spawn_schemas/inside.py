"""Logs of a server on a lent machine, and commands run inside it: what callers send and what they get back.

Invariant: as of `spawn_schemas.api`; what was written inside is text that nobody vouches for, 64 Ki characters at most.
"""

from typing import Annotated, Literal

import msgspec

from spawn_schemas.api import ActionError

TEXT_MAX = 64 * 1024
"""The longest text of each kind that is told, in characters."""
LINES_MAX = 1000
TIMEOUT_MAX_S = 300

Argument = Annotated[
    str,
    msgspec.Meta(
        # Nothing that is run can be told a NUL.
        pattern=r"^[^\u0000]*$(?!\n)",
        max_length=4096,
        description="One argument, as it is: no shell looks at it.",
        examples=["uname"],
    ),
]


class RunCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    argv: Annotated[
        tuple[Argument, ...],
        msgspec.Meta(
            min_length=1,
            max_length=64,
            description="Program and arguments. For a shell's line: `sh`, `-c`, and the line.",
        ),
    ]
    timeout_s: Annotated[
        int,
        msgspec.Meta(ge=1, le=TIMEOUT_MAX_S, description="Seconds after which it is ended."),
    ] = 30


class LogsView(msgspec.Struct, frozen=True, kw_only=True):
    """`error` says why there is no text: its host's word, or `in_progress` where it has not answered yet."""

    server_id: str
    text: str
    error: ActionError | None


class LogsShown(msgspec.Struct, frozen=True, kw_only=True):
    logs: LogsView


class RanView(msgspec.Struct, frozen=True, kw_only=True):
    """`running` until its host has said what came of it: `GET /v1/commands/{id}` tells, for an hour.

    `error` says why it did not run, or not to its end: its host's word. `exit_code` is null then.
    """

    id: str
    server_id: str
    status: Literal["running", "ended"]
    exit_code: int | None
    stdout: str
    stderr: str
    error: ActionError | None


class CommandRan(msgspec.Struct, frozen=True, kw_only=True):
    ran: RanView
