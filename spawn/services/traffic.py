"""What looks at machines tell of their traffic: counted, priced and charged in one transaction.

Invariant: a look that was recorded is not recorded again, whoever took it and whatever crashed; no look is taken for
this. A server that is frozen, or not there yet, pays for nothing that its machine sends.
"""

from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_providers.base import Instance
from spawn_schemas import api
from spawn_schemas.ids import ServerId
from spawn_schemas.money import Usdc, format_usdc

from spawn.domain import traffic
from spawn.domain.servers import FINAL, Command, Server
from spawn.services import overage
from spawn.services.billing import Billing
from spawn.store import operations, servers
from spawn.store import traffic as rows
from spawn.store.traffic import Metered


def seen(tx: Tx, billing: Billing, server_id: ServerId, instance: Instance, now: int) -> None:
    """Charge what the machine sent since the look before, as far as there is money for it."""
    server = servers.get_server(tx, server_id)
    if instance.traffic is None or server.provider_ref != instance.ref:
        return
    if server.frozen:
        began(tx, server, instance, now)
    if server.meter is None:
        return
    metered = _metered(tx, server, now)
    priced = traffic.read(metered.counted, instance.traffic, server.pin, now)
    if priced.counted == metered.counted:
        return
    if priced.charge_usdc or priced.cost_usdc:
        running = operations.find_running(tx, server_id)
        if running is not None and running.command is Command.CREATE:
            return  # a machine that never comes costs its owner nothing
    metered = replace(metered, counted=priced.counted)
    rows.put(tx, server_id, overage.cost(tx, server, metered, priced.cost_usdc, now))
    if priced.charge_usdc > 0:
        _charge(tx, billing, server, priced.charge_usdc, now)


def _charge(tx: Tx, billing: Billing, server: Server, amount: Usdc, now: int) -> None:
    """What is burnt by now is older, and paid first."""
    billing.settle(tx, server.wallet, now)
    server = servers.get_server(tx, server.id)
    if server.meter is None:
        overage.unpaid(tx, server, amount, now, "late")
        return
    owing = replace(server, traffic_owed_usdc=Usdc(server.traffic_owed_usdc + amount))
    servers.update_server(tx, server, owing)
    billing.reschedule(tx, server.wallet, now)


def began(tx: Tx, server: Server, instance: Instance, now: int) -> None:
    """What the machine has sent so far is nobody's to pay."""
    counted = traffic.begun(server.pin, now, before=instance.traffic)
    rows.put(tx, server.id, replace(rows.find(tx, server.id) or Metered(counted=counted), counted=counted))


def last_seen(tx: Tx, server: Server, instance: Instance, now: int) -> None:
    """The last look, at a machine whose bill is closed: what it sent since the look before costs its owner nothing."""
    if instance.traffic is None or server.metered_from is None or server.status in FINAL:
        return
    metered = _metered(tx, server, now)
    priced = traffic.read(metered.counted, instance.traffic, server.pin, now)
    metered = replace(metered, counted=replace(priced.counted, month_usdc=metered.counted.month_usdc))
    rows.put(tx, server.id, overage.cost(tx, server, metered, priced.cost_usdc, now, is_lost=True))


def view(tx: Tx, server: Server, now: int) -> api.TrafficView | None:
    """What this month has come to; None where nobody counts and nothing is asked."""
    metered = rows.find(tx, server.id)
    if metered is None and server.tb_usdc is None:
        return None
    counted = traffic.at(_counted(metered, server, now), server.pin, now)
    return api.TrafficView(
        ingoing_bytes=counted.ingoing_bytes,
        outgoing_bytes=counted.outgoing_bytes,
        included_bytes=counted.included_bytes,
        overage_usdc_per_tb=None if server.tb_usdc is None else format_usdc(server.tb_usdc),
        charged=format_usdc(counted.month_usdc),
    )


def _metered(tx: Tx, server: Server, now: int) -> Metered:
    return rows.find(tx, server.id) or Metered(counted=traffic.begun(server.pin, now))


def _counted(metered: Metered | None, server: Server, now: int) -> traffic.Counted:
    return traffic.begun(server.pin, now) if metered is None else metered.counted
