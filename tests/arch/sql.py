"""Finds every query in our source and says where it leaves the dialect that both engines share.

Invariant: a query is a string in a module's own constants, whole and known without running the program; so
whoever checks the constants has checked all SQL that can reach a database.
"""

import ast
import re
from collections.abc import Iterator
from typing import Final

import msgspec
import sqlglot
from sqlglot.errors import SqlglotError

from tests.arch.tree import Module

ELSEWHERE: Final = (
    "spawn/payments/devnet",
    "spawn/store/moving",
    "spawn/store/sqlite_place",
    "spawn/store/postgres",
)
"""Modules whose SQL is for one engine only, by design: for a file outside the service's database, or for a place."""

QUERY: Final = re.compile(
    r"\s*(SELECT|INSERT\s+(INTO|OR)|REPLACE\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|WITH\s+\w+.*\bAS)\b",
    re.DOTALL,
)
RUNNERS: Final = frozenset({"execute", "executemany", "one", "all", "read"})
PLACEHOLDER: Final = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
TEXT_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")

BANS: Final[dict[str, str]] = {
    r"\bINSERT\s+OR\b|\bREPLACE\s+INTO\b": "SQLite's own upsert; write ON CONFLICT",
    r"\?": "positional placeholder; write :name",
    r"%s|%\(": "format placeholder; write :name",
    r"\$\d": "PostgreSQL's placeholder; write :name",
    r"::": "PostgreSQL's cast; write CAST",
    r"\browid\b|\bctid\b": "an engine's own row id",
    r"\bAUTOINCREMENT\b": "SQLite only",
    r"\b(datetime|date|time|julianday|strftime|unixepoch|now)\s*\(": "the database's clock; pass :now",
    r"\bCURRENT_(TIMESTAMP|DATE|TIME)\b": "the database's clock; pass :now",
    r"\b(random|randomblob|gen_random_uuid)\s*\(": "the database's randomness; pass it in",
    r"\bifnull\s*\(|\bnvl\s*\(": "write COALESCE",
    r"\bjson_|\bjsonb_|->": "the engines' JSON differs; decode in Python",
    r"\bGLOB\b|\bREGEXP\b|\bILIKE\b": "one engine only",
    r"\bLIMIT\s+-": "no limit; bound it",
    r"\bFOR\s+(UPDATE|SHARE)\b|\bSKIP\s+LOCKED\b": "PostgreSQL's locks; claim by compare-and-set",
    r'"': "double quotes are an identifier here and a string there",
    r"`|\[": "quoting of another engine",
}


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """One query; `name` says where it is."""

    name: str
    sql: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The placeholders, in order of first use."""
        return tuple(dict.fromkeys(PLACEHOLDER.findall(TEXT_LITERAL.sub("''", self.sql))))


def _text(node: ast.expr | None, known: dict[str, str]) -> str | None:
    """What a constant expression of strings comes to, or None when it is not one."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Name(id=name):
            return known.get(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = [_text(left, known), _text(right, known)]
        case ast.JoinedStr(values=values):
            parts = [
                _text(value.value if isinstance(value, ast.FormattedValue) else value, known)
                for value in values
            ]
        case _:
            return None
    return "".join(part for part in parts if part is not None) if None not in parts else None


def _string_expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The outermost expressions below `node` that are made of strings."""
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp | ast.Name):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from _string_expressions(child)


def _constants(module: Module) -> Iterator[tuple[str, ast.expr, str]]:
    """Every string in the module's own assignments: the name assigned to, the expression, its text."""
    known: dict[str, str] = {}
    for node in module.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        for expression in _string_expressions(value):
            text = _text(expression, known)
            if text is None:
                continue
            if expression is value:
                known[name] = text
            yield name, expression, text


def _is_elsewhere(module: Module) -> bool:
    return module.name.startswith(ELSEWHERE)


def queries(module: Module) -> Iterator[Query]:
    """Every query among the module's constants."""
    if not _is_elsewhere(module):
        for name, expression, text in _constants(module):
            if QUERY.match(text):
                yield Query(name=f"{module.name}:{expression.lineno} {name}", sql=text.strip())


def loose_sql(module: Module) -> Iterator[str]:
    """Where the module holds SQL that is no whole constant, or puts some together as it runs."""
    if _is_elsewhere(module):
        return
    named = {id(part) for _, expression, _ in _constants(module) for part in ast.walk(expression)}
    for node in ast.walk(module.tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in named and QUERY.match(text):
                yield f"{module.name}:{node.lineno}"
            case ast.Call(func=ast.Attribute(attr=runner), args=[first, *_]) if runner in RUNNERS:
                if isinstance(first, ast.BinOp) and any(
                    isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(first)
                ):
                    yield f"{module.name}:{node.lineno}"
            case _:
                continue


def dialect_faults(query: Query) -> Iterator[str]:
    """Why a query is not in the dialect that SQLite 3.40 and PostgreSQL 15 share, one sentence each."""
    bare = TEXT_LITERAL.sub("''", query.sql)
    for pattern, reason in BANS.items():
        if found := re.search(pattern, bare, re.IGNORECASE):
            yield f"{query.name}: {found.group()!r}: {reason}"
    for dialect in ("sqlite", "postgres"):
        try:
            statements = sqlglot.parse(query.sql, read=dialect)
        except SqlglotError as error:
            yield f"{query.name}: {dialect}: {error}"
        else:
            if len(statements) != 1:
                yield f"{query.name}: {len(statements)} statements in one query"


def for_postgres(query: Query) -> str:
    """The query with PostgreSQL's own placeholders, `$1` for the first of `parameters`."""
    positions = {name: f"${index}" for index, name in enumerate(query.parameters, start=1)}
    pieces = re.split(f"({TEXT_LITERAL.pattern})", query.sql)
    return "".join(
        piece if piece.startswith("'") else PLACEHOLDER.sub(lambda match: positions[match.group(1)], piece)
        for piece in pieces
    )
