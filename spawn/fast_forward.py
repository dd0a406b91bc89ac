"""Letting the time of a development service pass: days of deposits, warnings and ends in seconds.

Invariant: only what the books, jobs and simulated machines go by runs ahead. Proofs go by the world's own time, so that
any client's payments and signatures stay valid; and no moment at which something is due is skipped.
"""

import asyncio
import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from spawn.clock import SystemClock
from spawn.jobs.ticker import Job
from spawn.setting_forms import parse_duration

log = logging.getLogger(__name__)

STEP_S: Final = 1_800
"""The longest stretch that passes between two looks of the jobs."""
JOBS: Final = ("operations", "burn", "deliveries")
MOST_S: Final = 60 * 86_400
"""The most that passes at once: about three minutes of waiting."""
_PAUSE_S: Final = 0.05
"""Between two steps, so that calls and deliveries have their turn."""


class AheadClock(SystemClock):
    """The machine's clock, and how far it was let run ahead."""

    def __init__(self) -> None:
        self._ahead_s = 0

    def now_s(self) -> int:
        return super().now_s() + self._ahead_s

    def now_ms(self) -> int:
        return super().now_ms() + self._ahead_s * 1000

    def skip(self, seconds: int) -> None:
        """Let this much time pass at once."""
        self._ahead_s += seconds


async def pass_time(clock: AheadClock, jobs: Mapping[str, Job], seconds: int) -> None:
    """Let time pass in steps, each job that follows it having its turn after each."""
    left = seconds
    while left > 0:
        step = min(left, STEP_S)
        clock.skip(step)
        left -= step
        for name in JOBS:
            await jobs[name].tick(clock.now_s())
        await asyncio.sleep(_PAUSE_S)


async def obey(clock: AheadClock, jobs: Mapping[str, Job], tell: Callable[[str], None] = print) -> None:
    """Read durations from standard input, a line each, and let them pass. Ends with the input."""
    lines = _typed()
    while line := await lines.get():
        text = line.decode(errors="replace").strip()
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            tell(f"{text!r}: {error}, such as 6h")
            continue
        if seconds > MOST_S:
            tell(f"{text!r}: no more than {MOST_S // 86_400}d at once")
            continue
        try:
            await pass_time(clock, jobs, seconds)
        except Exception:
            # The next line is obeyed all the same; what stumbled is still due.
            log.exception("time did not pass well")
        tell(f"it is {datetime.fromtimestamp(clock.now_s(), UTC):%Y-%m-%d %H:%M} UTC here now")


def _typed() -> asyncio.Queue[bytes]:
    """The lines of standard input as they come; nothing when it ends.

    A thread reads them: the event loop takes terminals and pipes only, and dies of a file or of /dev/null.
    """
    lines: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        # Without a buffer there is no lock, over which the interpreter would stumble when it ends in the middle; and
        # the loop may be closed when a last line comes.
        with (
            open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as typed,
            contextlib.suppress(RuntimeError),
        ):
            for line in typed:
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, b"")

    threading.Thread(target=read, name="typed", daemon=True).start()
    return lines
