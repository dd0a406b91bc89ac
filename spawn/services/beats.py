"""The heartbeat of a host that cannot hold a socket: the same commands, reports and answers, in one plain call.

Invariant: three forms are read, ours and those of the two programs that were there before; each says the same things,
and none says who calls: the signature does.
"""

from typing import Any, Final

import msgspec
from msgspec.structs import replace
from spawn_ledger.tx import Tx
from spawn_schemas import hosts as wire
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Entropy
from spawn_schemas.inventory import Metrics

from spawn.domain.hosts import BEAT_PLAIN_S, Host, HostState
from spawn.services import host_reports
from spawn.services.hosts import unproven
from spawn.store import hosts
from spawn.store.secrets import Vault

_MIB_PER_GB: Final = 1024
_STATUSES: Final = {"online", "draining", "drained"}


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """What a heartbeat says, in our words. `lists_rentals`: all that there is was named."""

    beat: wire.Beat
    host_id: str | None = None
    lists_rentals: bool = False


def read(body: bytes) -> Heard:
    """Raises invalid_request."""
    try:
        whole = msgspec.json.decode(body, type=dict[str, Any])
        if whole.get("event") == "heartbeat":
            return _of_events(msgspec.convert(whole.get("data"), dict[str, Any]))
        if "hostId" in whole:
            return _of_host_id(whole)
        return Heard(beat=msgspec.json.decode(body, type=wire.Beat), lists_rentals="rentals" in whole)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise SpawnError(
            Code.INVALID_REQUEST,
            f"This is no heartbeat: {error}.",
            next='Send {"status": "online", "metrics": {…}, "rentals": […], "acks": […]}.',
        ) from error


def _of_events(data: dict[str, Any]) -> Heard:
    """{"event": "heartbeat", "data": {"node_id": …, "status": …, "metrics": {"cpu_temp": …, …}}}."""
    said = msgspec.convert(data.get("metrics", {}), dict[str, Any])
    disk_gb = said.get("disk_usage_gb")
    metrics = {
        "cpu_temp_c": said.get("cpu_temp"),
        "gpu_temp_c": said.get("gpu_temp") or (),
        "gpu_utilization_percent": said.get("gpu_utilization") or (),
        "memory_used_mib": said.get("ram_usage_mb"),
        "disk_used_mib": None if disk_gb is None else round(msgspec.convert(disk_gb, float) * _MIB_PER_GB),
    }
    status = data.get("status", "online")
    beat = wire.Beat(status=status if status in _STATUSES else "online", metrics=_metrics(metrics))
    return Heard(beat=beat, host_id=msgspec.convert(data.get("node_id"), str | None))


def _of_host_id(whole: dict[str, Any]) -> Heard:
    """{"hostId": …, "metrics": {"cpuUsage": …, "ramUsage": …, "diskUsage": …, "agentCount": …}}, in percent."""
    said = msgspec.convert(whole.get("metrics", {}), dict[str, Any])
    metrics = {
        "cpu_percent": said.get("cpuUsage"),
        "memory_percent": said.get("ramUsage"),
        "disk_percent": said.get("diskUsage"),
    }
    return Heard(beat=wire.Beat(metrics=_metrics(metrics)), host_id=msgspec.convert(whole["hostId"], str))


def _metrics(values: dict[str, Any]) -> Metrics:
    return msgspec.convert(values, Metrics)


def heard(tx: Tx, vault: Vault, entropy: Entropy, host: Host, told: Heard, now: int) -> wire.BeatAnswered:
    """Write the heartbeat down; answers what is to be done. Raises invalid_signature for a host revoked meanwhile."""
    known = hosts.find(tx, host.id)
    if known is None or known.state is HostState.REVOKED:
        raise unproven()
    beat = told.beat
    seen = replace(
        known,
        last_seen=max(known.last_seen or 0, now),
        beat_s=BEAT_PLAIN_S,
        metrics=msgspec.json.encode(beat.metrics).decode(),
        agent_status=beat.status,
    )
    hosts.save(tx, known, seen)
    host_reports.acknowledge_all(tx, vault, host.id, beat.acks, now)
    if told.lists_rentals:
        host_reports.synced(tx, entropy, seen, beat.rentals, beat.inventory, beat.status, now)
    commands = host_reports.to_send(tx, vault, host.id, now, again_before=now + 1)
    current = hosts.find(tx, host.id) or seen
    generation, desired = host_reports.desired_of(tx, current, now)
    return wire.BeatAnswered(
        ok=True, commands=tuple(commands), desired=desired, desired_generation=generation, next_s=BEAT_PLAIN_S
    )
