"""`python -m tests.emulators.hetzner`: the emulator as a process, for a service on the other side of a socket.

Its first line says where it listens and with which token. Time runs `--speed` times as fast as ours.
"""

import argparse
import asyncio
import time

import uvicorn

from tests.emulators.hetzner.app import TOKEN, Emulator
from tests.emulators.hetzner.serving import config, listening


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.emulators.hetzner", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 for a free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", type=int, default=1, help="seconds of the emulated world per second")
    parser.add_argument(
        "--fault", action="append", default=[], metavar="KIND=PERMILLE", help="how often calls go wrong"
    )
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    began_ms, began = time.time_ns() // 10**6, time.monotonic()
    emulator = Emulator(
        lambda: began_ms + int((time.monotonic() - began) * 1_000 * arguments.speed), seed=arguments.seed
    )
    rates = dict(fault.split("=") for fault in arguments.fault)
    emulator.faults.set_rates(**{kind: int(permille) for kind, permille in rates.items()})
    with listening(arguments.port) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1 {TOKEN}", flush=True)
        asyncio.run(uvicorn.Server(config(emulator)).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
