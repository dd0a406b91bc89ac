"""What the first life of a machine does not show: its name again, no IPv4, keys, user data, protection.

Nothing inside of a machine can be seen from outside but its power. So its user data powers it off if it finds there
what it should: the other part of the message that it came in, and the keys that may log in.
Invariant: everything is ordered under the key of the run, so that whoever cleans up after it finds it.
"""

import asyncio
from typing import Final

from spawn_providers import cloud_init
from spawn_providers.base import Change, Instance, InstanceStatus, Spec, Verb
from spawn_providers.catalog import Offer
from spawn_schemas.ids import Address

from tests.live.bench import Bench, Broken

OWNER: Final = Address("0x" + "11" * 20)
BOOT_S: Final = 400
"""How long cloud-init may take until it has run what it was given."""
SIGN: Final = "/var/lib/spawn-live"
"""The file that one part of the user data writes and the other looks for."""
KEYS: Final = "/root/.ssh/authorized_keys"


async def second_life(bench: Bench, offer: Offer, image: str) -> None:
    """Order, rebuild and destroy it. Raises Broken or `ProviderError`."""
    ref = await _order(bench, offer, image)
    await _rebuild(bench, ref, image)
    await _delete(bench, ref)


def user_data(*, has: str, lacks: str | None = None) -> str:
    """A script that powers its machine off if all is as it should be, joined with a part of ours that it needs."""
    checks = [f"[ -f {SIGN} ]", f"grep -q {_blob(has)} {KEYS}"]
    if lacks is not None:
        checks.append(f"! grep -q {_blob(lacks)} {KEYS}")
    script = f"#!/bin/sh\n{' && '.join(checks)} && poweroff\n"
    ours = cloud_init.config({"write_files": [{"path": SIGN, "content": "there"}]})
    joined = cloud_init.joined(script, ours)
    if joined is None:
        raise Broken("two parts of user data made none")
    return joined


def _blob(public_key: str) -> str:
    return public_key.split()[1]


async def _order(bench: Bench, offer: Offer, image: str) -> str:
    print(f"order it again as {bench.name}, without IPv4, with a key and user data")
    first, _ = bench.public_keys
    spec = Spec(
        hostname="spawn-live",
        provider_type=offer.provider_type,
        image=image,
        location=offer.location,
        owner=OWNER,
        public_keys=(first,),
        user_data=user_data(has=first),
        ipv6_only=True,
    )
    op = await bench.provider.create(bench.key, spec)
    bench.notes.check("a name is free when its machine is gone", True, op.ref)
    bench.notes.check("with a key there is no root password", op.root_password is None, "one")
    await bench.done("creation", op)
    machine = await _off(bench, op.ref, "user data arrives, both parts of it, and the key")
    bench.notes.check("it has no IPv4 address", machine.ipv4 is None and bool(machine.ipv6), machine)
    addresses = (await bench.ask("/primary_ips"))["primary_ips"]
    mine = [one["type"] for one in addresses if str(one["assignee_id"]) == op.ref]
    bench.notes.check("and none is paid for", mine == ["ipv6"], mine)
    return op.ref


async def _rebuild(bench: Bench, ref: str, image: str) -> None:
    print("rebuild it for another key")
    await bench.done("start", await bench.provider.act(ref, Verb.START, Change()))
    # The same disk: its user data does not run again.
    await bench.reach(ref, InstanceStatus.RUNNING)
    first, second = bench.public_keys
    change = Change(image=image, public_keys=(second,), user_data=user_data(has=second, lacks=first))
    op = await bench.provider.act(ref, Verb.REBUILD, change)
    bench.notes.check("a rebuild with a key tells no password", op.root_password is None, "one")
    await bench.done("rebuild", op)
    await _off(bench, ref, "after a rebuild the new key may log in, and the old one may not")


async def _off(bench: Bench, ref: str, assumption: str) -> Instance:
    """The machine, off as its user data says that all is well; as it is, where that did not come."""
    until = bench.monotonic() + BOOT_S
    machine = await bench.reach(ref, InstanceStatus.RUNNING, InstanceStatus.STOPPING, InstanceStatus.OFF)
    while machine.status is not InstanceStatus.OFF and bench.monotonic() < until:
        await asyncio.sleep(bench.pause_s)
        machine = await bench.reach(ref, InstanceStatus.RUNNING, InstanceStatus.STOPPING, InstanceStatus.OFF)
    came = machine.status is InstanceStatus.OFF
    bench.notes.check(assumption, came, f"no sign of it within {BOOT_S} s")
    return machine


async def _delete(bench: Bench, ref: str) -> None:
    print("protect it, and destroy it all the same")
    body = {"delete": True, "rebuild": True}
    found = await bench.refusal("POST", f"/servers/{ref}/actions/change_protection", body)
    bench.notes.check("what is ours may be protected", found == "accepted", found)
    await bench.unlocked(ref)
    await bench.is_refused("protected", "DELETE", f"/servers/{ref}")
    await bench.done("deletion", await bench.provider.delete(ref))
    await bench.is_refused("not_found", "GET", f"/servers/{ref}")
