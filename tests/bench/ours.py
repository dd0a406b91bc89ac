"""Our service for the benchmark: what `spawn serve` runs, with a chain that answers at once, as the peers' chains do.

Run as `python -m tests.bench.ours CHAIN [PROFILE_FOLDER]`; CHAIN is `instant` or `devnet`, settings are `SPAWN_*`. It
makes its database if that is new. On SIGURG its threads show their names in `/proc`.
"""

import asyncio
import cProfile
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from spawn import server
from spawn.clock import Clock
from spawn.parts import Parts, open_parts
from spawn.payments.exact import ExactPayment
from spawn.payments.facilitator import Settled
from spawn.setting_reader import read_settings
from spawn.settings import Settings
from spawn.store.database import Database
from spawn.store.migrate import migrate

_COMM_CHARS: Final = 15


class InstantChain:
    """A `Facilitator` whose chain settles everything at once: the signature was checked before it is asked."""

    async def settle(self, payment: ExactPayment) -> Settled:
        return Settled(transaction=payment.nonce)

    async def find(self, payment: ExactPayment) -> Settled | None:
        return None

    async def is_over(self, payment: ExactPayment) -> bool:
        return False


def _name_threads() -> None:
    """Python 3.11 keeps a thread's name to itself; the kernel takes 15 characters of it."""
    for thread in threading.enumerate():
        name = "event loop" if thread is threading.main_thread() else thread.name
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text(name[:_COMM_CHARS], encoding="utf-8")


def _profile_on_signals(db: Database, folder: Path) -> None:
    """SIGUSR1 starts a profile of the event loop's thread and one of the thread that writes, SIGUSR2 ends both."""
    loop = asyncio.get_running_loop()
    of_loop, of_writer = cProfile.Profile(), cProfile.Profile()
    tasks: set[asyncio.Task[None]] = set()

    def start() -> None:
        of_loop.clear()
        of_writer.clear()
        of_loop.enable()
        in_writer(of_writer.enable)

    def stop() -> None:
        of_loop.disable()
        _dump(of_loop, folder / "event-loop.profile")
        in_writer(stop_writer)

    def stop_writer() -> None:
        of_writer.disable()
        _dump(of_writer, folder / "writer.profile")

    def in_writer(step: Callable[[], None]) -> None:
        task = loop.create_task(db.write(lambda _: step()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(signal.SIGUSR1, start)
    loop.add_signal_handler(signal.SIGUSR2, stop)


def _dump(profile: cProfile.Profile, path: Path) -> None:
    """Who waits for the file finds it whole."""
    unfinished = path.with_suffix(".part")
    profile.dump_stats(unfinished)
    unfinished.rename(path)


def main(chain: str, profile_folder: str | None = None) -> None:
    """Serve until told to stop."""
    settings = read_settings(os.environ)
    listener = server.listen(settings)
    migrate(settings.database_url)

    async def open_ours(
        settings: Settings, *, clock: Clock | None = None, wall: Clock | None = None
    ) -> Parts:
        parts = await open_parts(settings, clock=clock, wall=wall)
        if chain == "instant":
            parts.rail = replace(parts.rail, facilitator=InstantChain())
        asyncio.get_running_loop().add_signal_handler(signal.SIGURG, _name_threads)
        if profile_folder is not None:
            _profile_on_signals(parts.db, Path(profile_folder))
        return parts

    vars(server)["open_parts"] = open_ours
    server.serve(settings, listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
