"""A machine's life at the real Hetzner Cloud, under a spending cap, and what of it is not as we assumed.

    SPAWN_HETZNER_TOKEN=... python -m tests.live.hetzner --cap 0.10

It rents the cheapest machine that we sell, resizes, rebuilds and destroys it, and asks some questions that are refused.
That costs four started hours at most (it says how much before it begins) and takes some minutes. It ends with a list
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
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spawn_providers.base import (
    Change,
    Instance,
    InstanceStatus,
    Op,
    OpState,
    OpStatus,
    ProviderError,
    Spec,
    Verb,
)
from spawn_providers.catalog import Catalog, Offer
from spawn_providers.hetzner.budget import Priority
from spawn_providers.hetzner.calls import Calls, Method
from spawn_providers.hetzner.errors import Denied
from spawn_providers.hetzner.names import SIZES, fingerprint_of
from spawn_providers.hetzner.provider import HetznerProvider
from spawn_schemas.ids import Address, ServerId

from tests.live.notes import Notes, listening

ENDPOINT: Final = "https://api.hetzner.cloud/v1"
TOKEN: Final = "SPAWN_HETZNER_TOKEN"
OWNER: Final = Address("0x" + "11" * 20)
PATIENCE_S: Final = 900
"""The longest that any one thing may take at Hetzner."""
LIFE_S: Final = 2_700
"""The longest that a life may take, so that it costs no more started hours than are told beforehand."""
LOOKS: Final = 5
"""How often in a row nothing must be left before that is believed."""
SHUTDOWN_S: Final = 120
MICRO: Final = 1_000_000


class Refusal(Exception):
    """Nothing was begun, and why."""


class Broken(Exception):
    """Hetzner did not finish something, or not in time: the life goes no further."""


@dataclass(kw_only=True)
class Bench:
    """The project, as our provider sees it and as it answers plain calls."""

    provider: HetznerProvider
    calls: Calls
    notes: Notes
    key: ServerId
    pause_s: float

    async def ask(self, path: str, **params: str | int) -> dict[str, Any]:
        return await self.calls.get(path, dict[str, Any], Priority.POLL, params)

    async def refusal(self, method: Method, path: str, body: Mapping[str, object] | None = None) -> str:
        """The code with which a call is refused, or `accepted`."""
        try:
            await self.calls.change(method, path, dict[str, Any], Priority.DESTROY, body)
        except Denied as refusal:
            return refusal.reason
        except ProviderError as error:
            return str(error)
        return "accepted"

    async def is_refused(self, code: str, method: Method, path: str, **body: object) -> None:
        found = await self.refusal(method, path, body or None)
        self.notes.check(f"{method} {_shape(path)} {_told(body)}is refused as {code}", found == code, found)

    async def done(self, what: str, op: Op) -> None:
        """Wait for an op to end well."""
        began = time.monotonic()
        while True:
            state: OpState = (await self.provider.poll([op.handle]))[0]
            if state.status is not OpStatus.RUNNING:
                break
            await self._wait(began, what)
        if state.status is OpStatus.ERROR:
            raise Broken(f"the {what} failed ({state.error_message})")
        print(f"              {what} took {time.monotonic() - began:.1f} s")

    async def reach(self, ref: str, *wanted: InstanceStatus) -> Instance:
        began = time.monotonic()
        while True:
            machine = await self.provider.get(ref)
            if machine is not None and machine.status in wanted:
                return machine
            await self._wait(began, f"server {ref} becoming {wanted[0].value}")

    async def _wait(self, began: float, what: str) -> None:
        if time.monotonic() - began > PATIENCE_S:
            raise Broken(f"{what} was not done after {PATIENCE_S} s")
        await asyncio.sleep(self.pause_s)


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
    cost = sum(o.wholesale.daily_micro for o in (small, large, large, small) if o.wholesale) / 24 / MICRO
    print(f"              this run may cost {cost:.4f}, of at most {cap:.4f}")
    if cost > cap:
        raise Refusal(f"four started hours may cost {cost:.4f}, which is more than --cap {cap}")
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
    public = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    body = {"name": f"{_name(bench)}-key", "public_key": public.decode()}
    made = await bench.calls.change("POST", "/ssh_keys", dict[str, Any], Priority.CREATE, body)
    ours, theirs = fingerprint_of(public.decode()), made["ssh_key"]["fingerprint"]
    bench.notes.check("a key's fingerprint is its MD5, in pairs of digits", ours == theirs, theirs)
    await bench.is_refused(
        "uniqueness_error", "POST", "/ssh_keys", name=f"{_name(bench)}-again", public_key=public.decode()
    )
    await bench.is_refused(
        "invalid_input",
        "POST",
        "/servers",
        name=_name(bench),
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
    await _unlocked(bench, ref)
    found = await bench.refusal("POST", f"/servers/{ref}/actions/reset_password")
    bench.notes.check("what runs may be given a new password", found == "accepted", found)
    await _unlocked(bench, ref)


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


async def _unlocked(bench: Bench, ref: str) -> None:
    """Wait until no action of the machine runs."""
    began = time.monotonic()
    while (await bench.ask(f"/servers/{ref}/actions", status="running"))["actions"]:
        await bench._wait(began, f"an action of server {ref}")


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
    return f"look for servers with the label spawn-id={bench.key}, and for SSH keys named {_name(bench)}"


async def _left(bench: Bench) -> list[str] | None:
    """The paths of what this run made and is still there; None where nobody can say."""
    servers = await _tried(bench.ask("/servers", label_selector=f"spawn-id={bench.key}"))
    keys = await _tried(bench.ask("/ssh_keys", per_page=50))
    if servers is None or keys is None:
        return None
    mine = [key for key in keys["ssh_keys"] if key["name"].startswith(_name(bench))]
    return [f"/servers/{s['id']}" for s in servers["servers"]] + [f"/ssh_keys/{k['id']}" for k in mine]


def _name(bench: Bench) -> str:
    """What everything that this run names begins with."""
    return bench.key.replace("_", "-")


async def _tried(call: Awaitable[Any]) -> Any:
    """What it answers, or None where it fails, which is said."""
    try:
        return await call
    except ProviderError as error:
        print(f"              {error}")
        return None


def _shape(path: str) -> str:
    return "/".join("{id}" if part.isdecimal() else part for part in path.split("/"))


def _told(body: Mapping[str, object]) -> str:
    told = [f"{name}={body[name]}" for name in ("server_type", "location") if name in body]
    return f"({', '.join(told)}) " if told else ""


if __name__ == "__main__":
    sys.exit(main())
