"""The table of nftables, in a network of the tests' own: it is kept standing, and a failure to ask is no fall of it."""

import contextlib
import errno
import itertools
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from spawn_hostagent.walls import firewall
from spawn_hostagent.walls.firewall import Firewall, WallError, WallsDown

from tests.engines import require
from tests.hostagent.namespaces import World, inside, world

RESOLVER = "192.168.77.53"


@pytest.fixture
def network() -> Iterator[str]:
    require("docker")
    with world() as made, inside(made.host):
        yield made.host


@pytest.fixture
def walls(network: str) -> Firewall:
    made = Firewall(lambda: (RESOLVER,), None)
    made.keep(dict)
    return made


def nft(*words: str) -> str:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True, timeout=30).stdout


def failing(monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """So many times nft does not put up what it is told."""
    works, left = firewall._nft, [times]

    def put_up(*words: str, told: str | None = None) -> str:
        if told is not None and left[0]:
            left[0] -= 1
            raise WallError("the kernel is busy")
        return works(*words, told=told)

    monkeypatch.setattr(firewall, "_nft", put_up)


def test_what_was_changed_is_put_up_again(walls: Firewall) -> None:
    nft("flush", "chain", "inet", "spawn", "from_tenants")
    assert not walls.stands()
    walls.keep(dict)
    assert walls.stands()
    nft("delete", "table", "inet", "spawn")
    assert not walls.stands()
    walls.keep(dict)
    nft("flush", "chain", "inet", "spawn_counts", "connections")
    assert not walls.stands()
    walls.keep(dict)
    assert walls.stands()
    nft("delete", "table", "inet", "spawn_counts")
    assert not walls.stands()


def test_a_failure_is_tried_again(walls: Firewall, monkeypatch: pytest.MonkeyPatch) -> None:
    nft("delete", "table", "inet", "spawn")
    failing(monkeypatch, times=1)
    walls.keep(dict)
    assert walls.stands()


def test_they_are_down_only_if_nft_says_so(walls: Firewall, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(patch, times=2)
        with pytest.raises(WallError) as refused:
            walls.keep(lambda: {"spw-new": 5})
        assert not isinstance(refused.value, WallsDown), "what stood still stands, around every bridge"
    with monkeypatch.context() as patch:
        failing(patch, times=2)
        nft("delete", "table", "inet", "spawn")
        with pytest.raises(WallsDown):
            walls.keep(dict)


@pytest.mark.parametrize(
    "error",
    [
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        subprocess.TimeoutExpired("nft", 30),
        FileNotFoundError("nft"),
    ],
)
def test_who_cannot_ask_does_not_know_that_they_fell(
    walls: Firewall, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", fail)
        with pytest.raises(WallError) as refused:
            walls.keep(dict)
    assert not isinstance(refused.value, WallsDown)
    assert walls.stands()


def test_of_two_at_once_the_later_has_the_later_list(network: str) -> None:
    walls = Firewall(lambda: (RESOLVER,), None)
    asked, may_answer, later_asked = threading.Event(), threading.Event(), threading.Event()

    def slowly() -> Mapping[str, int | None]:
        asked.set()
        assert may_answer.wait(30)
        return {"spw-first": 1}

    def later() -> Mapping[str, int | None]:
        later_asked.set()
        return {"spw-first": 1, "spw-second": 2}

    def in_network(find: Any) -> threading.Thread:
        with inside(network):
            thread = threading.Thread(target=walls.keep, args=(find,))
            thread.start()
        return thread

    first = in_network(slowly)
    assert asked.wait(30)
    second = in_network(later)
    # Whoever asked at once would have done so by now.
    assert not later_asked.wait(0.3)
    may_answer.set()
    first.join(30)
    second.join(30)
    assert '"spw-second" limit rate over 250000 bytes/second' in nft("list", "table", "inet", "spawn")


def test_resolvers_are_those_of_the_network_that_the_machine_is_in(network: str) -> None:
    here = [RESOLVER]
    walls = Firewall(lambda: tuple(here), None)
    walls.keep(dict)
    here[:] = ["10.1.2.3"]
    walls.keep(dict)
    listed = nft("list", "set", "inet", "spawn", "resolvers")
    assert walls.resolvers == ("10.1.2.3",)
    assert "10.1.2.3" in listed
    assert RESOLVER not in listed


def test_a_second_table_stands_beside_and_goes(walls: Firewall) -> None:
    before = nft("--handle", "list", "ruleset")
    beside = Firewall(lambda: (RESOLVER,), None, table="spawn_check", pattern="spc-*")
    beside.leave()
    beside.keep(dict)
    assert 'iifname "spc-*"' in nft("list", "table", "inet", "spawn_check")
    assert "spw-" not in nft("list", "table", "inet", "spawn_check")
    assert 'iifname "spc-*"' in nft("list", "table", "inet", "spawn_check_counts")
    beside.leave()
    assert nft("--handle", "list", "ruleset") == before


class Lines:
    """Tenants of a machine, each behind a bridge of its own and one other place, that send it what it takes."""

    PORT = 7000
    FLOWS = 40

    def __init__(self, made: World) -> None:
        self._outside = made.outside
        self._taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._taken.bind(("0.0.0.0", self.PORT))  # noqa: S104 - in a network of the test's own
        self._taken.settimeout(30)
        self._kept: dict[str, list[socket.socket]] = {}

    def add(self, bridge: str) -> None:
        number = len(self._kept)
        ip("link", "add", bridge, "type", "veth", "peer", "name", f"t{number}", "netns", self._outside)
        ip("address", "add", f"10.99.{number}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        ip("-n", self._outside, "address", "add", f"10.99.{number}.2/24", "dev", f"t{number}")
        ip("-n", self._outside, "link", "set", f"t{number}", "up")
        with inside(self._outside):
            known = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        known.settimeout(30)
        self._kept[bridge] = [known]
        known.sendto(b"hello", self._place(bridge))
        # Answered, it is a new connection no more.
        self._taken.sendto(b"hello", self._taken.recvfrom(16)[1])
        known.recv(16)

    def _place(self, bridge: str) -> tuple[str, int]:
        return f"10.99.{list(self._kept).index(bridge)}.1", self.PORT

    def flood(self, bridge: str) -> int:
        """How many of so many new connections get through. The kernel follows each for half a minute."""
        place = self._place(bridge)
        with inside(self._outside):
            made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(self.FLOWS)]
        self._kept[bridge] += made
        for one in made:
            one.sendto(b"new", place)
        # Its first connection goes on, and comes after all the others.
        self._kept[bridge][0].sendto(b"end", place)
        return sum(1 for _ in iter(lambda: self._taken.recv(16), b"end"))

    def close(self) -> None:
        for one in (self._taken, *itertools.chain.from_iterable(self._kept.values())):
            one.close()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


def test_a_bridge_that_comes_or_goes_gives_no_tenant_a_new_count(monkeypatch: pytest.MonkeyPatch) -> None:
    require("docker")
    monkeypatch.setattr(firewall, "connections_each", lambda _: 10)
    # As in life, but that the machine takes what tenants send it.
    rules = tuple(rule for rule in firewall.RULES if rule.name != "host")
    walls = Firewall(lambda: (RESOLVER,), None, rules)
    with world() as made, inside(made.host), contextlib.closing(Lines(made)) as lines:
        walls.keep(lambda: {"spw-flooder": None})
        lines.add("spw-flooder")
        lines.add("spw-other")
        assert lines.flood("spw-flooder") == 9, "and the one that it had"
        for here in ({"spw-flooder": None, "spw-other": 7}, {"spw-flooder": None}, {}):
            walls.keep(lambda here=here: here)  # type: ignore[misc]
            assert lines.flood("spw-flooder") == 0
        Firewall(lambda: (RESOLVER,), 5, rules).keep(dict)
        assert lines.flood("spw-flooder") == 0, "nor does another start of the agent"
        assert lines.flood("spw-other") == 9, "which has a count of its own"
        monkeypatch.setattr(firewall, "connections_each", lambda _: 15)
        walls.keep(dict)
        assert lines.flood("spw-flooder") > 0, "the owner lets fewer rentals be here at once"
