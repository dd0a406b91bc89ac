"""What a planted bug is, as data: the least change of one file that breaks a promise."""

import msgspec


class Bug(msgspec.Struct, frozen=True, kw_only=True):
    """`before` occurs once in its file, so that the table cannot rot; `after` is what somebody might have written.

    `promises` are those that it breaks: found by another one, it would have broken the service as such, or the oracle.
    """

    name: str
    file: str
    before: str
    after: str
    promises: tuple[str, ...]
