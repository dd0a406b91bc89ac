"""What the benchmark says: medians of rounds, ratios to ours, goals, tables for people.

Pure. A ratio above 1 speaks for us. Wall figures of a shared machine move up to threefold between runs and CPU time
per request far less, so that every ratio is given in both.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from statistics import median

import msgspec


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one subject: CPU time of its whole process per request, and what the client saw.

    `busy` and `load_busy` are the shares of the time in which the server and the client had their cores. A server
    under load that is not near 1 waited for its disk, or for other programs of the machine; a client that is near 1
    was what was measured.
    """

    cpu_us: float
    per_s: float
    p50_ms: float
    p99_ms: float
    busy: float
    load_busy: float


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One subject: its name, what it is in words, its rounds, and which subject of ours it is compared with."""

    subject: str
    what: str
    rounds: tuple[Sample, ...]
    ours: str | None = None


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """How many times a subject's rate ours is, and how many times our CPU time it takes."""

    rate: float
    cpu: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least this share (0 < share ≤ 1) of them does not exceed (nearest rank)."""
    return sorted(values)[ceil(share * len(values)) - 1]


def sample(*, cpu_s: float, wall_s: float, latencies_s: Sequence[float], load_cpu_s: float) -> Sample:
    """The figures of a round that answered `latencies_s`, one latency a request."""
    count = len(latencies_s)
    return Sample(
        cpu_us=cpu_s / count * 1e6,
        per_s=count / wall_s,
        p50_ms=percentile(latencies_s, 0.50) * 1e3,
        p99_ms=percentile(latencies_s, 0.99) * 1e3,
        busy=cpu_s / wall_s,
        load_busy=load_cpu_s / wall_s,
    )


def medians(rounds: Sequence[Sample]) -> Sample:
    """The median of each figure by itself: one disturbed round moves none of them."""
    return Sample(**{name: median(getattr(one, name) for one in rounds) for name in Sample.__struct_fields__})


def ratio(ours: Sample, peer: Sample) -> Ratio:
    """Ours beside a peer."""
    return Ratio(rate=ours.per_s / peer.per_s, cpu=peer.cpu_us / ours.cpu_us)


def ratios(lines: Sequence[Line]) -> dict[str, Ratio]:
    """Each subject beside the one of ours that it is compared with, where that was measured."""
    seen = {line.subject: medians(line.rounds) for line in lines}
    return {
        line.subject: ratio(seen[line.ours], seen[line.subject])
        for line in lines
        if line.ours is not None and line.ours in seen
    }


def lines_table(lines: Sequence[Line]) -> str:
    """The medians of every subject, and its ratios where it is compared."""
    beside = ratios(lines)
    rows = []
    for line in lines:
        m = medians(line.rounds)
        times = beside.get(line.subject)
        rows.append(
            (
                line.subject,
                f"{m.per_s:,.0f}",
                f"{m.p50_ms:.1f}",
                f"{m.p99_ms:.1f}",
                f"{m.cpu_us:,.0f}",
                f"{times.rate:.2f}x" if times else "",
                f"{times.cpu:.2f}x" if times else "",
                f"{m.busy:.0%}",
                f"{m.load_busy:.0%}",
            )
        )
    head = (
        "subject",
        "req/s",
        "p50 ms",
        "p99 ms",
        "CPU us",
        "our rate / its",
        "its CPU / ours",
        "busy",
        "load busy",
    )
    width = max(len(line.subject) for line in lines)
    words = "\n".join(f"  {line.subject.ljust(width)}  {line.what}" for line in lines)
    return f"{table(head, rows)}\n\n{words}"


def threads_table(subject: str, cpu_us: Mapping[str, float]) -> str:
    """Where a server's CPU time goes, thread by thread."""
    rows = [
        (name, f"{us:,.1f}") for name, us in sorted(cpu_us.items(), key=lambda one: -one[1]) if us >= 0.05
    ]
    return table((f"{subject}: thread", "CPU us/req"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell: the first flush left, numbers flush right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def text(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join((text(head), "  ".join("-" * width for width in widths), *map(text, rows)))
