"""What a defence is, as data: where it stands, how it is taken out, and what gets in without it."""

import msgspec


class Defence(msgspec.Struct, frozen=True, kw_only=True):
    """`attacks` are names of the table, each of which must fail the suite when `before` is replaced by `after`.

    `before` occurs once in its file, so that the table cannot rot; `after` is the least change that removes the
    defence and leaves every honest call as it was.
    """

    name: str
    file: str
    before: str
    after: str
    attacks: tuple[str, ...]
