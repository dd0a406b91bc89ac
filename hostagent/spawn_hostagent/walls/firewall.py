"""The walls around tenants' networks: one nftables table of our own, written anew as a whole whenever it changes.

Invariant: the table matches bridges by name (`spw-…`) and comes before Docker's chains, so that nothing which Docker or
the owner's firewall does later can open it; without it nothing of a tenant starts. A tenant reaches the internet and
its resolvers. That nft cannot be asked does not mean that the walls fell: the table is the kernel's.
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
"""The tenants' bridges, in a rule: nft puts the pattern of names there that the table is made for."""
EACH: Final = 'iifname "{bridge}"'
"""How a rule begins of which every rental has its own."""

Chain = Literal["limits", "input", "forward"]


class WallError(Exception):
    """The walls could not be put up, or not be looked at; the message has what nft said and what to do."""


class WallsDown(WallError):
    """The walls do not stand, nft says so itself, and a second try did not put them up."""


@dataclass(frozen=True)
class Rule:
    """One rule, in nft's words, and why it is there. It is about what comes from tenants, unless `begins` says else.

    Those of the chain `limits` come before the others.
    """

    name: str
    chain: Chain
    match: str
    verdict: Literal["accept", "drop"]
    reason: str
    begins: str = f"iifname {TENANTS}"


RULES: Final = (
    Rule("connections", "limits", "ct state new ct count over 4096", "drop",
         "The kernel follows so many connections at once, often 65,536; then the owner's own fail, too.", begins=EACH),
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


def ruleset(
    rules: Iterable[Rule],
    resolvers: Iterable[str],
    up_mbit: int | None,
    bridges: Mapping[str, int | None],
    *,
    table: str = TABLE,
    pattern: str = BRIDGES,
) -> str:
    """The whole table, in nft's language. `bridges` is each rental's bridge and its own limit of Mbit/s upwards.

    `pattern` is what the names of all bridges begin with that are walled in.
    """
    named = ", ".join(str(ipaddress.IPv4Address(resolver)) for resolver in resolvers)
    chains: dict[Chain, list[str]] = {"limits": [], "input": [], "forward": []}
    for rule in rules:
        begins = (
            [rule.begins] if rule.begins != EACH else [EACH.format(bridge=name) for name in sorted(bridges)]
        )
        chains[rule.chain].extend(_worded(rule, begin) for begin in begins)
    limits = chains["limits"]
    limits += [_limit(f'"{bridge}"', mbit) for bridge, mbit in sorted(bridges.items()) if mbit is not None]
    if up_mbit is not None:
        limits.append(_limit(TENANTS, up_mbit))
    lines = [
        f'define {TENANTS.removeprefix("$")} = "{pattern}"',
        # Naming the table first makes deleting it no error where there is none; nft applies all of this or none.
        f"table inet {table} {{}}",
        f"delete table inet {table}",
        f"table inet {table} {{",
        f"  set resolvers {{ type ipv4_addr; elements = {{ {named} }} }}",
        *_chain("limits", "prerouting", limits),
        *_chain("from_tenants_to_host", "input", chains["input"]),
        *_chain("from_tenants", "forward", chains["forward"]),
        "}",
    ]
    return "\n".join(lines) + "\n"


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


class Firewall:
    """Puts the table up and looks whether it still stands. Its calls block: they belong in a thread.

    `find_resolvers` is asked at each look: a laptop comes into other networks. `table` and `pattern` are of the walls
    around tenants; whoever tries walls beside those gives others.
    """

    def __init__(
        self,
        find_resolvers: Callable[[], tuple[str, ...]],
        up_mbit: int | None,
        rules: tuple[Rule, ...] = RULES,
        *,
        table: str = TABLE,
        pattern: str = BRIDGES,
    ) -> None:
        self.resolvers = find_resolvers()
        self.up_mbit = up_mbit
        self._find_resolvers = find_resolvers
        self._rules, self._table, self._pattern = rules, table, pattern
        self._turn = threading.Lock()
        self._told, self._listing = "", ""

    def keep(self, find_bridges: Callable[[], Mapping[str, int | None]]) -> None:
        """Make the table be the one around the bridges that are there now, unless it stands so. It is tried twice.

        `find_bridges` is asked when it is our turn: of two at once, the later has the later list. Raises WallsDown
        where the table does not stand afterwards, WallError where nft cannot be asked or the one before still stands.
        """
        with self._turn:
            bridges = find_bridges()
            self.resolvers = self._find_resolvers()
            told = ruleset(
                self._rules, self.resolvers, self.up_mbit, bridges, table=self._table, pattern=self._pattern
            )
            try:
                self._stand(told)
            except WallError:
                try:
                    self._stand(told)
                except WallError as error:
                    if self._fell():
                        raise WallsDown(str(error)) from error
                    raise

    def leave(self) -> None:
        """Take the table away, if it was put up here. Raises WallError."""
        with self._turn:
            if self._told:
                self._told, self._listing = "", ""
                _nft("delete", "table", "inet", self._table)

    def stands(self) -> bool:
        """Whether the table is there as it was put up; another program may have flushed or changed it.

        Raises WallError where nft cannot be asked.
        """
        if f"table inet {self._table}" not in _nft("list", "tables").splitlines():
            return False
        return self._listed() == self._listing

    def _stand(self, told: str) -> None:
        if told == self._told and self.stands():
            return
        _nft("-f", "-", told=told)
        self._told, self._listing = told, self._listed()

    def _fell(self) -> bool:
        """Whether nft answers, and says that it does not stand."""
        try:
            return not self.stands()
        except WallError:
            return False

    def _listed(self) -> str:
        # Stateless, so that counters do not make it look changed.
        return _nft("--stateless", "list", "table", "inet", self._table)


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
