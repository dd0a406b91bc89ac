"""How the simulated cloud behaves: what it accepts, and which states then follow for how long.

Invariant: pure. A machine's life is a list of moments written down when a call is accepted, and its present
is the last of them that has passed; so nothing runs in the background and a restart changes nothing.
The behaviour is that of Hetzner Cloud's public API, whose words the states are.
"""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from string import ascii_letters, digits
from typing import Final, assert_never

import msgspec

from spawn_providers.base import Change, InstanceStatus, Refused, RefusedCode, Spec, Verb
from spawn_providers.catalog import DEFAULT_CATALOG, Offer

USER_DATA_BYTES_MAX: Final = 32 * 1024

# RFC 2544 keeps 198.18.0.0/15 for benchmarks and RFC 3849 keeps 2001:db8::/32 for documentation:
# nothing that is written to these addresses can reach a stranger.
_IPV4_BASE: Final = int(IPv4Address("198.18.0.0"))
_IPV4_HOSTS: Final = 2**17 - 2
_IPV6_BASE: Final = int(IPv6Address("2001:db8::"))

Seconds = tuple[int, int]
"""The shortest and the longest that a state lasts."""

_INSTALL: Final[Seconds] = (10, 20)
_BOOT: Final[Seconds] = (10, 20)
_GUEST_STOP: Final[Seconds] = (4, 12)
_POWER_CUT: Final[Seconds] = (1, 2)
_MIGRATE: Final[Seconds] = (15, 30)
_WIPE: Final[Seconds] = (5, 10)
_DELETE: Final[Seconds] = (1, 3)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine is from some time on. A status of None means gone."""

    status: InstanceStatus | None
    provider_type: str
    image: str
    disk_gb: int
    addressed: bool


class Step(msgspec.Struct, frozen=True, kw_only=True):
    after_ms: int
    moment: Moment


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What an accepted call sets in motion, at speed 1. Its op ends after `op_ms`."""

    steps: tuple[Step, ...] = ()
    op_ms: int = 0


def find_offer(provider_type: str, location: str) -> Offer | None:
    offers = DEFAULT_CATALOG.offers
    return next((o for o in offers if o.provider_type == provider_type and o.location == location), None)


def get_offer(provider_type: str, location: str) -> Offer:
    """The offer for this pair; raises `Refused(invalid)` where the type is not sold."""
    offer = find_offer(provider_type, location)
    if offer is None:
        raise Refused(RefusedCode.INVALID, f"server type {provider_type} is not sold in {location}")
    return offer


def check_spec(spec: Spec) -> None:
    """Raise `Refused(invalid)` unless this machine can be ordered."""
    get_offer(spec.provider_type, spec.location)
    _check_image(spec.image)
    _check_user_data(spec.user_data)


def _check_image(image: str) -> None:
    if all(known.name != image for known in DEFAULT_CATALOG.images):
        raise Refused(RefusedCode.INVALID, f"there is no image {image}")


def _check_user_data(text: str | None) -> None:
    if text is not None and len(text.encode()) > USER_DATA_BYTES_MAX:
        raise Refused(RefusedCode.INVALID, "user_data is larger than 32 KiB")


def creation(spec: Spec, dice: random.Random) -> Course:
    """From order to running; the address is there once it runs."""
    new = Moment(
        status=InstanceStatus.INITIALIZING,
        provider_type=spec.provider_type,
        image=spec.image,
        disk_gb=get_offer(spec.provider_type, spec.location).disk_gb,
        addressed=False,
    )
    stages = ((new, _INSTALL), (_turned(new, InstanceStatus.STARTING), _BOOT))
    return _course(dice, stages, running(new))


def deletion(present: Moment, dice: random.Random) -> Course:
    gone = msgspec.structs.replace(present, status=None)
    return _course(dice, ((_turned(present, InstanceStatus.DELETING), _DELETE),), gone)


def action(verb: Verb, present: Moment, change: Change, location: str, dice: random.Random) -> Course:
    """What follows from `verb`; raises `Refused` where the machine's state or the change forbids it.

    Verbs that ask for a state which already holds succeed without effect, so that repeating one whose
    answer was lost is safe.
    """
    match verb:
        case Verb.START:
            return _start(present, dice)
        case Verb.SHUTDOWN | Verb.POWEROFF:
            return _stop(verb, present, dice)
        case Verb.REBOOT:
            return _reboot(present, dice)
        case Verb.RESIZE:
            return _resize(present, change, location, dice)
        case Verb.REBUILD:
            return _rebuild(present, change, dice)
        case Verb.RESET_PASSWORD:
            _require(present, InstanceStatus.RUNNING)
            return Course()
        case _:
            assert_never(verb)


def _start(present: Moment, dice: random.Random) -> Course:
    if present.status in (InstanceStatus.RUNNING, InstanceStatus.STARTING):
        return Course()
    _require(present, InstanceStatus.OFF)
    return _course(dice, ((_turned(present, InstanceStatus.STARTING), _BOOT),), running(present))


def _stop(verb: Verb, present: Moment, dice: random.Random) -> Course:
    if present.status is InstanceStatus.OFF:
        return Course()
    _require(present, InstanceStatus.RUNNING, InstanceStatus.STARTING, InstanceStatus.STOPPING)
    off = _turned(present, InstanceStatus.OFF)
    if verb is Verb.POWEROFF:
        return _course(dice, ((present, _POWER_CUT),), off)
    return _only_sent(_course(dice, ((_turned(present, InstanceStatus.STOPPING), _GUEST_STOP),), off))


def _reboot(present: Moment, dice: random.Random) -> Course:
    _require(present, InstanceStatus.RUNNING)
    stages = (
        (_turned(present, InstanceStatus.STOPPING), _GUEST_STOP),
        (_turned(present, InstanceStatus.STARTING), _BOOT),
    )
    return _only_sent(_course(dice, stages, present))


def _resize(present: Moment, change: Change, location: str, dice: random.Random) -> Course:
    """Only when off, and it is running afterwards: so Hetzner documents its `change_type`."""
    if change.provider_type is None:
        raise Refused(RefusedCode.INVALID, "a resize names the new provider_type")
    new = get_offer(change.provider_type, location)
    old = get_offer(present.provider_type, location)
    if new.provider_type == old.provider_type:
        raise Refused(RefusedCode.CONFLICT, f"it is a {old.provider_type} already")
    if new.architecture != old.architecture:
        raise Refused(
            RefusedCode.CONFLICT, f"{new.provider_type} is {new.architecture}, not {old.architecture}"
        )
    if new.disk_gb < present.disk_gb:
        raise Refused(
            RefusedCode.CONFLICT, f"a disk of {present.disk_gb} GB cannot shrink to {new.disk_gb} GB"
        )
    _require(present, InstanceStatus.OFF)
    resized = msgspec.structs.replace(
        present,
        provider_type=new.provider_type,
        disk_gb=new.disk_gb if change.upgrade_disk else present.disk_gb,
    )
    stages = (
        (_turned(present, InstanceStatus.MIGRATING), _MIGRATE),
        (_turned(resized, InstanceStatus.STARTING), _BOOT),
    )
    return _course(dice, stages, running(resized))


def _rebuild(present: Moment, change: Change, dice: random.Random) -> Course:
    if change.image is None:
        raise Refused(RefusedCode.INVALID, "a rebuild names the new image")
    _check_image(change.image)
    _check_user_data(change.user_data)
    rebuilt = msgspec.structs.replace(present, image=change.image)
    stages = (
        (_turned(present, InstanceStatus.REBUILDING), _WIPE),
        (_turned(rebuilt, InstanceStatus.INITIALIZING), _INSTALL),
    )
    return _course(dice, stages, running(rebuilt))


def breakdown(course: Course, rest: Moment | None) -> Course:
    """`course` stopped half-way: the machine falls back to `rest`, or stays where it was when it had none."""
    half_ms = course.op_ms // 2
    back = () if rest is None else (Step(after_ms=half_ms, moment=rest),)
    return Course(steps=course.steps[:1] + back, op_ms=half_ms)


def password(dice: random.Random) -> str:
    return "".join(dice.choices(ascii_letters + digits, k=20))


def addresses(number: int) -> tuple[str, str]:
    """IPv4 and IPv6 of the world's `number`-th machine; an IPv4 comes round again after 131,070 machines."""
    ipv4 = IPv4Address(_IPV4_BASE + 1 + (number - 1) % _IPV4_HOSTS)
    return str(ipv4), str(IPv6Address(_IPV6_BASE + (number << 64) + 1))


def month_start_ms(now_ms: int) -> int:
    """When the calendar month (UTC) of this moment began."""
    month = datetime.fromtimestamp(now_ms // 1000, UTC).replace(day=1, hour=0, minute=0, second=0)
    return int(month.timestamp()) * 1000


def included_bytes(location: str) -> int:
    """How much may be sent for nothing in a month."""
    return max((o.included_bytes for o in DEFAULT_CATALOG.offers if o.location == location), default=0)


def traffic(running_ms: int, dice: random.Random) -> tuple[int, int]:
    """Bytes in and out after this long at work, at a steady rate of each machine's own."""
    ingoing_per_s, outgoing_per_s = dice.randint(500, 50_000), dice.randint(500, 20_000)
    return running_ms * ingoing_per_s // 1000, running_ms * outgoing_per_s // 1000


def _course(dice: random.Random, stages: Sequence[tuple[Moment, Seconds]], rest: Moment) -> Course:
    steps = []
    at_ms = 0
    for moment, (shortest_s, longest_s) in stages:
        steps.append(Step(after_ms=at_ms, moment=moment))
        at_ms += dice.randint(shortest_s * 1000, longest_s * 1000)
    steps.append(Step(after_ms=at_ms, moment=rest))
    return Course(steps=tuple(steps), op_ms=at_ms)


def _only_sent(course: Course) -> Course:
    """An ACPI request: the op is over once it was sent, long before the guest obeys."""
    return msgspec.structs.replace(course, op_ms=0)


def _turned(moment: Moment, status: InstanceStatus) -> Moment:
    return msgspec.structs.replace(moment, status=status)


def running(moment: Moment) -> Moment:
    """The same machine, up and with its address."""
    return msgspec.structs.replace(moment, status=InstanceStatus.RUNNING, addressed=True)


def _require(present: Moment, *allowed: InstanceStatus) -> None:
    if present.status not in allowed:
        state = "gone" if present.status is None else present.status.value
        wanted = " or ".join(status.value for status in allowed)
        raise Refused(RefusedCode.CONFLICT, f"the server is {state}; it must be {wanted}")
