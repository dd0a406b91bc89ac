"""A machine's life at the real Hetzner Cloud, under a spending cap, and what of it is not as we assumed.

    SPAWN_HETZNER_TOKEN=... python -m tests.live.hetzner --cap 0.10

It rents the cheapest machine that we sell, resizes, rebuilds and destroys it, and asks some questions that are refused;
then another of the same name, without IPv4, with keys and user data. That costs six started hours at most (it says how
much before it begins) and takes some minutes. It ends with a list
of what differed: exit status 0 for nothing, 1 for something, 2 where it did not begin.
Invariant: what it made is destroyed before it ends, also where it is interrupted once; if it cannot be, the last words
say what is left.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from spawn_providers.base import Change, InstanceStatus, ProviderError, Spec, Verb
from spawn_providers.catalog import Catalog, Offer
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls
from spawn_providers.hetzner.names import SIZES, fingerprint_of, key_names
from spawn_providers.hetzner.provider import HetznerProvider
from spawn_schemas.ids import ServerId

from tests.live.bench import PATIENCE_S, Bench, Broken, new_public_key
from tests.live.notes import Notes, listening
from tests.live.second_life import OWNER, second_life

ENDPOINT: Final = "https://api.hetzner.cloud/v1"
TOKEN: Final = "SPAWN_HETZNER_TOKEN"
LIFE_S: Final = 2_700
"""The longest that a life may take, so that it costs no more started hours than are told beforehand."""
LOOKS: Final = 5
"""How often in a row nothing must be left before that is believed."""
SHUTDOWN_S: Final = 120
MICRO: Final = 1_000_000


class Refusal(Exception):
    """Nothing was begun, and why."""


def main(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """The exit status. `monotonic` is Hetzner's time, as seconds of a clock that never runs backwards."""
    arguments = _parser().parse_args(argv)
    token = environ.get(TOKEN, "")
    # Told to end, it ends as by Ctrl-C: not before it has destroyed what it made.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not token:
            raise Refusal(f"set {TOKEN} to a token of an empty project, with read and write access")
        return asyncio.run(_run(token, arguments, monotonic))
    except Refusal as refusal:
        print(f"Nothing was ordered: {refusal}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Broken off. If it was not destroyed before this, look into the project.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.live.hetzner", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--cap", type=float, required=True, help="the most it may cost, in the project's currency, net"
    )
    parser.add_argument("--endpoint", default=ENDPOINT)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two looks")
    return parser


async def _run(token: str, arguments: argparse.Namespace, monotonic: Callable[[], float]) -> int:
    notes = Notes()
    with listening(notes, arguments.endpoint):
        bench = Bench(
            provider=HetznerProvider(
                token, now_s=lambda: int(time.time()), endpoint=arguments.endpoint, monotonic=monotonic
            ),
            calls=Calls(token, arguments.endpoint, now=monotonic),
            notes=notes,
            key=ServerId(f"srv_live{time.time_ns():x}"),
            pause_s=arguments.pause,
            monotonic=monotonic,
        )
        try:
            await _compare(bench, arguments.cap)
        finally:
            await bench.provider.aclose()
            await bench.calls.aclose()
    print(f"\n{notes.assumed} assumptions, {notes.answers} answers, {len(notes.different)} differences")
    for text in notes.different:
        print(f"  {text}")
    return 1 if notes.different else 0


async def _compare(bench: Bench, cap: float) -> None:
    small, large, image = await _lists(bench, cap)
    try:
        async with asyncio.timeout(LIFE_S):
            await _questions(bench)
            ref = await _order(bench, small, image)
            await _running(bench, ref, large)
            await _resize(bench, ref, large)
            await _rebuild(bench, ref, image)
            await _delete(bench, ref)
            await second_life(bench, small, image)
    except (Broken, ProviderError) as error:
        bench.notes.check("a machine lives from its order to its end", False, error)
    except TimeoutError:
        bench.notes.check(f"that takes less than {LIFE_S} s", False, "that it did not")
    finally:
        await _clean_up(bench)


# --- before anything is ordered -----------------------------------------------------------------------------------


async def _lists(bench: Bench, cap: float) -> tuple[Offer, Offer, str]:
    print("lists")
    try:
        catalog = await bench.provider.catalog()
        ours = [machine.ref async for machine in bench.provider.list_owned()]
    except ProviderError as error:
        raise Refusal(f"Hetzner does not tell what it sells and what is there ({error})") from error
    if ours:
        raise Refusal(
            f"the project holds {len(ours)} machines of a service: use a project of its own for this"
        )
    for offer in catalog.offers:
        price = offer.wholesale
        assert price is not None, "each offer of Hetzner's has a price"
        print(
            f"              {offer.type:9} {offer.location:5} {offer.provider_type:6} "
            f"{price.daily_micro / 24 / MICRO:.4f} {price.currency} an hour"
        )
    for location in ("ash", "hil"):
        kinds = {o.provider_type[:2] for o in catalog.offers if o.location == location}
        bench.notes.check(f"neither cx nor cax is sold in {location}", kinds <= {"cp", "cc"}, kinds)
    everywhere = {o.type for o in catalog.offers if o.location == "nbg1"}
    bench.notes.check("nbg1 has every size", everywhere == set(SIZES), everywhere)
    small, large = _pair(catalog)
    hours = (small, large, large, small, small, small)
    cost = sum(o.wholesale.daily_micro for o in hours if o.wholesale) / 24 / MICRO
    print(f"              this run may cost {cost:.4f}, of at most {cap:.4f}")
    if cost > cap:
        raise Refusal(f"{len(hours)} started hours may cost {cost:.4f}, which is more than --cap {cap}")
    return small, large, catalog.images[0].name


def _pair(catalog: Catalog) -> tuple[Offer, Offer]:
    """The cheapest machine, and the cheapest that it can become."""

    def price(offer: Offer) -> int:
        return offer.wholesale.daily_micro if offer.wholesale else 0

    def may_become(small: Offer, large: Offer) -> bool:
        alike = (small.location, small.architecture) == (large.location, large.architecture)
        return alike and small.memory_gb < large.memory_gb and small.disk_gb <= large.disk_gb

    pairs = [(a, b) for a in catalog.offers for b in catalog.offers if may_become(a, b)]
    if not pairs:
        raise Refusal("nothing on sale could be resized to anything else")
    return min(pairs, key=lambda pair: (price(pair[0]), price(pair[1])))


async def _questions(bench: Bench) -> None:
    print("questions")
    await bench.is_refused("not_found", "DELETE", "/servers/1")
    await bench.is_refused("not_found", "POST", "/servers/1/actions/poweron")
    pages = (await bench.ask("/images", per_page=100))["meta"]["pagination"]["per_page"]
    bench.notes.check("100 entries per page are taken for 50", pages == 50, pages)
    public = new_public_key()
    body = {"name": f"{bench.name}-key", "public_key": public}
    made = await bench.calls.change("POST", "/ssh_keys", dict[str, Any], Priority.CREATE, body)
    ours, theirs = fingerprint_of(public), made["ssh_key"]["fingerprint"]
    bench.notes.check("a key's fingerprint is its MD5, in pairs of digits", ours == theirs, theirs)
    await bench.is_refused(
        "uniqueness_error", "POST", "/ssh_keys", name=f"{bench.name}-again", public_key=public
    )
    await bench.is_refused(
        "invalid_input",
        "POST",
        "/servers",
        name=bench.name,
        labels={"spawn-id": bench.key},
        image="debian-12",
        server_type="cx23",
        location="ash",
        start_after_create=False,
    )


# --- a life -------------------------------------------------------------------------------------------------------


async def _order(bench: Bench, offer: Offer, image: str) -> str:
    print(f"order a {offer.provider_type} in {offer.location} with {image}")
    spec = Spec(
        hostname="spawn-live",
        provider_type=offer.provider_type,
        image=image,
        location=offer.location,
        owner=OWNER,
    )
    op = await bench.provider.create(bench.key, spec)
    bench.notes.check("without keys there is a root password", bool(op.root_password), op.root_password)
    await bench.is_refused("locked", "POST", f"/servers/{op.ref}/actions/poweroff")
    again = await bench.provider.create(bench.key, spec)
    bench.notes.check("an order that is repeated finds the first machine", again.ref == op.ref, again.ref)
    await bench.done("creation", op)
    machine = await bench.reach(op.ref, InstanceStatus.RUNNING)
    shape = (machine.provider_type, machine.location, machine.image, machine.cores, machine.memory_gb)
    wanted = (offer.provider_type, offer.location, image, offer.cores, offer.memory_gb)
    bench.notes.check("the machine is what was ordered", shape == wanted, shape)
    bench.notes.check("it has our labels", (machine.key, machine.owner) == (bench.key, OWNER), machine.key)
    bench.notes.check("it has both addresses", bool(machine.ipv4 and machine.ipv6), machine)
    return op.ref


async def _running(bench: Bench, ref: str, large: Offer) -> None:
    print("while it runs")
    addresses = (await bench.ask("/primary_ips"))["primary_ips"]
    mine = [one["auto_delete"] for one in addresses if str(one["assignee_id"]) == ref]
    bench.notes.check("its two addresses die with it", mine == [True, True], mine)
    server = (await bench.ask(f"/servers/{ref}"))["server"]
    bench.notes.check(
        "its traffic is counted", server["included_traffic"] is not None, server["included_traffic"]
    )
    await bench.is_refused(
        "server_not_stopped",
        "POST",
        f"/servers/{ref}/actions/change_type",
        server_type=large.provider_type,
        upgrade_disk=False,
    )
    found = await bench.refusal("POST", f"/servers/{ref}/actions/poweron")
    bench.notes.check("what runs may be started", found == "accepted", found)
    await bench.unlocked(ref)
    found = await bench.refusal("POST", f"/servers/{ref}/actions/reset_password")
    bench.notes.check("what runs may be given a new password", found == "accepted", found)
    await bench.unlocked(ref)


async def _resize(bench: Bench, ref: str, large: Offer) -> None:
    print(f"resize to {large.provider_type}")
    await bench.done("shutdown", await bench.provider.act(ref, Verb.SHUTDOWN, Change()))
    try:
        async with asyncio.timeout(SHUTDOWN_S):
            await bench.reach(ref, InstanceStatus.OFF)
    except TimeoutError:
        bench.notes.check(f"a guest shuts down within {SHUTDOWN_S} s", False, "that its power had to be cut")
        await bench.done("poweroff", await bench.provider.act(ref, Verb.POWEROFF, Change()))
        await bench.reach(ref, InstanceStatus.OFF)
    op = await bench.provider.act(ref, Verb.RESIZE, Change(provider_type=large.provider_type))
    await bench.done("resize", op)
    machine = await bench.reach(ref, InstanceStatus.RUNNING, InstanceStatus.OFF)
    bench.notes.check(
        "it has the new type", machine.provider_type == large.provider_type, machine.provider_type
    )
    bench.notes.check("and starts by itself", machine.status is InstanceStatus.RUNNING, machine.status.value)


async def _rebuild(bench: Bench, ref: str, image: str) -> None:
    print("rebuild")
    op = await bench.provider.act(ref, Verb.REBUILD, Change(image=image))
    bench.notes.check("a rebuild without keys gives a password", bool(op.root_password), op.root_password)
    await bench.done("rebuild", op)
    machine = await bench.reach(ref, InstanceStatus.RUNNING, InstanceStatus.OFF)
    bench.notes.check("and starts by itself", machine.status is InstanceStatus.RUNNING, machine.status.value)


async def _delete(bench: Bench, ref: str) -> None:
    print("destroy")
    await bench.done("deletion", await bench.provider.delete(ref))
    await bench.is_refused("not_found", "DELETE", f"/servers/{ref}")
    left = (await bench.ask("/primary_ips"))["primary_ips"]
    mine = [one["id"] for one in left if str(one["assignee_id"]) == ref]
    bench.notes.check("its addresses are gone", not mine, mine)


async def _clean_up(bench: Bench) -> None:
    """Destroy what is left of this run, also where something broke: an order may still be on its way, and lists lag."""
    quiet = 0
    for _ in range(int(PATIENCE_S / max(bench.pause_s, 1))):
        left = await _left(bench)
        quiet = quiet + 1 if left == [] else 0
        if quiet == LOOKS:
            print("\nnothing of this run is left in the project")
            return
        for path in left or []:
            await _tried(bench.calls.change("DELETE", path, dict[str, Any], Priority.DESTROY))
        await asyncio.sleep(2 * bench.pause_s)
    print(f"\nNOT DESTROYED: {_leftovers(bench)}, they cost money", file=sys.stderr)


def _leftovers(bench: Bench) -> str:
    keys = " or ".join([bench.name, *sorted(key_names(bench.public_keys))])
    return f"look for servers with the label spawn-id={bench.key}, and for SSH keys named {keys}"


async def _left(bench: Bench) -> list[str] | None:
    """The paths of what this run made and is still there; None where nobody can say."""
    servers = await _tried(bench.ask("/servers", label_selector=f"spawn-id={bench.key}"))
    keys = await _tried(bench.ask("/ssh_keys", per_page=50))
    if servers is None or keys is None:
        return None
    ours = key_names(bench.public_keys)
    mine = [key for key in keys["ssh_keys"] if key["name"].startswith(bench.name) or key["name"] in ours]
    return [f"/servers/{s['id']}" for s in servers["servers"]] + [f"/ssh_keys/{k['id']}" for k in mine]


async def _tried(call: Awaitable[Any]) -> Any:
    """What it answers, or None where it fails, which is said."""
    try:
        return await call
    except ProviderError as error:
        print(f"              {error}")
        return None


if __name__ == "__main__":
    sys.exit(main())
