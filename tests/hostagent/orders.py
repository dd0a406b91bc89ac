"""Orders and commands as a service would give them, shortened for tests."""

import itertools
from typing import Any

from spawn_schemas.ids import CommandId, RentalId
from spawn_schemas.orders import Command, DestroyInstance, Exec, Order, StartInstance, StopInstance

from tests.hostagent.clocks import START_S

IMAGE = "images.test/base@sha256:" + "a" * 64
HOUR = 3600
A, B = RentalId("srv_a"), RentalId("srv_b")

_numbers = itertools.count(1)


def start(
    rental_id: RentalId = A, generation: int = 1, lease: int = START_S + HOUR, **more: Any
) -> StartInstance:
    return StartInstance(
        rental_id=rental_id,
        generation=generation,
        image=IMAGE,
        hostname="web",
        cpus=1,
        memory_mib=256,
        disk_mib=1024,
        lease_expires_at=lease,
        **more,
    )


def stop(rental_id: RentalId = A, generation: int = 1) -> StopInstance:
    return StopInstance(rental_id=rental_id, generation=generation)


def destroy(rental_id: RentalId = A, generation: int = 1) -> DestroyInstance:
    return DestroyInstance(rental_id=rental_id, generation=generation)


def execute(*argv: str, rental_id: RentalId = A, generation: int = 1) -> Exec:
    return Exec(rental_id=rental_id, generation=generation, argv=argv)


def command(order: Order, *, expires_at: int = START_S + 600, name: str | None = None) -> Command:
    return Command(command_id=CommandId(name or f"cmd_{next(_numbers)}"), expires_at=expires_at, order=order)
