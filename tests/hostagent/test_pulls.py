"""Pulls that nobody wants any more, or that would never end, without an engine."""

import asyncio
import contextlib
import itertools
import json
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker import APIClient
from spawn_hostagent.docker import images
from spawn_hostagent.docker.pulls import PULL_MAX_S, QUIET_S, TELL_EVERY_S, Pulls, closed_answers
from spawn_hostagent.machines import MachineError
from spawn_hostagent.walls.admission import refuse

from tests.hostagent.orders import IMAGE


class Docker:
    """An engine whose pulls say `words`, a second apart; it counts the words that were listened to."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[int], apart_s: float
    ) -> None:
        self.now_s, self.said, self.patience_s = 0.0, 0, 0
        monkeypatch.setattr(images, "inspect", lambda *_: {"Id": "x"} if self.said == len(words) else None)

        def pull(client: Any, image: str, tell: images.Told, used: Callable[[], float]) -> None:
            for percent in words:
                self.said += 1
                self.now_s += apart_s
                tell(percent, "Downloading")

        monkeypatch.setattr(images, "pull", pull)
        self.pulls = Pulls(
            self,  # type: ignore[arg-type]  # as far as pulls ask an engine
            images.Shelf(folder / "images.json"),
            lambda _: None,
            lambda: 0.0,
            lambda: self.now_s,
        )

    async def call(self, work: Callable[[Any], Any], cancelled: Any = None) -> Any:
        return await asyncio.to_thread(work, None)

    call_slow = call

    def dial(self, timeout_s: int) -> Any:
        self.patience_s = timeout_s
        return SimpleNamespace(close=lambda: None, hooks={"response": []})


def test_no_registry_hears_of_the_owners_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither by his configuration nor by a helper, which would be run for it: there is none of this name."""
    login = b64encode(b"owner:s3cret").decode()
    config = {"auths": {"ghcr.io": {"auth": login}}, "credHelpers": {"quay.io": "of-the-owner"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    sent: list[Any] = []

    def answer(_: Any, request: requests.PreparedRequest, **__: Any) -> requests.Response:
        sent.append(json.loads(urlsafe_b64decode(request.headers["X-Registry-Auth"])))
        response = requests.Response()
        response.status_code, response._content, response.request = 404, b"", request
        return response

    client = APIClient(base_url="http://127.0.0.1:9", version="1.41")
    monkeypatch.setattr(APIClient, "send", answer)
    asks: tuple[Callable[[str], None], ...] = (
        lambda image: images.pull(client, image, lambda *_: None, lambda: 0.0),
        lambda image: images.check_public(client, image),
    )
    with contextlib.closing(client):
        for registry, ask in itertools.product(("ghcr.io", "quay.io"), asks):
            with pytest.raises(MachineError) as refused:
                ask(f"{registry}/owner/private@sha256:{'0' * 64}")
            assert refused.value.problem.code == "image_unavailable"
    assert sent == [{}] * 4


async def test_who_wants_it_no_more_is_heard_though_it_gets_no_further(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = Docker(monkeypatch, tmp_path, [10] * 100, TELL_EVERY_S)
    told: list[int] = []

    async def tell(percent: int, what: str) -> None:
        told.append(percent)
        if len(told) == 3:
            raise refuse("stale_generation", "It was destroyed.")

    with pytest.raises(MachineError, match="destroyed"):
        await docker.pulls.bring(IMAGE, tell)
    assert (told, docker.said) == ([10, 10, 10], 3)


async def test_what_comes_drop_by_drop_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docker = Docker(monkeypatch, tmp_path, [10] * 100, PULL_MAX_S / 10)

    async def tell(percent: int, what: str) -> None:
        pass

    with pytest.raises(MachineError, match="within 60 minutes"):
        await docker.pulls.bring(IMAGE, tell)
    assert docker.said == 10


async def test_progress_never_goes_back_and_a_quiet_docker_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docker = Docker(monkeypatch, tmp_path, [10, 30, 20, 20, 40], TELL_EVERY_S / 2)
    told: list[int] = []

    async def tell(percent: int, what: str) -> None:
        told.append(percent)

    await docker.pulls.bring(IMAGE, tell)
    assert told == [10, 30, 30, 40]
    assert docker.patience_s == QUIET_S > 60


def test_an_answer_that_is_left_before_its_end_is_closed() -> None:
    closed: list[str] = []
    client: Any = SimpleNamespace(hooks={"response": []})

    def pull() -> None:
        with closed_answers(client):
            (told,) = client.hooks["response"]
            # What a hook answers takes the answer's place.
            assert told(SimpleNamespace(close=lambda: closed.append("it"))) is None
            raise refuse("no_room", "The disk is full.")

    with pytest.raises(MachineError):
        pull()
    assert closed == ["it"]


class Store:
    """A Docker whose pull registers the image before its last word, and what is on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here: set[str] = set()
        self.checked: list[str] = []
        self.removed: list[str] = []
        self.comes = True
        self.while_room_is_made: Callable[[], None] = lambda: None
        self.shelf = images.Shelf(folder / "images.json")

        def pull(client: Any, image: str, tell: images.Told, used: Callable[[], float]) -> None:
            if not self.comes:
                raise refuse("image_unavailable", "It is not there.")
            self.here.add(image)
            self.evict()
            tell(99, "Status: Downloaded newer image")

        monkeypatch.setattr(images, "inspect", lambda _, image: {"Id": image} if image in self.here else None)
        monkeypatch.setattr(images, "pull", pull)
        self.pulls = Pulls(
            self,  # type: ignore[arg-type]  # as far as pulls ask an engine
            self.shelf,
            lambda _: self.while_room_is_made(),
            lambda: 0.0,
            lambda: 1.0,
        )

    async def call(self, work: Callable[[Any], Any], cancelled: Any = None) -> Any:
        return await asyncio.to_thread(work, self)

    call_slow = call

    def dial(self, timeout_s: int) -> Any:
        return SimpleNamespace(close=lambda: None, hooks={"response": []})

    def inspect_distribution(self, image: str, auth_config: object) -> None:
        assert auth_config == {}
        self.checked.append(image)

    def remove_image(self, image: str) -> None:
        self.here.remove(image)
        self.removed.append(image)

    def evict(self) -> tuple[str, ...]:
        """What goes where the disk is full and nobody wants anything."""
        client: Any = self
        return self.shelf.evict(client, tuple, lambda: 99.0, 90)


async def unwanted(percent: int, what: str) -> None:
    raise refuse("stale_generation", "It was destroyed.")


async def wanted(percent: int, what: str) -> None:
    """Goes on."""


async def test_a_pull_that_is_given_up_at_its_last_word_leaves_an_image_of_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(tmp_path, monkeypatch)
    with pytest.raises(MachineError, match="destroyed"):
        await store.pulls.bring(IMAGE, unwanted)
    assert (store.here, store.removed) == ({IMAGE}, []), "nor was it evicted while it came"
    assert store.evict() == (IMAGE,)


async def test_what_its_owner_fetches_is_his_whatever_we_tried_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(tmp_path, monkeypatch)
    store.comes = False
    with pytest.raises(MachineError, match="not there"):
        await store.pulls.bring(IMAGE, wanted)
    assert not store.shelf.has(IMAGE)
    # So it is with what a crash in the middle of a pull left of it, once somebody looked.
    store.shelf.touch(IMAGE, 1)
    assert store.evict() == ()
    store.here.add(IMAGE)
    await store.pulls.bring(IMAGE, wanted)
    assert store.checked == [IMAGE], "whoever rents may have what everybody may"
    assert store.evict() == ()


async def test_what_its_owner_fetches_while_room_is_made_is_his(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = Store(tmp_path, monkeypatch)
    store.while_room_is_made = lambda: store.here.add(IMAGE)
    assert await store.pulls.bring(IMAGE, wanted) == {"Id": IMAGE}
    assert store.checked == [IMAGE]
    assert store.evict() == ()
