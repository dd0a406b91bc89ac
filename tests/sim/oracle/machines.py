"""The promises from the machines' side: each is ordered, paid for, or on its way out; nobody else's is touched.

The cloud's own memory is compared with the committed books. What may be so for a while (a stray that is waited out, an
order under way) is given a bound, in time that counts: the service was up, its jobs ticked, and the cloud could be
reached, as the inventories show that it took. Invariant: nothing here asks the service what it thinks of its machines.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from spawn_providers.base import Instance, Verb

from tests.sim.cloud import Inventory, Machine, Order
from tests.sim.oracle.part import Changes, Part, Row

if TYPE_CHECKING:
    from tests.sim.world import World

ENDED: Final = ("destroyed", "failed")
GOING: Final = ("destroying", *ENDED)
DAY_S: Final = 86_400
GRACE_S: Final = 300
"""A stray, and a missing machine, is seen twice, so far apart (ARCHITECTURE, "Transactions")."""
ORDER_S: Final = 900
"""How long an order may take before it is given up."""
UNSEEN_S: Final = DAY_S
"""A missing machine that the process has never seen may be where another token looks."""
DESTROY_S: Final = 3_600
"""The longest pause between tries to destroy is five minutes."""
LAG_S: Final = 3_600
"""What is charged daily may be late by this, as the service's clock goes."""
PASSES: Final = 40
"""How often the reconciler looks before bad luck with its calls is no excuse."""

COMMANDS: Final = {
    Verb.START: ("start_server", "resize_server"),
    Verb.SHUTDOWN: ("stop_server", "resize_server"),
    Verb.POWEROFF: ("poweroff_server", "resize_server"),
    Verb.REBOOT: ("reboot_server",),
    Verb.RESIZE: ("resize_server",),
    Verb.REBUILD: ("rebuild_server",),
    Verb.RESET_PASSWORD: ("rebuild_server",),
}
"""For which orders of an owner a verb may reach a machine: a resize stops it before, and puts it back after."""

SERVERS: Final = "SELECT * FROM server ORDER BY id"
RUNNING: Final = "SELECT * FROM operation WHERE status = 'running' ORDER BY id"
STRAYS: Final = "SELECT ref FROM stray ORDER BY ref"
STATUS: Final = {"starting": "initializing"}
"""The word of the API for the cloud's, where it is another."""


@dataclass(frozen=True, kw_only=True)
class Odd:
    """Something that must not last: for `most_s` of the time that counts, and `most_s` more of each clock set back."""

    text: str
    most_s: int
    promise: str = "unpaid"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Since when something is odd: counted seconds, and how far the clock had been set back in all by then."""

    text: str
    counted_s: int
    set_back_s: int


class Machines(Part):
    """Watches the truth, commit by commit and inventory by inventory."""

    def __init__(self, world: "World") -> None:
        super().__init__(world)
        self._servers: dict[str, Row] = {}
        self._live: dict[str, Row] = {}
        self._running: dict[str, Row] = {}
        """The operation that runs on a server."""
        self._orders = 0
        self._rebuilt: set[str] = set()
        """Operations that have wiped a disk."""
        self._inventories = 0
        self._looks: dict[str, list[int]] = {}
        """When an inventory showed a machine that the books did not know, in true milliseconds."""
        self._looker: object = None
        self._shown: set[str] = set()
        """The machines that the one process of now was shown."""
        self._odd: dict[str, Seen] = {}
        self._counted_s = 0
        self._looked_ms = 0
        self._wrong_by_s = 0
        self._set_back_s = 0
        self._restored_ms = 0

    # --- when it looks --------------------------------------------------------------------------------------------

    def committed(self, changes: Changes) -> None:
        operations = [row for row in changes.of("operation").values() if row is not None]
        for row in operations:
            known = self._running.get(row["server_id"])
            if known is not None and known["id"] == row["id"] and row["status"] != "running":
                del self._running[row["server_id"]]
        self._running.update({row["server_id"]: row for row in operations if row["status"] == "running"})
        for server_id, after in changes.of("server").items():
            if after is None:
                self.world.violation("books", f"the server {server_id} was deleted from the books")
            before = self._servers.get(server_id)
            self._note(after)
            self._check_row(before, after)
            if after["status"] in GOING and (before is None or before["status"] != after["status"]):
                self._check_end(after, changes)

    def stepped(self) -> None:
        cloud = self.world.cloud
        while self._orders < len(cloud.orders):
            self._orders += 1
            self._check_order(cloud.orders[self._orders - 1])
        while self._inventories < len(cloud.inventories):
            self._inventories += 1
            self._attend(cloud.inventories[self._inventories - 1])

    def restored(self) -> None:
        self._servers, self._live, self._running, self._odd, self._looks = {}, {}, {}, {}, {}
        for row in self.world.rows(SERVERS):
            self._note(row)
        self._running = {row["server_id"]: row for row in self.world.rows(RUNNING)}
        self._restored_ms = self.world.true_ms()

    def unsettled(self) -> list[str]:
        texts = [f"{row['command']} of {row['server_id']} is running" for row in self._running.values()]
        texts += [f"{subject} is {odd.text}" for subject, odd in self._all_odd().items()]
        return texts + [
            f"{server['id']} is {server['status']}, its machine {instance.status}"
            for server, instance in self._pairs()
            if server["status"] != STATUS.get(instance.status, instance.status)
        ]

    def at_rest(self) -> None:
        """Machines with our label and living servers are the same, one to one, and alike."""
        self._forget_nothing()
        there = {m.ref: m.key for m in self.world.cloud.existing() if m.key is not None}
        ours = {row["provider_ref"]: row["id"] for row in self._live.values()}
        if there != ours:
            self.world.violation("unpaid", f"at rest there are the machines {there}, in the books {ours}")
        for server, instance in self._pairs():
            self._check_alike(server, instance)
        strays = [row["ref"] for row in self.world.rows(STRAYS)]
        if strays:
            self.world.violation("live", f"at rest the books still wait for the strays {strays}")

    # --- what is in the books -------------------------------------------------------------------------------------

    def _note(self, row: Row) -> None:
        self._servers[row["id"]] = row
        if row["status"] in ENDED:
            self._live.pop(row["id"], None)
        else:
            self._live[row["id"]] = row

    def _check_row(self, before: Row | None, row: Row) -> None:
        """What a server's row says together with its operation, at every commit: what the next start goes on from."""
        server_id, status, ref = row["id"], row["status"], row["provider_ref"]
        operation = self._running.get(server_id)
        command = None if operation is None else operation["command"]
        if (status == "destroying") != (command == "destroy_server"):
            self.world.violation("crash", f"{server_id} is {status} while {command} runs")
        if status not in GOING and ref is None and command != "create_server":
            self.world.violation("crash", f"{server_id} is {status} without a machine, and nobody orders one")
        metered = row["charged_until"] is not None
        if metered != (status not in GOING and ref is not None):
            has = "a meter" if metered else "no meter"
            self.world.violation("unpaid", f"{server_id} is {status} with the machine {ref} and has {has}")
        if before is not None and before["provider_ref"] not in (None, ref):
            self.world.violation("unpaid", f"{server_id} had the machine {before['provider_ref']}, now {ref}")
        if ref is not None and self.world.cloud.machine(ref).key != server_id:
            self.world.violation("foreign", f"{server_id} is given the machine {ref} of another")
        if status in ENDED and ref is not None and self._exists(ref):
            self.world.violation("unpaid", f"{server_id} is {status} and its machine {ref} is there")

    def _check_end(self, row: Row, changes: Changes) -> None:
        """A server ends only for a reason that holds, and its owner hears of it in the same commit."""
        server_id, status, reason = row["id"], row["status"], row["reason"]
        told = any(e["type"] == f"server.{status}" and e["resource"] == server_id for e in changes.events)
        if not told:
            self.world.violation("unwarned", f"{server_id} became {status} and its owner was not told")
        if status == "failed" and row["provider_ref"] is None:
            self._check_failed(server_id)
        if status == "destroying" and reason == "requested":
            operation = self._running[server_id]
            calls = [call for call in changes.of("reservation").values() if call is not None]
            if not any(c["operation_id"] == operation["id"] and c["wallet"] == row["wallet"] for c in calls):
                self.world.violation(
                    "paid", f"{server_id} is being destroyed and its owner did not ask for it"
                )
        if status == "destroying" and reason == "deposit_exhausted" and row["exhausted_at"] is None:
            self.world.violation("paid", f"{server_id} is being destroyed for want of money that is there")
        if reason == "provider_refused" and status != "destroyed" and not self._refused(server_id, changes):
            self.world.violation("paid", f"{server_id} became {status} and its order was not refused")

    def _check_failed(self, server_id: str) -> None:
        """An order whose answer was lost is not given up before it is clear that there is no machine.

        Left out is what nobody could know: a request that is late, and two that are on their way because a clock was
        set forward beyond the end of a claim.
        """
        for machine in self.world.cloud.existing():
            known = not (machine.late or machine.planted or self.world.climate.clock_steps)
            if machine.key == server_id and known:
                self.world.violation("unpaid", f"{server_id} failed, and its machine {machine.ref} is there")

    def _refused(self, server_id: str, changes: Changes) -> bool:
        """Whether the order has failed: in this commit, or (where its half was cleared away) before."""
        operations = [op for op in changes.of("operation").values() if op and op["server_id"] == server_id]
        commands = {(op["command"], op["status"]) for op in operations}
        return ("create_server", "error") in commands or ("destroy_server", "success") in commands

    # --- what happens to machines ---------------------------------------------------------------------------------

    def _check_order(self, order: Order) -> None:
        machine = order.machine
        if machine.key is None:
            self.world.violation("foreign", f"the machine {machine.ref}, which is not ours, had an order")
        if order.sent_ms < self._restored_ms:
            return  # the books that it was in are gone
        server = self._servers.get(machine.key)
        if order.verb is None:
            self._check_deletion(machine, server, order.sent_ms)
        elif server is None or server["status"] not in GOING:
            self._check_act(machine, order.verb, order.broke_down)

    def _check_act(self, machine: Machine, verb: Verb, broke_down: bool) -> None:
        """Somebody ordered it, and what wipes a disk is done once for an order."""
        operation = self._running.get(machine.key or "")
        if operation is None or operation["command"] not in COMMANDS[verb]:
            self.world.violation("foreign", f"{verb} reached the machine of {machine.key}, by nobody's order")
        if verb is Verb.REBUILD and not broke_down:
            if operation["id"] in self._rebuilt:
                self.world.violation("paid", f"{operation['id']} has wiped the disk of {machine.key} twice")
            self._rebuilt.add(operation["id"])

    def _check_deletion(self, machine: Machine, server: Row | None, sent_ms: int) -> None:
        """Who is deleted is on its way out in the books, or was in none of them for a while."""
        if server is not None and server["status"] not in GOING:
            self.world.violation("paid", f"the machine {machine.ref} of the living {machine.key} was deleted")
        if server is None:
            looks = [at for at in self._looks.get(machine.ref, []) if at <= sent_ms]
            # It is judged some time after the inventory was read, by a process that may have been held up meanwhile.
            waited_ms = sent_ms - looks[0] if looks else 0
            patient = self.world.climate.clock_steps or waited_ms >= (GRACE_S - 1) * 1000
            if len(looks) < 2 or not patient:
                self.world.violation(
                    "foreign", f"the stray {machine.ref} was deleted after {len(looks)} looks"
                )

    def _attend(self, inventory: Inventory) -> None:
        """The service has just seen what there is: more time counts, and nothing odd may have lasted too long."""
        if self.world.process is None and self.world.twin is None:
            return  # a restore looks, and decides nothing about what was lost
        every_s = self.world.settings.reconcile_every_s
        self._counted_s += min((inventory.at_ms - self._looked_ms) // 1000, every_s) if self._looked_ms else 0
        self._looked_ms = inventory.at_ms
        wrong_by_s = self.world.clock.now_s() - self.world.true_s()
        self._set_back_s += max(0, self._wrong_by_s - wrong_by_s)
        self._wrong_by_s = wrong_by_s
        for instance in inventory.instances:
            if instance.key not in self._servers:
                self._looks.setdefault(instance.ref, []).append(inventory.at_ms)
        self._remember(inventory)
        odd = self._all_odd()
        self._odd = {subject: self._since(subject, each.text) for subject, each in odd.items()}
        for subject, each in odd.items():
            since = self._odd[subject]
            most_s = each.most_s + PASSES * every_s + self._set_back_s - since.set_back_s
            if self._counted_s - since.counted_s > most_s:
                self.world.violation(
                    each.promise,
                    f"{subject} is {each.text}, for {self._counted_s - since.counted_s} s by now",
                )

    def _remember(self, inventory: Inventory) -> None:
        """What one process saw another does not know, and of two nobody can tell here who was shown this."""
        looker = (self.world.process, self.world.twin)
        if looker != self._looker:
            self._looker = looker
            self._shown = set()
        if None in looker:
            self._shown |= {instance.ref for instance in inventory.instances}

    def _since(self, subject: str, text: str) -> Seen:
        known = self._odd.get(subject)
        if known is not None and known.text == text:
            return known
        return Seen(text=text, counted_s=self._counted_s, set_back_s=self._set_back_s)

    # --- what is odd ----------------------------------------------------------------------------------------------

    def _all_odd(self) -> dict[str, Odd]:
        """Everything that must not last, by the machine or server it is about."""
        odd = {}
        for machine in self.world.cloud.existing():
            if machine.key is not None and (found := self._odd_machine(machine)) is not None:
                odd[f"machine {machine.ref}"] = found
        for row in self._live.values():
            ref = row["provider_ref"]
            if row["status"] != "destroying" and ref is not None and not self._exists(ref):
                most_s, text = GRACE_S, "billed and its machine is gone"
                if ref not in self._shown:
                    most_s, text = UNSEEN_S, f"{text}, and was never seen"
                odd[row["id"]] = Odd(text=text, most_s=most_s + ORDER_S, promise="paid")
        return odd

    def _odd_machine(self, machine: Machine) -> Odd | None:
        server = self._servers.get(machine.key or "")
        if server is None:
            return Odd(text="nobody's", most_s=GRACE_S)
        if server["status"] in ENDED:
            return Odd(text=f"that of {server['id']}, which is {server['status']}", most_s=GRACE_S)
        if server["status"] == "destroying":
            return Odd(text=f"that of {server['id']}, and still to be destroyed", most_s=DESTROY_S)
        if server["provider_ref"] is None:
            return Odd(text=f"there, and {server['id']} has not heard of it", most_s=ORDER_S)
        if server["exhausted_at"] is not None:
            return self._odd_debtor(server)
        if self.world.clock.now_s() - server["charged_until"] > DAY_S + LAG_S:
            return Odd(text=f"not paid for since {server['charged_until']}", most_s=0)
        return None

    def _odd_debtor(self, server: Row) -> Odd | None:
        """The money has ended: the owner has the time of the tightest warning, and the grace, and not more."""
        policy = self.world.settings.warning_policy
        if server["last_warned_at"] is None:
            return Odd(text=f"unpaid, and the owner of {server['id']} not warned", most_s=0)
        last = server["last_warned_at"] + policy.thresholds_s[-1]
        if self.world.clock.now_s() <= max(server["exhausted_at"] + 1 + policy.grace_s, last):
            return None
        return Odd(text=f"unpaid since {server['exhausted_at']}", most_s=0)

    # --- machines and servers side by side --------------------------------------------------------------------------

    def _exists(self, ref: str) -> bool:
        return self.world.cloud.machine(ref).exists_at(self.world.true_ms())

    def _pairs(self) -> list[tuple[Row, Instance]]:
        """The living servers that have a machine, with what it is like."""
        looks = [
            (row, self.world.cloud.look(row["provider_ref"]))
            for row in self._live.values()
            if row["provider_ref"] is not None
        ]
        return [(row, instance) for row, instance in looks if instance is not None]

    def _check_alike(self, server: Row, instance: Instance) -> None:
        billed = {
            name: server[name] for name in ("provider_type", "location", "image", "disk_gb", "ipv4", "ipv6")
        }
        real = {name: getattr(instance, name) for name in billed}
        if billed != real or server["wallet"] != instance.owner:
            self.world.violation("unpaid", f"{server['id']} is {billed} in the books and {real} in the cloud")

    def _forget_nothing(self) -> None:
        """What was built up from changes is what the database says."""
        rows = {row["id"]: row for row in self.world.rows(SERVERS)}
        if rows != self._servers:
            differing = sorted(key for key in rows if rows[key] != self._servers.get(key))
            self.world.violation(
                "books", f"the servers {differing} changed without a commit that anybody saw"
            )


PARTS: Final = (Machines,)
