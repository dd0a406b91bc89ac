"""What `spawn admin` shows, as tables that fit into 100 columns.

Invariant: an address, an id and an amount are whole, so that they can be copied into the next command; what gives way
is words.
"""

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from spawn.services.admin_looks import (
    NoteLine,
    PriceLine,
    ServerLine,
    ServerPage,
    StatementPage,
    Status,
    Waiting,
    WalletPage,
    WalletShown,
)

WIDTH: Final = 100


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]], *, right: frozenset[str]) -> str:
    """`right` names the columns of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    out = io.StringIO()
    Console(file=out, width=WIDTH, highlight=False, markup=False, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _more(option: str, cursor: object | None) -> list[str]:
    return [] if cursor is None else [f"more: the same command with {option} {cursor}"]


def wallets(page: WalletPage) -> str:
    if not page.wallets:
        return "no wallets"
    lines = [
        (line.wallet, line.available, line.reserved, str(line.servers), line.barred or "")
        for line in page.wallets
    ]
    columns = ("wallet", "available", "reserved", "servers", "barred")
    shown = _table(columns, lines, right=frozenset({"available", "reserved", "servers"}))
    return "\n".join([shown, *_more("--after", page.next)])


def wallet(shown: WalletShown) -> str:
    line = shown.wallet
    parts = [
        f"wallet     {line.wallet}{f'   {line.barred.value.upper()}' if line.barred else ''}",
        f"available  {line.available} USDC",
        f"reserved   {line.reserved} USDC",
        "",
        _servers(shown.servers, with_wallet=False),
    ]
    if shown.notes:
        parts += ["", notes(shown.notes)]
    return "\n".join(parts)


def notes(lines: Sequence[NoteLine]) -> str:
    if not lines:
        return "no notes"
    return _table(("at", "done", "why"), [(n.at, n.kind, n.reason) for n in lines], right=frozenset())


def servers(page: ServerPage) -> str:
    return "\n".join([_servers(page.servers, with_wallet=True), *_more("--after", page.next)])


def _servers(lines: Sequence[ServerLine], *, with_wallet: bool) -> str:
    """Two lines a server with its wallet: id and address alone fill most of one."""
    if not lines:
        return "no servers"
    return _table(
        ("server", "type", "where", "status", "daily", "revenue", "cost", "margin"),
        [
            (
                f"{line.id}\n  {line.wallet}" if with_wallet else line.id,
                line.type,
                line.location,
                line.status,
                line.daily,
                line.revenue,
                "unknown" if line.cost is None else line.cost,
                "" if line.margin is None else line.margin,
            )
            for line in lines
        ],
        right=frozenset({"daily", "revenue", "cost", "margin"}),
    )


def statement(page: StatementPage) -> str:
    if not page.movements:
        return "nothing has moved"
    table = _table(
        ("at", "what", "amount", "", "for"),
        [
            (line.at, line.code, line.amount, "moved" if line.kind == "internal" else "", line.reference)
            for line in page.movements
        ],
        right=frozenset({"amount"}),
    )
    return "\n".join([table, *_more("--before", page.next)])


def price_changes(lines: Sequence[PriceLine]) -> str:
    if not lines:
        return "no price was ever changed"
    return _table(
        ("change", "type", "where", "daily", "announced", "from", "state"),
        [
            (
                line.id,
                line.type,
                line.location,
                line.daily,
                line.announced_at,
                line.effective_at,
                line.state.value if line.told else f"{line.state.value}, being told",
            )
            for line in lines
        ],
        right=frozenset({"daily"}),
    )


def status(shown: Status) -> str:
    states = ", ".join(f"{count} {state}" for state, count in shown.servers.items()) or "none"
    lines = [
        f"at          {shown.at}",
        f"wallets     {shown.wallets}, of which {shown.suspended} suspended and {shown.blocked} blocked",
        f"servers     {states}",
        f"due         {_waiting(shown.due)}",
        f"operations  {_waiting(shown.operations)}",
        f"deliveries  {_waiting(shown.deliveries)}",
        f"suspense    {shown.suspense} USDC",
        f"prices      {shown.price_changes} announced and not in force, or being told",
    ]
    lines.append(f"destroys    {shown.failing_destroys or 'none'} failing")
    for incident in shown.incidents:
        lines += textwrap.wrap(incident, WIDTH, initial_indent="! ", subsequent_indent="  ")
    return "\n".join(lines)


def _waiting(waiting: Waiting) -> str:
    return f"{waiting.count}, the oldest for {waiting.oldest_s} s" if waiting.count else "none"
