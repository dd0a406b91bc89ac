"""The soak's verdict: a leak is one after the caches are full, and noise is none."""

import pytest

from tests.bench.soak import GROWTH_MAX_MIB, WARM_UP_CALLS, growth_mib, judge

ROUND = 4000


def run(calls: int, mib_per_million: float) -> list[tuple[int, float]]:
    """Memory that fills a cache of 64 MiB, then grows so fast, and is a little noisy all the time."""
    return [
        (sent, 80 + min(64, sent / 1000) + max(0, sent - WARM_UP_CALLS) / 1e6 * mib_per_million + sent % 3)
        for sent in range(ROUND, calls + 1, ROUND)
    ]


def test_a_full_cache_is_no_growth() -> None:
    grown, slope = growth_mib(run(1_000_000, 0))
    assert abs(grown) <= 1
    assert abs(slope) < 2
    judge(run(1_000_000, 0))


def test_a_leak_is_seen() -> None:
    grown, slope = growth_mib(run(1_000_000, 40))
    assert grown == pytest.approx(40 * 0.72, abs=3)
    assert slope == pytest.approx(40 * 1024**2 / 1e6, rel=0.1)
    with pytest.raises(SystemExit, match=f"more than {GROWTH_MAX_MIB:.0f}"):
        judge(run(1_000_000, 40))


def test_a_short_run_is_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    judge(run(20_000, 4000))
    assert "not judged" in capsys.readouterr().out
