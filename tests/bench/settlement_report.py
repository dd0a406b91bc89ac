"""What the benchmark of settling says: medians of rounds, ratios, tables for people.

Pure. The chain's own work is in the rate and not in the CPU time, which is our process alone.
"""

from collections.abc import Sequence
from statistics import median

import msgspec

from tests.bench.report import percentile, table


class Gas(msgspec.Struct, frozen=True, kw_only=True):
    """Of one transaction with `payments` payments, each by another wallet, to a payee that has money."""

    payments: int
    gas: int
    calldata_bytes: int

    @property
    def per_payment(self) -> float:
        return self.gas / self.payments


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one way. `cpu_us` is our process's time per payment, `busy` its share of the round.

    `lag_…_ms`: how much later than it asked for a coroutine woke that sleeps for five milliseconds at a time.
    """

    payments: int
    transactions: int
    per_s: float
    cpu_us: float
    busy: float
    lag_p99_ms: float
    lag_max_ms: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    way: str
    what: str
    rounds: tuple[Sample, ...]


def sample(
    *, payments: int, transactions: int, wall_s: float, cpu_s: float, lags_s: Sequence[float]
) -> Sample:
    """The figures of a round."""
    return Sample(
        payments=payments,
        transactions=transactions,
        per_s=payments / wall_s,
        cpu_us=cpu_s / payments * 1e6,
        busy=cpu_s / wall_s,
        lag_p99_ms=percentile(lags_s, 0.99) * 1e3,
        lag_max_ms=max(lags_s) * 1e3,
    )


def medians(line: Line) -> Sample:
    """The median of each figure by itself."""
    found = {name: median(getattr(one, name) for one in line.rounds) for name in Sample.__struct_fields__}
    return msgspec.convert(found, Sample, strict=False)


def ratios(lines: Sequence[Line]) -> dict[str, float]:
    """How many times the rate of each way the first one has."""
    first, *others = lines
    return {line.way: medians(first).per_s / medians(line).per_s for line in others}


def lines_table(lines: Sequence[Line]) -> str:
    times = ratios(lines)
    rows = []
    for line in lines:
        m = medians(line)
        rows.append(
            (
                line.way,
                f"{m.per_s:,.0f}",
                f"{times[line.way]:.0f}x" if line.way in times else "",
                f"{m.cpu_us:,.0f}",
                f"{m.busy:.0%}",
                f"{m.lag_p99_ms:.1f}",
                f"{m.lag_max_ms:.1f}",
                f"{m.payments:,}",
                f"{m.transactions:,}",
            )
        )
    head = ("way", "payments/s", "ours / its", "CPU us", "busy", "lag p99 ms", "max ms", "payments", "in tx")
    width = max(len(line.way) for line in lines)
    words = "\n".join(f"  {line.way.ljust(width)}  {line.what}" for line in lines)
    return f"{table(head, rows)}\n\n{words}"


def gas_table(seen: Sequence[Gas]) -> str:
    """Gas by company; the first is what the others are compared with."""
    rows = [
        (
            str(gas.payments),
            f"{gas.gas:,}",
            f"{gas.per_payment:,.0f}",
            f"{gas.per_payment / seen[0].per_payment:.3f}",
            f"{gas.calldata_bytes / gas.payments:,.0f}",
        )
        for gas in seen
    ]
    return table(("payments in a transaction", "gas", "each", "of one alone", "call data B each"), rows)
