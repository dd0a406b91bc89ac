"""The benchmark's arithmetic, and how its client reads an answer; the measuring itself is `make bench`."""

import pytest

from tests.bench.load import UnexpectedAnswer, get, status_and_length
from tests.bench.report import Line, Sample, lines_table, medians, percentile, ratios, sample, table


def _line(subject: str, *cpu_us: float, peer: str | None = None) -> Line:
    rounds = tuple(Sample(cpu_us=cpu, per_s=2000, p50_ms=1.5, p99_ms=9) for cpu in cpu_us)
    return Line(subject=subject, rounds=rounds, peer=peer)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (0.991, 100), (1, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_seen(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_a_sample_counts_per_request() -> None:
    seen = sample(cpu_s=0.4, wall_s=2, latencies_s=[0.001, 0.002, 0.003, 0.1])
    assert seen == Sample(cpu_us=100_000, per_s=2, p50_ms=2, p99_ms=100)


def test_a_disturbed_round_moves_no_median() -> None:
    assert medians(_line("ours", 100, 9000, 110).rounds).cpu_us == 110


def test_the_ratio_is_how_many_times_our_cpu_the_peer_takes() -> None:
    lines = [_line("ours", 90, 100, 110, peer="theirs"), _line("theirs", 800, 1000, 900)]
    assert ratios(lines) == {"ours": 9.0}


def test_the_table_names_the_ratio_where_there_is_a_peer() -> None:
    lines = [_line("ours", 100, peer="theirs"), _line("theirs", 1234)]
    assert lines_table(lines).splitlines() == [
        "subject  CPU us/req  req/s  p50 ms  p99 ms  peer CPU / ours",
        "-------  ----------  -----  ------  ------  ---------------",
        "ours            100  2,000     1.5     9.0            12.3x",
        "theirs        1,234  2,000     1.5     9.0",
    ]


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("a", "b"), [("long name", "1"), ("x", "22")]) == (
        "a           b\n---------  --\nlong name   1\nx          22"
    )


def test_the_client_reads_status_and_length() -> None:
    head = b"HTTP/1.1 402 Payment Required\r\ncontent-type: text/plain\r\nContent-Length: 17"
    assert status_and_length(head) == (402, 17)
    with pytest.raises(UnexpectedAnswer):
        status_and_length(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked")


def test_a_request_is_what_goes_over_the_wire() -> None:
    assert get("/v1/servers", "h:1", {"Signature": "s"}) == (
        b"GET /v1/servers HTTP/1.1\r\nHost: h:1\r\nSignature: s\r\n\r\n"
    )
