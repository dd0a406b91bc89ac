"""The promises of `Provider`, as tests that every provider passes.

A test module subclasses `ProviderConformance` and supplies a fixture `subject`; the suite itself needs no
test framework, so that it can ship with the package and be run by whoever writes a provider elsewhere.
Invariant: nothing is asked here that `spawn_providers.base` does not promise.
"""

import asyncio

from msgspec.structs import replace

from spawn_providers.base import Change, InstanceStatus, OpStatus, RefusedCode, Verb
from spawn_providers.conformance_steps import (
    HOSTNAME,
    OWNER,
    PUBLIC_KEY,
    Subject,
    act_and_succeed,
    apart_from_traffic,
    deleted_machine,
    first_offer,
    is_for,
    offers_verb,
    ordinary_spec,
    power_off,
    reach,
    reach_gone,
    refusal_of,
    require,
    require_owned_once,
    resizable_pair,
    resize_off,
    running_machine,
    spec_for,
    succeed,
)


class ProviderConformance:
    """Inherit, name the subclass `Test…`, and give it a fixture `subject`."""

    async def test_create_makes_a_running_machine_as_ordered(self, subject: Subject) -> None:
        key, spec = subject.new_key(), await ordinary_spec(subject)
        op = await subject.provider.create(key, spec)
        await succeed(subject, op)
        machine = await reach(subject, op.ref, InstanceStatus.RUNNING)
        offer = next(o for o in (await subject.provider.catalog()).offers if is_for(o, spec))
        require(machine.key == key, "the machine does not carry the key it was created with")
        require(
            (machine.provider_type, machine.image, machine.location)
            == (spec.provider_type, spec.image, spec.location),
            "the machine is not the one that was ordered",
        )
        require(
            (machine.cores, machine.memory_gb, machine.disk_gb)
            == (offer.cores, offer.memory_gb, offer.disk_gb),
            "the machine is not what the catalog offered",
        )
        reachable = machine.ipv4 is not None or machine.ipv6 is not None or bool(machine.endpoints)
        require(reachable, "a running machine has no address")

    async def test_a_machine_tells_whose_it_is(self, subject: Subject) -> None:
        first = await running_machine(subject)
        await subject.pass_time(120)
        later = await running_machine(subject)
        for machine in (first, later):
            require(machine.owner == OWNER, "a machine does not carry the owner it was ordered for")
            require(machine.hostname == HOSTNAME, "a machine does not carry the hostname it was ordered with")
        same = await subject.provider.get(first.ref)
        require(
            same is not None and same.created_at == first.created_at, "a machine's beginning moved with time"
        )
        if first.created_at is None or later.created_at is None:
            require(
                first.created_at is later.created_at, "a provider says when its machines began, or does not"
            )
        else:
            require(first.created_at + 120 <= later.created_at, "a later machine did not begin later")

    async def test_create_twice_makes_one_machine(self, subject: Subject) -> None:
        key, spec = subject.new_key(), await ordinary_spec(subject)
        first = await subject.provider.create(key, spec)
        again = await subject.provider.create(key, spec)
        await succeed(subject, first)
        late = await subject.provider.create(key, spec)
        require(first.ref == again.ref == late.ref, "one key gave two machines")
        require(first.handle == again.handle == late.handle, "a repeated create is another op")
        await require_owned_once(subject, key)

    async def test_create_at_once_makes_one_machine(self, subject: Subject) -> None:
        key, spec = subject.new_key(), await ordinary_spec(subject)
        ops = await asyncio.gather(*(subject.provider.create(key, spec) for _ in range(5)))
        require(len({op.ref for op in ops}) == 1, "concurrent creates with one key gave several machines")
        await require_owned_once(subject, key)

    async def test_find_get_and_list_agree(self, subject: Subject) -> None:
        keys = [subject.new_key(), subject.new_key()]
        ops = [await subject.provider.create(key, await ordinary_spec(subject)) for key in keys]
        for key, op in zip(keys, ops, strict=True):
            await succeed(subject, op)
            await reach(subject, op.ref, InstanceStatus.RUNNING)
            found = await subject.provider.find(key)
            require(
                found is not None and found.ref == op.ref, "find does not know a machine made for its key"
            )
            require(found == await subject.provider.get(op.ref), "find and get disagree")
            listed = [m async for m in subject.provider.list_owned() if m.ref == op.ref]
            require(listed == [found], "list_owned and find disagree")

    async def test_what_never_was_is_none(self, subject: Subject) -> None:
        provider = subject.provider
        require(await provider.find(subject.new_key()) is None, "find made up a machine")
        ref = await deleted_machine(subject)
        require(await provider.get(ref) is None, "get knows a machine that is gone")
        code = await refusal_of(provider.act(ref, Verb.START, Change()))
        require(code is RefusedCode.NOT_FOUND, "a verb on what is gone must be refused as not_found")

    async def test_delete_and_delete_again(self, subject: Subject) -> None:
        provider, key = subject.provider, subject.new_key()
        op = await provider.create(key, await ordinary_spec(subject))
        await succeed(subject, op)
        await succeed(subject, await provider.delete(op.ref))
        await reach_gone(subject, op.ref)
        require(await provider.find(key) is None, "find knows a deleted machine")
        require(key not in [m.key async for m in provider.list_owned()], "a deleted machine is listed")
        await succeed(subject, await provider.delete(op.ref))

    async def test_delete_while_deleting(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        first = await subject.provider.delete(machine.ref)
        second = await subject.provider.delete(machine.ref)
        await succeed(subject, first)
        await succeed(subject, second)
        await reach_gone(subject, machine.ref)

    async def test_stop_and_start(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        for stop in (Verb.SHUTDOWN, Verb.POWEROFF):
            if not await offers_verb(subject, machine.ref, stop, Change()):
                continue
            await act_and_succeed(subject, machine.ref, stop)
            await reach(subject, machine.ref, InstanceStatus.OFF)
            await act_and_succeed(subject, machine.ref, stop)
            await reach(subject, machine.ref, InstanceStatus.OFF)
            await act_and_succeed(subject, machine.ref, Verb.START)
            up = await reach(subject, machine.ref, InstanceStatus.RUNNING)
            require(up.ref == machine.ref and up.key == machine.key, "starting made another machine")

    async def test_start_on_running_succeeds(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        if await offers_verb(subject, machine.ref, Verb.START, Change()):
            await act_and_succeed(subject, machine.ref, Verb.START)
            same = await subject.provider.get(machine.ref)
            require(
                same is not None and apart_from_traffic(same) == apart_from_traffic(machine),
                "starting a running machine changed it",
            )

    async def test_reboot(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        if await offers_verb(subject, machine.ref, Verb.REBOOT, Change()):
            await act_and_succeed(subject, machine.ref, Verb.REBOOT)
            up = await reach(subject, machine.ref, InstanceStatus.RUNNING)
            require(apart_from_traffic(up) == apart_from_traffic(machine), "a reboot changed the machine")

    async def test_rebuild(self, subject: Subject) -> None:
        provider, machine = subject.provider, await running_machine(subject)
        image = next(i.name for i in (await provider.catalog()).images if i.name != machine.image)
        change = Change(image=image, public_keys=(PUBLIC_KEY,))
        if not await offers_verb(subject, machine.ref, Verb.REBUILD, change):
            return
        op = await act_and_succeed(subject, machine.ref, Verb.REBUILD, change)
        require(op.root_password is None, "a rebuild with keys gave a password")
        rebuilt = await reach(subject, machine.ref, InstanceStatus.RUNNING)
        require(
            (rebuilt.key, rebuilt.image) == (machine.key, image), "a rebuild did not change the image alone"
        )
        op = await act_and_succeed(subject, machine.ref, Verb.REBUILD, Change(image=machine.image))
        require(
            (op.root_password is not None) == provider.capabilities.root_password,
            "root_password of a rebuild without keys is not as the capabilities say",
        )

    async def test_resetting_a_root_password_gives_another_each_time(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        if not await offers_verb(subject, machine.ref, Verb.RESET_PASSWORD, Change()):
            return
        ops = [await act_and_succeed(subject, machine.ref, Verb.RESET_PASSWORD) for _ in range(2)]
        passwords = {op.root_password for op in ops}
        require(None not in passwords and len(passwords) == 2, "a reset gave no new password")
        same = await subject.provider.get(machine.ref)
        require(
            same is not None and apart_from_traffic(same) == apart_from_traffic(machine),
            "resetting the password changed the machine",
        )

    async def test_resize_keeps_the_disk_unless_asked(self, subject: Subject) -> None:
        if Verb.RESIZE not in subject.provider.capabilities.verbs:
            await offers_verb(subject, (await running_machine(subject)).ref, Verb.RESIZE, Change())
            return
        small, large = resizable_pair(await subject.provider.catalog())
        machine = await running_machine(subject, small)
        change = Change(provider_type=large.provider_type)
        resized = await resize_off(subject, machine.ref, change)
        require(
            (resized.cores, resized.memory_gb) == (large.cores, large.memory_gb), "a resize changed nothing"
        )
        require(resized.disk_gb == small.disk_gb, "the disk grew although upgrade_disk was not asked")
        back = await resize_off(subject, machine.ref, Change(provider_type=small.provider_type))
        require(back.provider_type == small.provider_type, "a disk that did not grow must allow the way back")
        grown = await resize_off(
            subject, machine.ref, Change(provider_type=large.provider_type, upgrade_disk=True)
        )
        require(grown.disk_gb == large.disk_gb, "the disk did not grow although upgrade_disk was asked")
        await power_off(subject, machine.ref)
        code = await refusal_of(
            subject.provider.act(machine.ref, Verb.RESIZE, Change(provider_type=small.provider_type))
        )
        require(code is RefusedCode.CONFLICT, "a disk that cannot shrink must be refused as a conflict")

    async def test_refusal_leaves_nothing_behind(self, subject: Subject) -> None:
        provider, key = subject.provider, subject.new_key()
        good = await ordinary_spec(subject)
        nowhere = spec_for(good.provider_type, "no-such-place", good.image)
        code = await refusal_of(provider.create(key, nowhere))
        require(code is RefusedCode.INVALID, "a location that does not exist must be refused as invalid")
        require(await provider.find(key) is None, "a refused create left a machine")
        require(key not in [m.key async for m in provider.list_owned()], "a refused create left a machine")
        op = await provider.create(key, good)
        await succeed(subject, op)

    async def test_what_is_not_sold_is_refused(self, subject: Subject) -> None:
        catalog = await subject.provider.catalog()
        sold = {(o.provider_type, o.location) for o in catalog.offers}
        types, places = {t for t, _ in sold}, {p.name for p in catalog.locations}
        for type_, place in sorted({(t, p) for t in types for p in places} - sold):
            order = spec_for(type_, place, catalog.images[0].name)
            code = await refusal_of(subject.provider.create(subject.new_key(), order))
            # A provider that knows both may take it for sold out.
            refused = code in {RefusedCode.INVALID, RefusedCode.OUT_OF_CAPACITY}
            require(refused, f"{type_} is not sold in {place}, yet not refused")

    async def test_unknown_image_is_refused(self, subject: Subject) -> None:
        good = await ordinary_spec(subject)
        order = spec_for(good.provider_type, good.location, "no-such-image")
        code = await refusal_of(subject.provider.create(subject.new_key(), order))
        require(code is RefusedCode.INVALID, "an image that does not exist must be refused as invalid")

    async def test_root_password_only_without_keys(self, subject: Subject) -> None:
        provider, key = subject.provider, subject.new_key()
        offer = (await provider.catalog()).offers[0]
        image = (await provider.catalog()).images[0].name
        with_keys = await provider.create(subject.new_key(), await ordinary_spec(subject))
        require(with_keys.root_password is None, "a machine with keys came with a password")
        bare = spec_for(offer.provider_type, offer.location, image, keys=())
        first = await provider.create(key, bare)
        require(
            (first.root_password is not None) == provider.capabilities.root_password,
            "root_password of a create without keys is not as the capabilities say",
        )

    async def test_ipv6_only_as_the_capabilities_say(self, subject: Subject) -> None:
        offer, image = await first_offer(subject)
        spec = spec_for(offer.provider_type, offer.location, image, ipv6_only=True)
        if not subject.provider.capabilities.ipv6_only:
            code = await refusal_of(subject.provider.create(subject.new_key(), spec))
            require(code is RefusedCode.INVALID, "ipv6_only is not offered, yet not refused as invalid")
            return
        op = await subject.provider.create(subject.new_key(), spec)
        await succeed(subject, op)
        machine = await reach(subject, op.ref, InstanceStatus.RUNNING)
        require(machine.ipv4 is None and machine.ipv6 is not None, "ipv6_only gave other addresses")

    async def test_user_data_as_the_capabilities_say(self, subject: Subject) -> None:
        offer, image = await first_offer(subject)
        spec = spec_for(offer.provider_type, offer.location, image, user_data="#!/bin/sh\ntrue\n")
        room = subject.provider.capabilities.user_data_bytes
        if room == 0:
            code = await refusal_of(subject.provider.create(subject.new_key(), spec))
            require(code is RefusedCode.INVALID, "user_data is not offered, yet not refused as invalid")
            return
        too_much = replace(spec, user_data="#" * (room + 1))
        code = await refusal_of(subject.provider.create(subject.new_key(), too_much))
        require(
            code is RefusedCode.INVALID, "more user_data than there is room for is not refused as invalid"
        )
        full = replace(spec, user_data="#!/bin/sh".ljust(room, "\n"))
        await succeed(subject, await subject.provider.create(subject.new_key(), full))

    async def test_rebuild_takes_user_data_as_the_capabilities_say(self, subject: Subject) -> None:
        machine, room = await running_machine(subject), subject.provider.capabilities.user_data_bytes
        change = Change(image=machine.image, public_keys=(PUBLIC_KEY,))
        if room == 0 or not await offers_verb(subject, machine.ref, Verb.REBUILD, change):
            return
        too_much = replace(change, user_data="#" * (room + 1))
        code = await refusal_of(subject.provider.act(machine.ref, Verb.REBUILD, too_much))
        require(
            code is RefusedCode.INVALID, "more user_data than there is room for is not refused as invalid"
        )
        told = replace(change, user_data="#!/bin/sh\ntrue\n")
        await act_and_succeed(subject, machine.ref, Verb.REBUILD, told)
        rebuilt = await reach(subject, machine.ref, InstanceStatus.RUNNING)
        require(rebuilt.key == machine.key, "a rebuild with user_data made another machine")

    async def test_poll_keeps_the_order_and_knows_what_it_does_not_know(self, subject: Subject) -> None:
        provider = subject.provider
        require(await provider.poll([]) == [], "polling nothing gave something")
        one = await provider.create(subject.new_key(), await ordinary_spec(subject))
        two = await provider.create(subject.new_key(), await ordinary_spec(subject))
        await succeed(subject, one)
        await succeed(subject, two)
        asked = [two.handle, "no-such-handle", one.handle]
        states = await provider.poll(asked)
        require([s.handle for s in states] == asked, "poll does not answer in the order asked")
        require(
            [s.status for s in states] == [OpStatus.SUCCESS, OpStatus.ERROR, OpStatus.SUCCESS],
            "poll does not tell a known op from an unknown one",
        )
        require(states[1].error_code == RefusedCode.NOT_FOUND.value, "an unknown handle must be not_found")

    async def test_handles_and_keys_survive_a_restart(self, subject: Subject) -> None:
        key, spec = subject.new_key(), await ordinary_spec(subject)
        op = await subject.provider.create(key, spec)
        reopened = await subject.reopen()
        [state] = await reopened.poll([op.handle])
        require(state.status is not OpStatus.ERROR, "a handle did not survive a restart")
        found = await reopened.find(key)
        require(found is not None and found.ref == op.ref, "a machine did not survive a restart")
        again = await reopened.create(key, spec)
        require(again.ref == op.ref, "a restart made a second machine for one key")

    async def test_traffic_is_told_with_the_machine(self, subject: Subject) -> None:
        machine = await running_machine(subject)
        before = machine.traffic
        await subject.pass_time(60)
        later = await subject.provider.get(machine.ref)
        after = None if later is None else later.traffic
        if before is None or after is None:
            require(before is after, "a provider meters or it does not")
            return
        require(after.ingoing_bytes >= before.ingoing_bytes >= 0, "ingoing traffic fell")
        require(after.outgoing_bytes >= before.outgoing_bytes >= 0, "outgoing traffic fell")
        require(after.included_bytes >= 0, "less than nothing is included")
