"""The simulated cloud's own memory: a file apart from our database, as a real cloud outlives our crashes.

Invariant: what the world looks like is a function of its rows and the clock. Every change is one immediate
transaction, so that several processes may share a file and a killed one leaves nothing half done.
Used by one thread at a time; `spawn_providers.simulated` sees to that.
"""

import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Final, assert_never

import msgspec
from spawn_schemas.ids import ServerId

from spawn_providers import simulated_rules as rules
from spawn_providers.base import (
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    OpStatus,
    Refused,
    RefusedCode,
    Spec,
    Traffic,
    Verb,
)
from spawn_providers.simulated_faults import Breakdown, DeafGuest, Flaw
from spawn_providers.simulated_keys import make_way
from spawn_providers.simulated_rules import Course, Moment

# `name`, `owner` and `hostname` are labels, as a cloud's console shows them.
# A step's `status` is null when the machine is gone from that moment on.
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS instance (
        number INTEGER PRIMARY KEY, ref TEXT NOT NULL UNIQUE, key TEXT UNIQUE, name TEXT NOT NULL, owner TEXT,
        location TEXT NOT NULL, ipv6_only INTEGER NOT NULL, hostname TEXT
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS step (
        seq INTEGER PRIMARY KEY, ref TEXT NOT NULL REFERENCES instance (ref), at_ms INTEGER NOT NULL,
        status TEXT, provider_type TEXT NOT NULL, image TEXT NOT NULL, disk_gb INTEGER NOT NULL,
        addressed INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS step_by_time ON step (ref, at_ms, seq)",
    """CREATE TABLE IF NOT EXISTS op (
        handle TEXT PRIMARY KEY, ref TEXT NOT NULL, kind TEXT NOT NULL, finishes_ms INTEGER NOT NULL,
        error_code TEXT, error_message TEXT, forgotten INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS op_by_ref ON op (ref, finishes_ms)",
)
# A world outlives the version that made it.
_HAS_HOSTNAME: Final = "SELECT 1 FROM pragma_table_info('instance') WHERE name = 'hostname'"
_ADD_HOSTNAME: Final = "ALTER TABLE instance ADD COLUMN hostname TEXT"

_PRESENT: Final = """
    SELECT i.number, i.ref, i.key, i.owner, i.hostname, i.location, i.ipv6_only,
           (SELECT MIN(at_ms) FROM step WHERE ref = i.ref) AS created_ms,
           s.status, s.provider_type, s.image, s.disk_gb, s.addressed
    FROM instance i JOIN step s ON s.seq = (
        SELECT seq FROM step WHERE ref = i.ref AND at_ms <= :now_ms ORDER BY at_ms DESC, seq DESC LIMIT 1
    )
    WHERE s.status IS NOT NULL"""
_BY_KEY: Final = _PRESENT + " AND i.key = :key"
_BY_REF: Final = _PRESENT + " AND i.ref = :ref"
_OWNED: Final = _PRESENT + " AND i.key IS NOT NULL ORDER BY i.number"
_KNOWN: Final = "SELECT ref FROM instance WHERE key = :key"
_HEADED: Final = "SELECT * FROM step WHERE ref = :ref ORDER BY at_ms DESC, seq DESC LIMIT 1"
_HISTORY: Final = "SELECT at_ms, status FROM step WHERE ref = :ref AND at_ms <= :now_ms ORDER BY at_ms, seq"
_NEXT_NUMBER: Final = "SELECT COALESCE(MAX(number), 0) + 1 AS number FROM instance"
_ADD_INSTANCE: Final = """
    INSERT INTO instance (number, ref, key, name, owner, hostname, location, ipv6_only)
    VALUES (:number, :ref, :key, :name, :owner, :hostname, :location, :ipv6_only)"""
_CUT_FUTURE: Final = "DELETE FROM step WHERE ref = :ref AND at_ms > :now_ms"
_ADD_STEP: Final = """
    INSERT INTO step (ref, at_ms, status, provider_type, image, disk_gb, addressed)
    VALUES (:ref, :at_ms, :status, :provider_type, :image, :disk_gb, :addressed)"""
_ADD_OP: Final = """
    INSERT INTO op (handle, ref, kind, finishes_ms, error_code, error_message)
    VALUES (:handle, :ref, :kind, :finishes_ms, :error_code, :error_message)"""
_COUNT_OPS: Final = "SELECT COUNT(*) AS ops FROM op WHERE ref = :ref"
_FIRST_OP: Final = "SELECT handle FROM op WHERE ref = :ref AND kind = 'create'"
_RUNNING_OP: Final = "SELECT handle, kind FROM op WHERE ref = :ref AND finishes_ms > :now_ms"
_OP: Final = """
    SELECT finishes_ms, error_code, error_message FROM op WHERE handle = :handle AND forgotten = 0"""
_ABORT_OPS: Final = """
    UPDATE op SET finishes_ms = :now_ms, error_code = :error_code, error_message = :error_message
    WHERE ref = :ref AND finishes_ms > :now_ms"""
_FORGET_OP: Final = "UPDATE op SET forgotten = 1 WHERE handle = :handle"

_FIRST_REF: Final = 10_000_000
_BUSY_S: Final = 30.0


class World:
    """A cloud of simulated machines. Times are milliseconds of `now_ms`, divided by `speed`."""

    def __init__(
        self,
        path: Path,
        *,
        now_ms: Callable[[], int],
        seed: int,
        speed: float,
        capacity: Mapping[str, int],
        quota: int | None,
    ) -> None:
        self._now_ms = now_ms
        self._seed = seed
        self._speed = speed
        self._capacity = capacity
        self._quota = quota
        self._db = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self._change():
            for statement in _SCHEMA:
                self._db.execute(statement)
            if self._db.execute(_HAS_HOSTNAME).fetchone() is None:
                self._db.execute(_ADD_HOSTNAME)

    def close(self) -> None:
        self._db.close()

    def create(self, key: ServerId, spec: Spec, flaw: Flaw | None) -> Op:
        rules.check_spec(spec)
        with self._change() as now_ms:
            make_way(self._db, key, spec, now_ms)
            known = self._find(_KNOWN, key=key)
            if known is not None:
                return self._created_before(known["ref"], now_ms)
            self._require_room(spec.location, now_ms)
            ref = self._add_instance(key, spec)
            dice = self._dice(ref)
            handle = self._begin(ref, "create", rules.creation(spec, dice), flaw, now_ms)
            return Op(handle=handle, ref=ref, root_password=_password(spec.public_keys, dice))

    def find(self, key: ServerId) -> Instance | None:
        now_ms = self._now_ms()
        row = self._find(_BY_KEY, key=key, now_ms=now_ms)
        return None if row is None else self._present(row, now_ms)

    def get(self, ref: str) -> Instance | None:
        now_ms = self._now_ms()
        row = self._find(_BY_REF, ref=ref, now_ms=now_ms)
        return None if row is None else self._present(row, now_ms)

    def owned(self) -> list[Instance]:
        now_ms = self._now_ms()
        rows = self._db.execute(_OWNED, {"now_ms": now_ms}).fetchall()
        return [self._present(row, now_ms) for row in rows]

    def act(self, ref: str, verb: Verb, change: Change, flaw: Flaw | None) -> Op:
        with self._change() as now_ms:
            row = self._find(_BY_REF, ref=ref, now_ms=now_ms)
            if row is None:
                raise Refused(RefusedCode.NOT_FOUND, f"there is no server {ref}")
            self._require_unlocked(ref, now_ms)
            dice = self._dice(ref)
            course = rules.action(verb, _moment(row), change, row["location"], dice)
            handle = self._begin(ref, verb.value, course, flaw, now_ms)
            keyless = verb is Verb.REBUILD and not change.public_keys
            secret = rules.password(dice) if keyless or verb is Verb.RESET_PASSWORD else None
            return Op(handle=handle, ref=ref, root_password=secret)

    def delete(self, ref: str, flaw: Flaw | None) -> Op:
        with self._change() as now_ms:
            row = self._find(_BY_REF, ref=ref, now_ms=now_ms)
            if row is None:
                return Op(handle=self._begin(ref, "delete", Course(), None, now_ms), ref=ref)
            under_way = self._find(_RUNNING_OP, ref=ref, now_ms=now_ms)
            if under_way is not None and under_way["kind"] == "delete":
                return Op(handle=under_way["handle"], ref=ref)
            self._require_unlocked(ref, now_ms)
            course, seen = rules.deletion(_moment(row), self._dice(ref)), self._present(row, now_ms)
            return Op(handle=self._begin(ref, "delete", course, flaw, now_ms), ref=ref, last_seen=seen)

    def poll(self, handles: Sequence[str]) -> list[OpState]:
        now_ms = self._now_ms()
        return [_op_state(handle, self._find(_OP, handle=handle), now_ms) for handle in handles]

    def plant(self, key: ServerId | None, spec: Spec) -> str:
        """A running machine that nobody ordered here; returns its ref."""
        with self._change() as now_ms:
            ref = self._add_instance(key, spec)
            born = rules.creation(spec, self._dice(ref)).steps[-1]
            self._begin(
                ref, "create", Course(steps=(msgspec.structs.replace(born, after_ms=0),)), None, now_ms
            )
            return ref

    def vanish(self, ref: str) -> None:
        """Lose the machine; an op that was running on it ends in `not_found`."""
        with self._change() as now_ms:
            headed = self._headed(ref)
            if headed is None:
                raise LookupError(f"there is no server {ref}")
            gone = rules.Step(after_ms=0, moment=msgspec.structs.replace(headed, status=None))
            code = RefusedCode.NOT_FOUND.value
            self._db.execute(
                _ABORT_OPS,
                {"ref": ref, "now_ms": now_ms, "error_code": code, "error_message": "the server vanished"},
            )
            self._schedule(ref, (gone,), now_ms)

    def forget(self, handle: str) -> None:
        """From now on nobody knows this op, though its effect goes on."""
        with self._change():
            if self._db.execute(_FORGET_OP, {"handle": handle}).rowcount == 0:
                raise LookupError(f"there is no op {handle}")

    @contextmanager
    def _change(self) -> Iterator[int]:
        """A write transaction; gives its time, read inside so that later transactions are never earlier."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._now_ms()
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _find(self, sql: str, **params: str | int) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute(sql, params).fetchone()
        return row

    def _get(self, sql: str, **params: str | int) -> sqlite3.Row:
        row = self._find(sql, **params)
        if row is None:
            raise LookupError(f"the simulated world lacks a row it must have: {params}")
        return row

    def _present(self, row: sqlite3.Row, now_ms: int) -> Instance:
        return _instance(row, self._traffic(row["ref"], row["location"], now_ms))

    def _traffic(self, ref: str, location: str, now_ms: int) -> Traffic:
        """What it moved since the month began (UTC): a billing period."""
        history = self._db.execute(_HISTORY, {"ref": ref, "now_ms": now_ms}).fetchall()
        starts = [(row["at_ms"], row["status"]) for row in history] + [(now_ms, None)]
        since_ms = rules.month_start_ms(now_ms)
        running_ms = sum(
            max(0, end_ms - max(start_ms, since_ms))
            for (start_ms, status), (end_ms, _) in pairwise(starts)
            if status == InstanceStatus.RUNNING.value
        )
        ingoing, outgoing = rules.traffic(running_ms, self._random(f"{ref}/traffic"))
        return Traffic(
            ingoing_bytes=ingoing, outgoing_bytes=outgoing, included_bytes=rules.included_bytes(location)
        )

    def _random(self, subject: str) -> random.Random:
        return random.Random(f"{self._seed}/{subject}")  # noqa: S311  repeatable, and nothing real to protect

    def _dice(self, ref: str) -> random.Random:
        """Fresh for each op of each machine, so that no other machine's calls change its course."""
        return self._random(self._next_handle(ref))

    def _next_handle(self, ref: str) -> str:
        return f"{ref}-{self._get(_COUNT_OPS, ref=ref)['ops'] + 1}"

    def _headed(self, ref: str) -> Moment | None:
        """Where the machine comes to rest if nothing else happens to it."""
        row = self._find(_HEADED, ref=ref)
        return None if row is None else _moment(row)

    def _created_before(self, ref: str, now_ms: int) -> Op:
        if self._find(_BY_REF, ref=ref, now_ms=now_ms) is None:
            raise Refused(RefusedCode.CONFLICT, "this key had a server, which is gone; keys are not reused")
        return Op(handle=self._get(_FIRST_OP, ref=ref)["handle"], ref=ref)

    def _require_room(self, location: str, now_ms: int) -> None:
        if self._quota is None and location not in self._capacity:
            return
        used = [row["location"] for row in self._db.execute(_PRESENT, {"now_ms": now_ms})]
        if self._quota is not None and len(used) >= self._quota:
            raise Refused(RefusedCode.QUOTA, f"the account is limited to {self._quota} servers")
        if location in self._capacity and used.count(location) >= self._capacity[location]:
            raise Refused(RefusedCode.OUT_OF_CAPACITY, f"{location} is sold out")

    def _require_unlocked(self, ref: str, now_ms: int) -> None:
        op = self._find(_RUNNING_OP, ref=ref, now_ms=now_ms)
        if op is not None:
            raise Refused(RefusedCode.CONFLICT, f"the server is locked: {op['kind']} is under way")

    def _add_instance(self, key: ServerId | None, spec: Spec) -> str:
        number = int(self._get(_NEXT_NUMBER)["number"])
        ref = str(_FIRST_REF + number)
        label = {"key": None, "owner": None, "hostname": None, "name": spec.hostname}
        if key is not None:
            # An underscore is not allowed in a host name (RFC 1123), hence in a real cloud's server name.
            label = {
                "key": key,
                "owner": spec.owner,
                "hostname": spec.hostname,
                "name": "sp-" + key.removeprefix("srv_"),
            }
        self._db.execute(
            _ADD_INSTANCE,
            {
                "number": number,
                "ref": ref,
                "location": spec.location,
                "ipv6_only": int(spec.ipv6_only),
                **label,
            },
        )
        return ref

    def _begin(self, ref: str, kind: str, course: Course, flaw: Flaw | None, now_ms: int) -> str:
        """Write down what follows from an accepted call; returns the op's handle."""
        error: dict[str, str | None] = {"error_code": None, "error_message": None}
        match flaw:
            case Breakdown(code=code):
                course = rules.breakdown(course, self._headed(ref))
                error = {"error_code": code.value, "error_message": f"{kind} broke down half-way"}
            case DeafGuest():
                course = Course()
            case None:
                pass
            case _:
                assert_never(flaw)
        handle = self._next_handle(ref)
        finishes_ms = now_ms + self._scaled(course.op_ms)
        self._db.execute(
            _ADD_OP, {"handle": handle, "ref": ref, "kind": kind, "finishes_ms": finishes_ms, **error}
        )
        if course.steps:
            self._schedule(ref, course.steps, now_ms)
        return handle

    def _schedule(self, ref: str, steps: Sequence[rules.Step], now_ms: int) -> None:
        self._db.execute(_CUT_FUTURE, {"ref": ref, "now_ms": now_ms})
        for step in steps:
            at_ms = now_ms + self._scaled(step.after_ms)
            self._db.execute(_ADD_STEP, {"ref": ref, "at_ms": at_ms, **msgspec.to_builtins(step.moment)})

    def _scaled(self, duration_ms: int) -> int:
        return int(duration_ms / self._speed)


def _password(public_keys: tuple[str, ...], dice: random.Random) -> str | None:
    return None if public_keys else rules.password(dice)


def _moment(row: sqlite3.Row) -> Moment:
    return Moment(
        status=None if row["status"] is None else InstanceStatus(row["status"]),
        provider_type=row["provider_type"],
        image=row["image"],
        disk_gb=row["disk_gb"],
        addressed=bool(row["addressed"]),
    )


def _instance(row: sqlite3.Row, traffic: Traffic) -> Instance:
    offer = rules.get_offer(row["provider_type"], row["location"])
    ipv4, ipv6 = rules.addresses(row["number"])
    return Instance(
        ref=row["ref"],
        key=row["key"],
        owner=row["owner"],
        hostname=row["hostname"],
        created_at=row["created_ms"] // 1000,
        status=InstanceStatus(row["status"]),
        provider_type=row["provider_type"],
        image=row["image"],
        location=row["location"],
        ipv4=ipv4 if row["addressed"] and not row["ipv6_only"] else None,
        ipv6=ipv6 if row["addressed"] else None,
        cores=offer.cores,
        memory_gb=offer.memory_gb,
        disk_gb=row["disk_gb"],
        traffic=traffic,
        type=offer.type,
    )


def _op_state(handle: str, row: sqlite3.Row | None, now_ms: int) -> OpState:
    if row is None:
        return OpState(
            handle=handle,
            status=OpStatus.ERROR,
            error_code=RefusedCode.NOT_FOUND.value,
            error_message="nobody knows this op",
        )
    if now_ms < row["finishes_ms"]:
        return OpState(handle=handle, status=OpStatus.RUNNING)
    if row["error_code"] is None:
        return OpState(handle=handle, status=OpStatus.SUCCESS)
    return OpState(
        handle=handle,
        status=OpStatus.ERROR,
        error_code=row["error_code"],
        error_message=row["error_message"],
    )
