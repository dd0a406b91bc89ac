"""The benchmark's arithmetic, and how its client reads an answer; the measuring itself is `make bench`."""

import pytest

from tests.bench.goals import verdicts, verdicts_table
from tests.bench.load import UnexpectedAnswer, get, is_whole
from tests.bench.report import (
    Line,
    Ratio,
    Sample,
    lines_table,
    medians,
    percentile,
    ratios,
    sample,
    table,
    threads_table,
)


def _line(subject: str, *cpu_us: float, per_s: float = 2000, ours: str | None = None) -> Line:
    rounds = tuple(
        Sample(cpu_us=cpu, per_s=per_s, p50_ms=1.5, p99_ms=9, busy=0.9, load_busy=0.25) for cpu in cpu_us
    )
    return Line(subject=subject, what=f"what {subject} is", rounds=rounds, ours=ours)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_sample_counts_per_request() -> None:
    seen = sample(cpu_s=0.4, wall_s=2, latencies_s=[0.001, 0.002, 0.003, 0.1], load_cpu_s=1)
    assert seen == Sample(cpu_us=100_000, per_s=2, p50_ms=2, p99_ms=100, busy=0.2, load_busy=0.5)


def test_a_disturbed_round_moves_no_median() -> None:
    assert medians(_line("ours", 100, 9000, 110).rounds).cpu_us == 110


def test_a_ratio_says_how_many_times_better_ours_is() -> None:
    lines = [_line("ours", 90, 100, 110), _line("theirs", 800, 1000, 900, per_s=500, ours="ours")]
    assert ratios(lines) == {"theirs": Ratio(rate=4, cpu=9)}


def test_a_line_whose_counterpart_was_not_measured_has_no_ratio() -> None:
    assert ratios([_line("theirs", 800, ours="ours")]) == {}


def test_the_table_has_ratios_where_a_line_is_compared() -> None:
    lines = [_line("ours", 100), _line("theirs", 1234, per_s=1000, ours="ours")]
    assert lines_table(lines).splitlines() == [
        "subject  req/s  p50 ms  p99 ms  CPU us  our rate / its  its CPU / ours  busy  load busy",
        "-------  -----  ------  ------  ------  --------------  --------------  ----  ---------",
        "ours     2,000     1.5     9.0     100                                   90%        25%",
        "theirs   1,000     1.5     9.0   1,234           2.00x          12.34x   90%        25%",
        "",
        "  ours    what ours is",
        "  theirs  what theirs is",
    ]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("a", "b"), [("long name", "1"), ("x", "22")]) == (
        "a           b\n---------  --\nlong name   1\nx          22"
    )


def test_threads_come_with_the_busiest_first_and_without_idle_ones() -> None:
    assert threads_table("ours", {"a": 1, "b": 20, "idle": 0.01}).splitlines()[2:] == [
        "b                   20.0",
        "a                    1.0",
    ]


HEAD = b"HTTP/1.1 402 Payment Required\r\ncontent-type: text/plain\r\n"


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (HEAD, False),
        (HEAD + b"Content-Length: 3\r\n\r\nab", False),
        (HEAD + b"Content-Length: 3\r\n\r\nabc", True),
        (HEAD + b"content-length:3\r\n\r\nabc", True),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", False),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", True),
    ],
)
def test_the_client_knows_where_an_answer_ends(received: bytes, whole: bool) -> None:
    assert is_whole(received) is whole


def test_an_answer_that_does_not_say_where_it_ends_is_refused() -> None:
    with pytest.raises(UnexpectedAnswer):
        is_whole(HEAD + b"\r\nabc")


def test_a_request_is_what_goes_over_the_wire() -> None:
    assert get("/v1/servers", "h:1", {"Signature": "s"}) == (
        b"GET /v1/servers HTTP/1.1\r\nHost: h:1\r\nSignature: s\r\n\r\n"
    )


def _fast(subject: str, per_s: float, *, cpu_us: float, p99_ms: float = 9) -> Line:
    one = Sample(cpu_us=cpu_us, per_s=per_s, p50_ms=1, p99_ms=p99_ms, busy=1, load_busy=0.5)
    return Line(subject=subject, what="", rounds=(one,))


def test_a_goal_is_met_by_the_rate_or_else_by_cpu_time() -> None:
    lines = [
        _fast("ours-signed", 700, cpu_us=100, p99_ms=15),
        _fast("ours-x402", 690, cpu_us=200, p99_ms=15.1),
        _fast("fastapi-process", 100, cpu_us=1400),
    ]
    assert [(verdict.ours, verdict.met, verdict.met_by_cpu) for verdict in verdicts(lines)] == [
        ("ours-signed", True, None),
        ("ours-x402", False, None),
        ("ours-signed", True, True),
        ("ours-x402", False, True),
    ]
    words = [text.rpartition("  ")[2] for text in verdicts_table(verdicts(lines)).splitlines()[2:]]
    assert words == ["met", "NOT met", "met", "met by CPU time only"]


def test_the_best_of_the_peers_is_what_counts() -> None:
    lines = [
        _fast("ours-unpaid", 1, cpu_us=1),
        _fast("ours-signed", 3000, cpu_us=100),
        *(
            _fast(f"{peer}-http", rate, cpu_us=1)
            for peer, rate in (("fastapi", 9), ("express", 600), ("hono", 500))
        ),
    ]
    (verdict,) = (one for one in verdicts(lines) if "HTTP" in one.goal)
    assert verdict.measured == "5.00x the rate of express-http, 0.01x by CPU time"
    assert verdict.met is False


def test_a_goal_without_all_its_peers_has_no_verdict() -> None:
    lines = [_fast("ours-signed", 3000, cpu_us=100), _fast("hono-http", 1, cpu_us=1)]
    assert [one.goal for one in verdicts(lines)] == ["p99 at most 15 ms"]
