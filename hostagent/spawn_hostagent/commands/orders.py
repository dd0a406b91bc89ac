"""What the kinds of orders have in common, asked in one place."""

from spawn_schemas.ids import RentalId
from spawn_schemas.orders import (
    DestroyInstance,
    Exec,
    Logs,
    Order,
    ResumeInstance,
    StartInstance,
    StopInstance,
)

_OfRental = StartInstance | ResumeInstance | StopInstance | DestroyInstance | Logs | Exec


def rental_of(order: Order) -> RentalId | None:
    """Whose it is; None for an order to the host itself."""
    return order.rental_id if isinstance(order, _OfRental) else None


def generation_of(order: Order) -> int:
    """Which generation of its rental it is about; -1 for an order to the host itself."""
    return order.generation if isinstance(order, _OfRental) else -1


def changes_something(order: Order) -> bool:
    """Whether it changes a rental, so that it must be alone with it; logs and exec may run beside others."""
    return isinstance(order, StartInstance | ResumeInstance | StopInstance | DestroyInstance)
