"""`make bench-settlement`: our relayer beside other ways to settle on the same anvil, and what a payment costs in gas.

It measures; it never passes or fails on a time. It fails when the chain does not show every payment once.
"""

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from spawn.payments.exact import ExactPayment
from tests.bench import settlement_gas
from tests.bench.processes import cores, pinned, priority
from tests.bench.result import Machine, machine
from tests.bench.settlement_report import (
    Gas,
    Line,
    Sample,
    gas_table,
    lines_table,
    medians,
    ratios,
    sample,
)
from tests.bench.settlement_stage import require_settled, signed_payments, stage
from tests.bench.settlement_ways import Settle, Way, ways
from tests.engines import ENGINES

_OUTPUT: Final = Path("bench-settlement-result.json")
_WAKE_S: Final = 0.005
_WARM_UP: Final = 10
"""Payments that do not count, before each round."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run."""

    machine: Machine
    versions: dict[str, str]
    gas: list[Gas]
    lines: list[Line]


def main(arguments: Sequence[str]) -> None:
    options = _options(arguments)
    if not sys.platform.startswith("linux"):
        sys.exit("The benchmark pins processes to cores, which only Linux offers.")
    if not ENGINES["anvil"]():
        sys.exit("anvil comes from npm: install Node and npm first.")
    chain_core, our_core = cores()
    with priority(options.nice), pinned(our_core):
        # Threads of libraries that were started at import have any core; those that follow have ours.
        result = uvloop.run(_measure(options, chain_core, our_core))
    print(_text(options, result))
    options.output.write_bytes(_encode(result))
    print(f"written to {options.output}")


async def _measure(options: argparse.Namespace, chain_core: int, our_core: int) -> Result:
    chosen = ways(payments=options.payments, in_flight=options.in_flight)
    chosen = tuple(way for way in chosen if not options.only or way.name.startswith(tuple(options.only)))
    _say("gas")
    gas = await settlement_gas.measure(chain_core)
    _say(f"signing {options.payments} payments")
    payments = signed_payments(options.payments + _WARM_UP)
    gc.collect()
    gc.freeze()  # as the service does at start: what the libraries keep is not looked at again and again
    seen: dict[str, list[Sample]] = {way.name: [] for way in chosen}
    for number in range(1, options.rounds + 1):
        for way in chosen:
            one = await _round(way, payments, chain_core)
            seen[way.name].append(one)
            _say(
                f"round {number} of {options.rounds}: {way.name:17} {one.per_s:8,.0f}/s {one.cpu_us:8,.0f} us"
            )
    return Result(
        machine=machine(chain_core, our_core),
        versions={name: version(name) for name in ("web3", "x402", "uvloop", "coincurve")},
        gas=gas,
        lines=[Line(way=way.name, what=way.what, rounds=tuple(seen[way.name])) for way in chosen],
    )


async def _round(way: Way, payments: Sequence[ExactPayment], core: int) -> Sample:
    """Settle on a chain of its own, watching the event loop."""
    with stage(core) as chain:
        async with way.open(chain) as settle:
            await settle(payments[:_WARM_UP])
            before = require_settled(chain, payments[:_WARM_UP])
            chosen = payments[_WARM_UP : _WARM_UP + way.payments]
            wall_s, cpu_s, lags_s = await _watched(settle, chosen)
        after = require_settled(chain, payments[: _WARM_UP + way.payments])
    return sample(
        payments=len(chosen), transactions=after - before, wall_s=wall_s, cpu_s=cpu_s, lags_s=lags_s
    )


async def _watched(settle: Settle, payments: Sequence[ExactPayment]) -> tuple[float, float, list[float]]:
    """Seconds on the clock and of our processor, and how late the event loop was meanwhile."""
    lags_s: list[float] = []
    watching = asyncio.create_task(_watch(lags_s))
    await asyncio.sleep(_WAKE_S)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await settle(payments)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    await asyncio.sleep(2 * _WAKE_S)  # what held the loop up to the end is seen, too
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    return wall_s, cpu_s, lags_s


async def _watch(lags_s: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_WAKE_S)
        lags_s.append(max(0.0, time.perf_counter() - before - _WAKE_S))


def _text(options: argparse.Namespace, result: Result) -> str:
    """The whole run for people."""
    where = result.machine
    words = (
        f"Medians of {options.rounds} rounds, each on a new anvil that mines every transaction at once; anvil on core "
        f"{where.server_core}, we on core {where.load_core}.\nlag: how late a coroutine wakes that sleeps for 5 ms."
    )
    return "\n" + "\n\n".join((gas_table(result.gas), lines_table(result.lines), words))


def _encode(result: Result) -> bytes:
    """The result with what follows from it: medians and ratios."""
    kept = msgspec.to_builtins(result)
    for entry, line in zip(kept["lines"], result.lines, strict=True):
        entry["median"] = msgspec.to_builtins(medians(line))
    kept["ratios"] = ratios(result.lines)
    return msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.settlement", description=__doc__)
    parser.add_argument("--payments", type=int, default=5000, help="of ours in a round [%(default)s]")
    parser.add_argument("--in-flight", type=int, default=400, help="of ours at a time [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="ways that begin so [all]")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="priority of us and anvil on a busy machine, as nice(1) has it [0]",
    )
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="the result as JSON [%(default)s]")
    return parser.parse_args(arguments)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
