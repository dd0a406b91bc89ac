"""What was written down is there after any end of the daemon, and a broken file is kept and said to be broken."""

import logging
import sqlite3
import stat
from pathlib import Path

import pytest
from spawn_hostagent.commands import journal as journal_module
from spawn_hostagent.commands import journal_file
from spawn_hostagent.commands.journal import ASKED_KEPT_S, KEPT_S, Generations, Journal, Stage
from spawn_hostagent.commands.journal_file import JournalError
from spawn_schemas.orders import Ack, Command, Desired, Drain, Logs

from tests.hostagent.clocks import START_S
from tests.hostagent.orders import HOUR, A, B, command, destroy, execute, start, stop


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def ended(name: str) -> Ack:
    return Ack(command_id=command(Drain(), name=name).command_id, state="succeeded", result={"n": 1})


def wanted(generation: int = 1, lease: int = START_S + HOUR) -> Desired:
    return Desired(rental_id=A, generation=generation, state="running", lease_expires_at=lease)


def test_a_command_goes_from_received_to_running_to_its_end(path: Path) -> None:
    journal = Journal.open(path)
    order = command(start(), name="c")
    assert journal.receive(order, START_S).is_new
    assert not journal.receive(order, START_S).is_new
    assert journal.unfinished() == ((order, Stage.RECEIVED),)
    journal.begin(order.command_id, START_S)
    journal.close()
    journal = Journal.open(path)
    assert journal.unfinished() == ((order, Stage.RUNNING),)
    journal.finish(order, ended("c"), START_S)
    journal.close()
    journal = Journal.open(path)
    assert journal.unfinished() == ()
    assert journal.receive(order, START_S).ack == ended("c")
    assert journal.untold() == (ended("c"),)
    journal.told([order.command_id])
    assert journal.untold() == ()
    assert journal.receive(order, START_S).ack == ended("c")
    journal.close()


def test_an_end_is_final(path: Path) -> None:
    journal = Journal.open(path)
    order = command(start(), name="c")
    journal.receive(order, START_S)
    journal.finish(order, ended("c"), START_S)
    journal.begin(order.command_id, START_S)
    journal.finish(order, Ack(command_id=order.command_id, state="failed"), START_S)
    assert journal.receive(order, START_S).ack == ended("c")
    journal.close()


def test_secrets_of_an_order_are_gone_with_its_end(path: Path) -> None:
    journal = Journal.open(path)
    order = command(start(env={"TOKEN": "hunter-two"}, host_key="a private key"))
    journal.receive(order, START_S)
    assert b"hunter-two" in b"".join(file.read_bytes() for file in path.parent.iterdir())
    journal.finish(order, Ack(command_id=order.command_id, state="succeeded"), START_S)
    journal.close()
    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"hunter-two" not in left
    assert b"a private key" not in left


def test_nobody_else_reads_it(path: Path) -> None:
    journal = Journal.open(path)
    journal.receive(command(start()), START_S)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert len(modes) > 1
    assert set(modes.values()) == {0o600}
    journal.close()


def test_told_results_are_forgotten_in_time_and_untold_ones_never(path: Path) -> None:
    journal = Journal.open(path)
    told, untold, lasting = (
        command(start()),
        command(start(B)),
        command(start(), expires_at=START_S + 10 * KEPT_S),
    )
    for order in (told, untold, lasting):
        journal.receive(order, START_S)
        journal.finish(order, Ack(command_id=order.command_id, state="succeeded"), START_S)
    journal.told([told.command_id, lasting.command_id])
    journal.prune(START_S + KEPT_S)
    assert not journal.receive(told, START_S).is_new
    journal.prune(START_S + KEPT_S + 601)
    assert not journal.receive(untold, START_S).is_new
    assert not journal.receive(lasting, START_S).is_new, "it has not expired: forgotten, it would begin again"
    assert journal.receive(told, START_S).is_new
    journal.close()


def answered(journal: Journal, order: Command, text: str, at_s: int = START_S) -> Ack:
    ack = Ack(command_id=order.command_id, state="succeeded", result={"stdout": text})
    journal.receive(order, at_s)
    journal.finish(order, ack, at_s)
    return ack


def test_what_a_tenant_was_answered_is_kept_for_an_hour(path: Path) -> None:
    journal = Journal.open(path)
    usual, lasting = command(execute("env")), command(execute("env"), expires_at=START_S + 10 * KEPT_S)
    orders = (usual, lasting, command(Logs(rental_id=A, generation=1)))
    acks = [answered(journal, order, "hunter-two") for order in orders]
    journal.prune(START_S + ASKED_KEPT_S)
    assert [journal.receive(order, START_S).ack for order in orders] == acks
    journal.prune(START_S + ASKED_KEPT_S + 1)
    again = journal.receive(lasting, START_S).ack
    assert (again and again.state, again and again.result) == ("succeeded", None), "it cannot begin again"
    assert [journal.receive(order, START_S).is_new for order in (usual, orders[2])] == [True, True]
    journal.close()
    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"hunter-two" not in left


def test_of_many_answers_the_oldest_go_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "ASKED_BYTES_MAX", 10_000)
    journal = Journal.open(path)
    orders = [command(execute("cat")) for _ in range(30)]
    for order in orders:
        answered(journal, order, "x" * 1000)
    kept = [bool(ack and ack.result) for ack in (journal.receive(order, START_S).ack for order in orders)]
    assert kept == sorted(kept), "the newest are kept"
    assert 4 <= sum(kept) <= 9
    journal.close()
    # What is there counts after a restart, too.
    journal = Journal.open(path)
    for _ in range(10 - sum(kept)):
        answered(journal, command(execute("cat")), "x" * 1000)
    rows = journal._db.execute("SELECT length(ack) FROM command").fetchall()
    assert sum(size > 1000 for (size,) in rows) <= 9
    journal.close()


def test_a_destroy_is_forgotten_in_time_though_it_may_begin_for_a_hundred_years(path: Path) -> None:
    journal = Journal.open(path)
    order = command(destroy(), expires_at=START_S + 100 * 365 * 86_400)
    journal.receive(order, START_S)
    journal.finish(order, Ack(command_id=order.command_id, state="succeeded"), START_S)
    journal.told([order.command_id])
    journal.prune(START_S + KEPT_S)
    assert not journal.receive(order, START_S).is_new
    journal.prune(START_S + KEPT_S + 1)
    assert journal.receive(order, START_S).is_new
    journal.close()


def test_a_journal_of_the_first_version_goes_on(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        first = journal_file._SCHEMA.replace(",\n    is_asked INTEGER NOT NULL DEFAULT 0", "")
        assert first != journal_file._SCHEMA
        connection.executescript(f"BEGIN; {first} PRAGMA user_version = 1; COMMIT;")
        connection.execute("INSERT INTO fact VALUES ('drained_by_owner', 1)")
    connection.close()
    journal = Journal.open(path)
    assert journal.fact("drained_by_owner") == 1
    order = command(execute("id"))
    assert answered(journal, order, "0") == journal.receive(order, START_S).ack
    journal.close()


def test_it_knows_the_generations_that_were_spoken_of(path: Path) -> None:
    journal = Journal.open(path)
    assert journal.generations(A, START_S).seen == -1
    orders = [command(start(generation=3)), command(destroy(generation=2)), command(stop(generation=1))]
    for order in orders:
        journal.receive(order, START_S)
    assert journal.generations(A, START_S) == Generations(seen=3, destroyed=2)
    for order in orders:
        journal.finish(order, Ack(command_id=order.command_id, state="succeeded"), START_S)
    assert journal.generations(A, START_S) == Generations(seen=3, destroyed=2)
    assert journal.generations(B, START_S) == Generations()
    journal.close()


def test_what_expired_or_failed_overtakes_nothing(path: Path) -> None:
    journal = Journal.open(path)
    newer, end = command(start(generation=2)), command(destroy(generation=1), expires_at=START_S + 5)
    journal.receive(newer, START_S)
    journal.receive(end, START_S)
    journal.finish(newer, Ack(command_id=newer.command_id, state="failed"), START_S)
    assert journal.generations(A, START_S + 5) == Generations()
    journal.begin(end.command_id, START_S)
    assert journal.generations(A, START_S + 5).destroyed == 1, "it has begun, and will end"
    journal.close()


def test_leases_follow_the_service_and_late_commands_do_not_shorten_them(path: Path) -> None:
    journal = Journal.open(path)
    journal.want([wanted(lease=START_S + 500)])
    late = command(start(lease=START_S + 100, up_mbit=7))
    journal.receive(late, START_S)
    journal.finish(late, Ack(command_id=late.command_id, state="succeeded"), START_S)
    assert journal.leases()[A, 1].expires_at == START_S + 500
    assert journal.up_mbit(A) == 7
    journal.want([wanted(lease=START_S + 50)])
    assert journal.leases()[A, 1].expires_at == START_S + 50
    assert journal.up_mbit(A) == 7
    journal.close()


def test_what_a_command_did_is_wanted_until_the_service_says_otherwise(path: Path) -> None:
    journal = Journal.open(path)

    def done(order: object) -> None:
        entry = command(order)  # type: ignore[arg-type]
        journal.receive(entry, START_S)
        journal.finish(entry, Ack(command_id=entry.command_id, state="succeeded"), START_S)

    done(start())
    assert journal.desired()[A] == wanted()
    done(stop())
    assert journal.desired()[A].state == "stopped"
    journal.want([wanted(generation=2)])
    done(destroy(generation=1))
    assert journal.desired()[A].generation == 2
    assert (A, 1) not in journal.leases()
    done(destroy(generation=2))
    assert journal.desired() == {}
    assert journal.leases() == {}
    journal.close()


def test_a_failed_command_grants_nothing(path: Path) -> None:
    journal = Journal.open(path)
    order = command(start())
    journal.receive(order, START_S)
    journal.finish(order, Ack(command_id=order.command_id, state="failed"), START_S)
    assert (journal.desired(), journal.leases()) == ({}, {})
    journal.close()


def test_the_same_word_again_is_not_written_again(path: Path) -> None:
    journal = Journal.open(path)
    journal.want([wanted()])
    changes = journal._db.total_changes
    journal.want([wanted()])
    assert journal._db.total_changes == changes
    journal.want([])
    assert journal.desired() == {}
    assert journal.leases() != {}, "its lease runs on: the service may be wrong for a while"
    journal.close()


@pytest.mark.parametrize("damage", [b"not a database at all", b"\0" * 5000])
def test_a_broken_file_is_set_aside_and_said(
    path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        path.write_bytes(damage)
        with caplog.at_level(logging.ERROR):
            journal = Journal.open(path)
        assert journal.set_aside == path.with_name(f"journal.db.broken-{number}")
        assert journal.set_aside.read_bytes() == damage
        assert str(journal.set_aside) in caplog.text
        assert journal.receive(command(start()), START_S).is_new
        journal.close()


def test_a_torn_page_is_found_at_the_start(path: Path) -> None:
    journal = Journal.open(path)
    for _ in range(200):
        journal.receive(command(start(env={"A": "x" * 200})), START_S)
    journal.close()
    content = bytearray(path.read_bytes())
    content[4096 * 5 : 4096 * 9] = b"\xff" * (4096 * 4)
    path.write_bytes(content)
    journal = Journal.open(path)
    assert journal.set_aside is not None
    journal.close()


def test_a_newer_daemons_journal_is_not_touched(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="newer spawn-host"):
        Journal.open(path)
    assert path.read_bytes() == before


def test_a_folder_that_takes_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal.open(tmp_path / "missing" / "journal.db")


def test_an_order_of_another_version_ends_as_failed(path: Path) -> None:
    journal = Journal.open(path)
    order = command(start())
    journal.receive(order, START_S)
    journal._db.execute('UPDATE command SET body = \'{"order": {"type": "teleport"}}\'')
    assert journal.unfinished() == ()
    [ack] = journal.untold()
    assert (ack.state, ack.problem and ack.problem.code) == ("failed", "internal")
    journal.close()
