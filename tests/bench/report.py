"""What the benchmark says: medians of rounds, ratios to a peer, a table for people.

Pure. A ratio above 1 speaks for us. Wall figures of a shared machine move up to threefold between runs and CPU time
per request far less, so that ratios are of CPU time.
"""

from collections.abc import Sequence
from math import ceil
from statistics import median

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one subject: CPU time of its whole process per request, and what the client saw."""

    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One subject: its rounds, and the subject that it is measured against, if there is one."""

    subject: str
    rounds: tuple[Sample, ...]
    peer: str | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share (0 < share ≤ 1) of them does not exceed (nearest rank)."""
    return sorted(values)[ceil(share * len(values)) - 1]


def sample(*, cpu_s: float, wall_s: float, latencies_s: Sequence[float]) -> Sample:
    """The figures of a round that answered `latencies_s`, one latency a request."""
    count = len(latencies_s)
    return Sample(
        cpu_us=cpu_s / count * 1e6,
        per_s=count / wall_s,
        p50_ms=percentile(latencies_s, 0.50) * 1e3,
        p99_ms=percentile(latencies_s, 0.99) * 1e3,
    )


def medians(rounds: Sequence[Sample]) -> Sample:
    """The median of each figure by itself: one disturbed round moves none of them."""
    return Sample(**{name: median(getattr(one, name) for one in rounds) for name in Sample.__struct_fields__})


def ratios(lines: Sequence[Line]) -> dict[str, float]:
    """How many times our CPU time per request each subject's peer takes."""
    cpu_us = {line.subject: medians(line.rounds).cpu_us for line in lines}
    return {line.subject: cpu_us[line.peer] / cpu_us[line.subject] for line in lines if line.peer is not None}


def lines_table(lines: Sequence[Line]) -> str:
    """The medians of every subject, and its ratio where it has a peer."""
    times = ratios(lines)
    rows = []
    for line in lines:
        m = medians(line.rounds)
        ratio = f"{times[line.subject]:.1f}x" if line.subject in times else ""
        rows.append(
            (line.subject, f"{m.cpu_us:,.0f}", f"{m.per_s:,.0f}", f"{m.p50_ms:.1f}", f"{m.p99_ms:.1f}", ratio)
        )
    return table(("subject", "CPU us/req", "req/s", "p50 ms", "p99 ms", "peer CPU / ours"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: the first flush left, numbers flush right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def text(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join((text(head), "  ".join("-" * width for width in widths), *map(text, rows)))
