"""Images brought here, with their progress told to somebody on the event loop.

Invariant: a pull that its caller gives up ends, at Docker's next word, and one that takes too long ends by itself: it
keeps others waiting. An image that was here before us stays its owner's, and runs if its registry gives it to anybody.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import requests
from docker import APIClient

from spawn_hostagent.docker import images
from spawn_hostagent.docker.engine import Engine
from spawn_hostagent.machines import Progress
from spawn_hostagent.walls.admission import refuse

QUIET_S: Final = 600
"""Docker says nothing while it verifies a layer, which takes minutes for one of many GB."""
PULL_MAX_S: Final = 3600.0
"""A registry that sends drop by drop is given up."""
TELL_EVERY_S: Final = 1.0
"""Also where it is no further than before: whoever is told may want it no more."""


class Pulls:
    """Brings images to this engine. `make_room` is called before each pull, `used_percent` again and again in it."""

    def __init__(
        self,
        engine: Engine,
        shelf: images.Shelf,
        make_room: Callable[[APIClient], object],
        used_percent: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._engine, self._shelf, self._make_room = engine, shelf, make_room
        self._used_percent, self._now = used_percent, now

    async def bring(self, image: str, tell: Progress) -> dict[str, Any]:
        """Have the image here; return what Docker knows of it.

        Raises MachineError: `image_unavailable`, `no_room`, `docker_failed`.
        """
        inspected = await self._engine.call(lambda client: images.inspect(client, image))
        if inspected is None:
            await self._pull(image, tell)
            inspected = await self._engine.call(lambda client: images.inspect(client, image))
        elif not await self._engine.call(lambda _: self._is_wanted_again(image)):
            await self._engine.call_slow(lambda client: images.check_public(client, image))
        if inspected is None:
            raise refuse("image_unavailable", f"{image[:200]} was pulled and is not there.")
        return inspected

    def _is_wanted_again(self, image: str) -> bool:
        """Whether it is one that we pulled; its registry need not be asked again, and may be down."""
        if not self._shelf.has(image):
            return False
        self._shelf.touch(image, int(self._now()))
        return True

    async def _pull(self, image: str, tell: Progress) -> None:
        loop = asyncio.get_running_loop()
        given_up = threading.Event()
        told = -1
        began_s = told_s = self._now()

        async def pass_on(percent: int, what: str) -> None:
            await tell(percent, what)

        def on_progress(percent: int, what: str) -> None:
            nonlocal told, told_s
            now_s = self._now()
            if given_up.is_set():
                raise refuse("image_unavailable", "the pull was given up.")
            if now_s >= began_s + PULL_MAX_S:
                raise refuse(
                    "image_unavailable", f"{image[:200]} did not come within {PULL_MAX_S / 60:.0f} minutes."
                )
            if percent > told or now_s >= told_s + TELL_EVERY_S:
                told, told_s = max(percent, told), now_s
                # Waited for, so that reports come in order and no faster than they are taken.
                asyncio.run_coroutine_threadsafe(pass_on(told, what), loop).result()

        def work(client: APIClient) -> None:
            if images.inspect(client, image) is not None:
                # Its owner fetched it while we made room.
                images.check_public(client, image)
                return
            with (
                self._shelf.coming(client, image, int(self._now())),
                contextlib.closing(self._engine.dial(QUIET_S)) as patient,
                closed_answers(patient),
            ):
                images.pull(patient, image, on_progress, self._used_percent)

        await self._engine.call_slow(self._make_room)
        await self._engine.call_slow(work, cancelled=given_up.set)


@contextlib.contextmanager
def closed_answers(client: APIClient) -> Iterator[None]:
    """Close what this client was answered: an answer left before its end keeps its socket until it is collected."""
    answers: list[requests.Response] = []

    def keep(answer: requests.Response, **_: object) -> None:
        answers.append(answer)

    client.hooks["response"].append(keep)
    try:
        yield
    finally:
        for answer in answers:
            answer.close()


def used_by(engine: Engine) -> Callable[[], float]:
    """How full the disk of Docker's data is, in percent; the root's, where that folder is not seen from here."""
    found: list[Path] = []

    def used_percent() -> float:
        if not found:
            data = Path(str(engine.client().info()["DockerRootDir"]))
            found.append(data if data.exists() else Path("/"))
        return images.used_percent_of(found[0])

    return used_percent
