"""What somebody at a terminal gets: progress in place, mistakes explained, an interrupt that says what was done."""

import io
import os
import pickle
import signal
import subprocess
import sys

import pytest

from tests.sim.__main__ import main
from tests.sim.life import Life, Violation
from tests.sim.programs import ROOT, TIMEOUT_S
from tests.sim.report import Tally, failure, mix, progress, replay, summary
from tests.sim.run import run
from tests.sim.terminal import IN_A_PIPE_EVERY_S, Terminal
from tests.sim.world import World, live

STEPS = 100


def a_life(number: int, violation: Violation | None = None) -> Life:
    return Life(
        seed="toy",
        number=number,
        steps=STEPS,
        moves=(1, 2, 3),
        violation=violation,
        trace_hash=f"{number:016x}",
        tail=("9 something happened",),
        lived_s=86_400,
        counts={"calls": 3, "move owner.create": 2, "cloud: lost answer": 1},
    )


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Patient(Terminal):
    """It was long ago that it told something."""

    def progress(self, line: str) -> None:
        self._told -= IN_A_PIPE_EVERY_S
        super().progress(line)


def test_on_a_terminal_progress_is_one_line() -> None:
    out = Screen()
    terminal = Patient(out)
    for line in ("1 world", "2 worlds", "x" * 10_000):
        terminal.progress(line)
    terminal.tell("done")
    terminal.tell("bye")
    written = out.getvalue()
    assert written.startswith("\r\x1b[K1 world\r\x1b[K2 worlds\r\x1b[K")
    assert written.endswith("x\r\x1b[Kdone\nbye\n")
    assert len(written) < 1_000


def test_in_a_pipe_progress_is_text_in_lines() -> None:
    out = io.StringIO()
    terminal = Patient(out)
    terminal.progress("1 world")
    Terminal.progress(terminal, "too soon")
    terminal.progress("2 worlds")
    assert out.getvalue() == "1 world\n2 worlds\n"


def test_worlds_are_lived_until_the_steps_are_full() -> None:
    result = run(a_life, steps=3 * STEPS - 1, shards=1, terminal=Terminal(io.StringIO()))
    assert (result.tally.steps, list(result.tally.worlds)) == (3 * STEPS, [0, 1, 2])
    assert result.failed is None
    assert not result.is_stopped


def test_a_run_ends_with_the_first_world_that_fails() -> None:
    broken = Violation("paid", "too much", move=2, step=STEPS)
    result = run(
        lambda number: a_life(number, broken if number == 2 else None),
        steps=100 * STEPS,
        shards=1,
        terminal=Terminal(io.StringIO()),
    )
    assert result.failed is not None
    assert result.failed[0] == 2
    assert result.tally.violations == 1


def test_an_interrupted_run_says_what_was_lived() -> None:
    def lives(number: int) -> Life:
        if number == 2:
            raise KeyboardInterrupt
        return a_life(number)

    result = run(lives, steps=100 * STEPS, shards=1, terminal=Terminal(io.StringIO()))
    assert result.is_stopped
    assert (result.tally.steps, result.failed) == (2 * STEPS, None)


def test_what_is_told_of_a_run() -> None:
    tally = Tally()
    tally.add(0, a_life(0))
    tally.add(1, a_life(1, Violation("paid", "too much", move=2, step=7)))
    assert "200 steps (100/s)  2 worlds" in progress(tally, 2.0)
    assert mix(tally) == "moves: owner.create 4\nfaults: cloud: lost answer 2"
    assert summary(tally, 2.0).startswith("200 steps, 2 worlds, 0.01 virtual years, 6 calls, 0 commits")
    assert "; 1 violation in 2 s; trace " in summary(tally, 2.0)


def test_what_is_told_of_a_failure() -> None:
    told = failure(a_life(4, Violation("paid", "too much", move=2, step=7)), seed="a b", number=4)
    assert told.startswith("VIOLATION of 'paid': too much\nseed a b, world 4, move 2, step 7;")
    assert "  9 something happened\n" in told
    again = replay("python -m tests.sim", seed="a b", number=4, moves=(1, 2, 3, 7))
    assert again == "python -m tests.sim --seed 'a b' --world 4 --moves 1-3,7"


def test_a_long_list_is_broken_between_two_things() -> None:
    tally = Tally()
    tally.counts.update({f"cloud: lost answer {number}": number for number in range(100)})
    lines = mix(tally).splitlines()
    assert max(map(len, lines)) <= 110
    assert all(line.endswith(",") for line in lines[1:-1])


def test_an_agent_that_fails_ends_its_life_and_is_told_of() -> None:
    def stumble(world: World) -> None:
        if "-- move 3: " in world.trace.tail[-1]:
            raise LookupError("the agent fell")

    lived = live("stumble", 0, moves=range(1, 5), on_step=stumble)
    life: Life = pickle.loads(pickle.dumps(lived))  # noqa: S301 - as it comes from another process
    assert life.violation is not None
    assert (life.violation.promise, life.violation.move) == ("crash", 3)
    assert "the agent fell" in life.violation.text
    assert "in stumble" in failure(life, seed="stumble", number=0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--steps", "1,000"), "invalid int value: '1,000'"),
        (("--steps", "0"), "at least 1"),
        (("--shards", "-1"), "at least 1"),
        (("--world", "3"), "name it as well"),
        (("--seed", "7", "--world", "-3"), "numbered from 0"),
        (("--seed", "7", "--moves", "3"), "name it as well"),
        (("--seed", "7", "--world", "1", "--moves", "9-3"), "write 3,5-9,17"),
        (("--seed", "a\nb"), "can be printed"),
        (("--plant", "a rose"), "lost refund"),
        (("--trace", "/nowhere/at/all"), "in a folder that exists"),
    ],
)
def test_a_mistake_is_explained(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_ctrl_c_ends_all_processes_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.sim", "--steps", "1000000", "--seed", "7", "--shards", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        # As a terminal does: to each process of the group.
        os.killpg(running.pid, signal.SIGINT)
        said = running.communicate(timeout=TIMEOUT_S)[0]
    assert first == "seed 7: 1,000,000 steps and the rest of their world, in 2 processes\n"
    assert said.startswith("stopped; ")
    assert "Traceback" not in said
    assert running.returncode == 130
