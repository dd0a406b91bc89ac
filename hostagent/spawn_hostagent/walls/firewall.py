"""The walls around tenants' networks: two nftables tables of our own, each written anew as a whole when it changes.

Invariant: the tables match bridges by name (`spw-…`) and come before Docker's chains, so that nothing which Docker or
the owner's firewall does later can open them; without them nothing of a tenant starts. A tenant reaches the internet
and its resolvers. What counts connections names no bridge: whoever is counted begins anew only with that table, which
rentals that come and go do not change. That nft cannot be asked does not mean that the walls fell: they are the
kernel's.
"""

import ipaddress
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

TABLE: Final = "spawn"
BRIDGES: Final = "spw-*"
PRIORITY: Final = -10
PUBLIC_RESOLVERS: Final = ("1.1.1.1", "9.9.9.9")
RESOLVER_FILES: Final = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))
BYTES_PER_MBIT: Final = 125_000
_TIMEOUT_S: Final = 30

TENANTS: Final = "$tenants"
"""The tenants' bridges, in a rule: the pattern of names that the table is made for stands there."""
MOST: Final = "$most"
"""How many connections one tenant may have at once, in a rule."""
CONNECTIONS_MAX: Final = 4096
CONNECTIONS_FILE: Final = Path("/proc/sys/net/netfilter/nf_conntrack_max")
USUAL_CONNECTIONS: Final = 65_536
"""What the kernel follows where it does not say how many; most follow as many, or more."""
COUNTED_BRIDGES_MAX: Final = 65_535
"""A bridge that is gone is kept in mind until the last of its connections is forgotten."""

Chain = Literal["connections", "input", "forward"]


class WallError(Exception):
    """The walls could not be put up, or not be looked at; the message has what nft said and what to do."""


class WallsDown(WallError):
    """The walls do not stand, nft says so itself, and a second try did not put them up."""


@dataclass(frozen=True)
class Rule:
    """One rule, in nft's words, and why it is there. It is about what comes from tenants, unless `begins` says else.

    Those of the chain `connections` are in a table of their own, and count for each tenant by itself.
    """

    name: str
    chain: Chain
    match: str
    verdict: Literal["accept", "drop"]
    reason: str
    begins: str = f"iifname {TENANTS}"


RULES: Final = (
    Rule("connections", "connections", f"ct state new add @counted {{ iifname ct count over {MOST} }}", "drop",
         "The kernel follows so many connections at once, often 65,536; then the owner's own fail, too."),
    Rule("answers to the host", "input", "ct state established,related", "accept",
         "The tunnel's connections begin on the host."),
    Rule("resolver on the host", "input", "ip daddr @resolvers meta l4proto { tcp, udp } th dport 53", "accept",
         "Some machines are their own resolver."),
    Rule("host", "input", "", "drop", "The machine's services are its owner's, whichever of its addresses is asked."),
    Rule("from the LAN", "forward", "ct state new", "drop",
         "Who can route to this machine would reach a container past the tunnel.",
         begins=f"iifname != {TENANTS} oifname {TENANTS}"),
    Rule("answers", "forward", "ct state established,related", "accept",
         "What was allowed to begin may go on."),
    Rule("ipv6", "forward", "meta nfproto ipv6", "drop", "Nothing below filters it."),
    Rule("resolver", "forward", "ip daddr @resolvers meta l4proto { tcp, udp } th dport 53", "accept",
         "In most homes the resolver has a private address."),
    Rule("neighbours", "forward", f"oifname {TENANTS}", "drop", "Two tenants have nothing to say to each other."),
    Rule("lan", "forward", "ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 }", "drop",
         "The owner's other machines, router, printer, and other containers (RFC 1918)."),
    Rule("link-local", "forward", "ip daddr 169.254.0.0/16", "drop",
         "Clouds tell a machine's secrets at 169.254.169.254 (RFC 3927)."),
    Rule("carrier", "forward", "ip daddr 100.64.0.0/10", "drop",
         "The carrier's network, and overlays such as Tailscale (RFC 6598)."),
    Rule("not unicast", "forward", "ip daddr { 0.0.0.0/8, 127.0.0.0/8, 224.0.0.0/4, 240.0.0.0/4 }", "drop",
         "Multicast finds the owner's devices (RFC 5771, RFC 6890)."),
    Rule("mail", "forward", "tcp dport { 25, 465, 587 }", "drop",
         "Spam would get the owner's address listed and his line cut."),
)  # fmt: skip


def resolvers_of_machine(files: Iterable[Path] = RESOLVER_FILES) -> tuple[str, ...]:
    """The machine's resolvers that a container can ask, then a public one; public ones alone where it has none.

    Three are asked at most (resolv.conf(5)), the next where one is silent: a container keeps those that it began with,
    and the machine may come into another network.
    """
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        words = (line.split() for line in text.splitlines())
        named = [line[1] for line in words if len(line) > 1 and line[0] == "nameserver"]
        if usable := tuple(dict.fromkeys(name for name in named if is_resolver(name))):
            return tuple(dict.fromkeys((*usable[:2], PUBLIC_RESOLVERS[0])))
    return PUBLIC_RESOLVERS


def is_resolver(name: str) -> bool:
    """Whether a container can ask there: an address of IPv4 that is one machine's, and not loopback."""
    try:
        address = ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified or address.is_multicast)


def connections_each(rentals: int, file: Path = CONNECTIONS_FILE) -> int:
    """How many connections a tenant may have at once where so many rentals may be here: all leave half to the owner."""
    try:
        # 0 is no limit of the kernel's.
        followed = int(file.read_text()) or USUAL_CONNECTIONS
    except (OSError, ValueError):
        followed = USUAL_CONNECTIONS  # the kernel's module is not loaded yet
    return max(1, min(CONNECTIONS_MAX, followed // (2 * rentals)))


def counts_of(table: str) -> str:
    """The table that counts connections, beside this one."""
    return f"{table}_counts"


def counting(rules: Iterable[Rule], most: int, *, table: str = TABLE, pattern: str = BRIDGES) -> str:
    """The table that counts, in nft's language: `most` connections for each bridge of which the name is so.

    It is written as nft lists it, so that what an agent before this one left standing is known again.
    """
    name = counts_of(table)
    counted = (_worded(rule, rule.begins) for rule in rules if rule.chain == "connections")
    lines = [
        *_anew(name),
        f"  set counted {{ type ifname; size {COUNTED_BRIDGES_MAX}; flags dynamic; }}",
        *_chain("connections", "prerouting", counted),
        "}",
    ]
    return ("\n".join(lines) + "\n").replace(TENANTS, f'"{pattern}"').replace(MOST, str(most))


def ruleset(
    rules: Iterable[Rule],
    resolvers: Iterable[str],
    up_mbit: int | None,
    bridges: Mapping[str, int | None],
    *,
    table: str = TABLE,
    pattern: str = BRIDGES,
) -> str:
    """The table of walls, in nft's language. `bridges` is each rental's bridge and its own limit of Mbit/s upwards.

    `pattern` is what the names of all bridges begin with that are walled in.
    """
    named = ", ".join(str(ipaddress.IPv4Address(resolver)) for resolver in resolvers)
    chains: dict[Chain, list[str]] = {"connections": [], "input": [], "forward": []}
    for rule in rules:
        chains[rule.chain].append(_worded(rule, rule.begins))
    limits = [_limit(f'"{bridge}"', mbit) for bridge, mbit in sorted(bridges.items()) if mbit is not None]
    if up_mbit is not None:
        limits.append(_limit(TENANTS, up_mbit))
    lines = [
        f'define {TENANTS.removeprefix("$")} = "{pattern}"',
        *_anew(table),
        f"  set resolvers {{ type ipv4_addr; elements = {{ {named} }} }}",
        *_chain("limits", "prerouting", limits),
        *_chain("from_tenants_to_host", "input", chains["input"]),
        *_chain("from_tenants", "forward", chains["forward"]),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _anew(table: str) -> Iterable[str]:
    # Naming the table first makes deleting it no error where there is none; nft applies all of this or none.
    return f"table inet {table} {{}}", f"delete table inet {table}", f"table inet {table} {{"


def _worded(rule: Rule, begins: str) -> str:
    words = (begins, rule.match, "counter", rule.verdict, f'comment "{rule.name}"')
    return "    " + " ".join(word for word in words if word)


def _chain(name: str, hook: str, rules: Iterable[str]) -> Iterable[str]:
    yield f"  chain {name} {{"
    yield f"    type filter hook {hook} priority {PRIORITY}; policy accept;"
    yield from rules
    yield "  }"


def _limit(interface: str, mbit: int) -> str:
    rate = mbit * BYTES_PER_MBIT
    # A quarter of a second of it may come at once, as TCP sends; at least some packets of the largest size.
    return f"    iifname {interface} limit rate over {rate} bytes/second burst {max(rate // 4, 65536)} bytes drop"


class _Table:
    """One table, and how nft listed it when it was put up. `words` list what of it must not change by itself.

    One that `lasts` is left alone where an agent before this one put the same up.
    """

    def __init__(self, name: str, *words: str, lasts: bool = False) -> None:
        self.name, self._words, self._lasts = name, words, lasts
        self._told, self._listing = "", ""

    def stand(self, told: str) -> None:
        """Be as told. Raises WallError."""
        if self._lasts and not self._told and self._is_there() and _essence(self._listed()) == _essence(told):
            self._told, self._listing = told, self._listed()
        if told == self._told and self.stands():
            return
        _nft("-f", "-", told=told)
        self._told, self._listing = told, self._listed()

    def stands(self) -> bool:
        """Whether it is there as it was put up. Raises WallError."""
        return self._is_there() and self._listed() == self._listing

    def leave(self) -> None:
        """Go, if it was put up here. Raises WallError."""
        if self._told:
            self._told, self._listing = "", ""
            _nft("delete", "table", "inet", self.name)

    def _is_there(self) -> bool:
        return f"table inet {self.name}" in _nft("list", "tables").splitlines()

    def _listed(self) -> str:
        # Stateless, so that counters do not make it look changed.
        return _nft("--stateless", "list", *self._words)


def _essence(text: str) -> list[str]:
    """Where chains hook in, and their rules: nft writes these as we do, but for priorities, which it may name."""
    lines = (line.strip() for line in text.splitlines())
    return [line.partition(" priority ")[0] for line in lines if "hook" in line or "comment" in line]


class Firewall:
    """Puts the tables up and looks whether they still stand. Its calls block: they belong in a thread.

    `find_resolvers` is asked at each look: a laptop comes into other networks. `rentals` is how many the owner allows
    at once. `table` and `pattern` are of the walls around tenants; whoever tries walls beside those gives others.
    """

    def __init__(
        self,
        find_resolvers: Callable[[], tuple[str, ...]],
        up_mbit: int | None,
        rules: tuple[Rule, ...] = RULES,
        *,
        rentals: int = 1,
        table: str = TABLE,
        pattern: str = BRIDGES,
    ) -> None:
        self.resolvers = find_resolvers()
        self.up_mbit = up_mbit
        self.rentals = rentals
        self._find_resolvers = find_resolvers
        self._rules, self._pattern = rules, pattern
        self._walls = _Table(table, "table", "inet", table)
        # Not the whole table: the bridges that are counted come and go in it.
        counts = counts_of(table)
        self._counts = _Table(counts, "chain", "inet", counts, "connections", lasts=True)
        self._turn = threading.Lock()

    def keep(self, find_bridges: Callable[[], Mapping[str, int | None]]) -> None:
        """Make the tables be those around the bridges that are there now, unless they stand so. It is tried twice.

        `find_bridges` is asked when it is our turn: of two at once, the later has the later list. Raises WallsDown
        where they do not stand afterwards, WallError where nft cannot be asked or those before still stand.
        """
        with self._turn:
            bridges = find_bridges()
            self.resolvers = self._find_resolvers()
            table, pattern = self._walls.name, self._pattern
            walls = ruleset(self._rules, self.resolvers, self.up_mbit, bridges, table=table, pattern=pattern)
            counts = counting(self._rules, connections_each(self.rentals), table=table, pattern=pattern)
            try:
                self._stand(walls, counts)
            except WallError:
                try:
                    self._stand(walls, counts)
                except WallError as error:
                    if self._fell():
                        raise WallsDown(str(error)) from error
                    raise

    def leave(self) -> None:
        """Take the tables away, if they were put up here. Raises WallError."""
        with self._turn:
            self._walls.leave()
            self._counts.leave()

    def stands(self) -> bool:
        """Whether the tables are there as they were put up; another program may have flushed or changed them.

        Raises WallError where nft cannot be asked.
        """
        return self._walls.stands() and self._counts.stands()

    def _stand(self, walls: str, counts: str) -> None:
        self._walls.stand(walls)
        self._counts.stand(counts)

    def _fell(self) -> bool:
        """Whether nft answers, and says that it does not stand."""
        try:
            return not self.stands()
        except WallError:
            return False


def _nft(*arguments: str, told: str | None = None) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - the arguments and the rules are ours; addresses were parsed
            ["nft", *arguments],  # noqa: S607 - distributions keep it in different places
            input=told,
            stdin=subprocess.DEVNULL if told is None else None,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise WallError(
            "nft is not installed, so that tenants cannot be walled in: install nftables."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise WallError(f"nft did not end within {_TIMEOUT_S} s.") from error
    except OSError as error:
        raise WallError(
            f"nft cannot be run ({error}): this machine has no process or memory to spare."
        ) from error
    if done.returncode != 0:
        raise WallError(f"nft refused ({done.stderr.strip()[:500]}): the agent must run as root, on Linux.")
    return done.stdout
