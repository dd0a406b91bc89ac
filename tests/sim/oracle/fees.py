"""What each call costs, by the specification's list: whoever pays more or less than that was not told the truth.

Invariant: a successful call says in `Spawn-Fee` what the list asks for it, and no fee enters the books that is not on
the list; only a broke wallet's DELETE costs less, because it has no more.
"""

import re
from fractions import Fraction
from typing import Any, Final

from tests.sim.client_types import Answer, Request
from tests.sim.oracle.part import Changes, Part, Row

_ID: Final = r"[^/]+"
FEES: Final[tuple[tuple[str, str, int], ...]] = (
    ("POST", "/v1/servers", 10_000),
    ("GET", "/v1/servers", 1_000),
    ("GET", "/v1/servers/{}", 1_000),
    ("PATCH", "/v1/servers/{}", 1_000),
    ("DELETE", "/v1/servers/{}", 5_000),
    ("POST", "/v1/servers/{}/deposit", 1_000),
    ("POST", "/v1/servers/{}/start", 2_000),
    ("POST", "/v1/servers/{}/stop", 2_000),
    ("POST", "/v1/servers/{}/poweroff", 2_000),
    ("POST", "/v1/servers/{}/reboot", 2_000),
    ("POST", "/v1/servers/{}/resize", 10_000),
    ("POST", "/v1/servers/{}/rebuild", 5_000),
    ("GET", "/v1/servers/{}/logs", 1_000),
    ("POST", "/v1/servers/{}/exec", 2_000),
    ("GET", "/v1/commands/{}", 0),
    ("POST", "/v1/ssh-keys", 1_000),
    ("GET", "/v1/ssh-keys", 1_000),
    ("DELETE", "/v1/ssh-keys/{}", 1_000),
    ("POST", "/v1/webhooks", 1_000),
    ("GET", "/v1/webhooks", 1_000),
    ("GET", "/v1/webhooks/{}", 1_000),
    ("PATCH", "/v1/webhooks/{}", 1_000),
    ("DELETE", "/v1/webhooks/{}", 1_000),
    ("POST", "/v1/webhooks/{}/test", 1_000),
    ("POST", "/v1/webhooks/{}/secret", 1_000),
    ("GET", "/v1/webhooks/{}/deliveries", 1_000),
    ("GET", "/v1/balance", 0),
    ("GET", "/v1/balance/transactions", 0),
    ("POST", "/v1/balance/deposit", 0),
    ("GET", "/v1/suspense", 0),
    ("POST", "/v1/suspense/claim", 0),
    ("GET", "/v1/events", 0),
    ("POST", "/v1/sessions", 0),
)
"""Micro-USDC; identifying oneself and paying in are free."""
OF_OPERATIONS: Final = {
    "create_server": 10_000,
    "start_server": 2_000,
    "stop_server": 2_000,
    "poweroff_server": 2_000,
    "reboot_server": 2_000,
    "resize_server": 10_000,
    "rebuild_server": 5_000,
    "destroy_server": 5_000,
}
OF_THE_REST: Final = 1_000
"""Every call that asks no provider for anything and is not free."""
_PATHS: Final = tuple(
    (method, re.compile("/".join(_ID if part == "{}" else part for part in path.split("/"))), fee)
    for method, path, fee in FEES
)


def micro(text: str) -> int:
    """Micro-USDC of an amount on the wire. Raises ValueError where it is not whole."""
    amount = Fraction(text) * 1_000_000
    if amount.denominator != 1:
        raise ValueError(f"{text} USDC is no whole number of micro-USDC")
    return int(amount)


def fee_of(method: str, path: str) -> int | None:
    """What the list asks for this call; None for a call that is not on it."""
    return next((fee for verb, form, fee in _PATHS if verb == method and form.fullmatch(path)), None)


class Fees(Part):
    """The fees of answers, and those of the books."""

    def answered(self, request: Request, answer: Answer) -> None:
        said = answer.headers.get("spawn-fee")
        if not 200 <= answer.status < 300:
            return
        if request.path == "/v1/catalog":
            self._check_list(answer.json())
        if said is None:
            return
        fee, taken = fee_of(request.method, request.path), micro(said)
        if fee is None:
            self.world.violation("books", f"{request.method} {request.path} is on no list, and cost {said}")
        spared = request.method == "DELETE" and request.path.startswith("/v1/servers/")
        if not (0 <= taken <= fee if spared else taken == fee):
            self.world.violation("books", f"{request.method} {request.path} cost {said}, the list asks {fee}")

    def _check_list(self, catalog: Any) -> None:
        shown = {
            (one["method"], re.sub(r"\{[^}]*\}", "{}", one["path"])): micro(one["fee"])
            for one in catalog["fees"]
        }
        mine = {(method, path): fee for method, path, fee in FEES}
        if shown != mine:
            self.world.violation(
                "books", f"the catalog lists other fees: {sorted(set(shown.items()) ^ set(mine.items()))}"
            )

    def committed(self, changes: Changes) -> None:
        for transfer in changes.transfers:
            if transfer["code"] == "fee":
                self._check_fee(transfer, changes)

    def _check_fee(self, transfer: Row, changes: Changes) -> None:
        command = self._command(transfer["reference"], changes)
        fee = OF_THE_REST if command is None else OF_OPERATIONS[command]
        if transfer["amount"] == fee:
            return
        if command is None and transfer["amount"] == 2_000 and self._started(transfer["debit"], changes):
            return
        if (
            command == "destroy_server"
            and transfer["amount"] < fee
            and self._is_broke(transfer["debit"], changes)
        ):
            return
        self.world.violation(
            "books", f"{transfer['id']} took {transfer['amount']} for {command or 'a call'}, not {fee}"
        )

    def _command(self, reference: str, changes: Changes) -> str | None:
        """What the fee was for: an operation, by its id or by the call that ordered it; None for any other call."""
        operation: str | None = reference
        if not reference.startswith("act_"):
            calls = changes.of("reservation")
            # A call's reference is its time and a part of its fingerprint, then the name of its nonce.
            operation = next(
                (
                    row["operation_id"]
                    for key, row in calls.items()
                    if row is not None and reference.endswith(key)
                ),
                None,
            )
        if operation is None:
            return None
        row = changes.of("operation").get(operation)
        if row is None:
            (row,) = self.world.rows("SELECT command FROM operation WHERE id = :id", id=operation)
        return str(row["command"])

    def _started(self, account: str, changes: Changes) -> bool:
        """Whether the wallet started what runs: an operation with nothing to do, for which nobody waits."""
        return any(
            row is not None
            and (row["command"], row["status"], row["attempts"]) == ("start_server", "success", 0)
            and account == f"wallet:{row['wallet']}"
            for row in changes.of("operation").values()
        )

    def _is_broke(self, account: str, changes: Changes) -> bool:
        """Whether nothing was left to take; what came in within the same commit came in afterwards."""
        row = changes.of("account").get(account)
        came_in = any(transfer["credit"] == account for transfer in changes.transfers)
        return row is not None and (row["balance"] == row["held"] or came_in)
