"""Bugs of machines: lost answers, claims, orphans, what a stranger may do to them."""

from typing import Final

from tests.sim.planted_bug import Bug

CALLS: Final = "spawn/services/provider_calls.py"
RECONCILE: Final = "spawn/services/reconcile.py"
OWNERSHIP: Final = "spawn/services/ownership.py"
OF_MACHINES: Final = ("unpaid", "paid", "books", "live", "answers", "foreign", "crash")

OF_PROVIDERS: Final = (
    Bug(
        name="orphan on a lost answer: given up, with refund",
        file=CALLS,
        before=(
            "    except (OutcomeUnknown, TimeoutError):\n        return TryLater(after_s=1, unknown=True, "
        ),
        after=(
            "    except (OutcomeUnknown, TimeoutError):\n"
            "        return Failed(code=Code.HETZNER_UNAVAILABLE, "
        ),
        promises=OF_MACHINES,
    ),
    Bug(
        name="orphan on a lost answer: asked again without looking",
        file=CALLS,
        before="        case Phase.SENT:\n            seen = await _look(provider, work, now)",
        after="        case Phase.SENT:\n            seen = None",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a rebuild is repeated though it may be done",
        file=CALLS,
        before="                return _NEVER_TWICE",
        after="                return None",
        promises=OF_MACHINES,
    ),
    Bug(
        name="strays are left alone",
        file=RECONCILE,
        before="        if first_seen_at is None or now - first_seen_at < GRACE_S:",
        after="        if first_seen_at is None or now - first_seen_at < GRACE_S * GRACE_S * GRACE_S:",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a boot's end is told each time that it is repeated",
        file="spawn/services/boots.py",
        before="    if after.cloud_init is not None and begun.cloud_init is None:",
        after="    if after.cloud_init is not None and begun.since:",
        promises=("unwarned",),
    ),
    Bug(
        name="the keys of a server outlive it",
        file="spawn/services/boots.py",
        before='    tx.execute(secrets.DELETE_ALL_SEALED, {"owner": server_id})',
        after='    tx.execute(secrets.DELETE_ALL_SEALED, {"owner": server_id[1:]})',
        promises=("unwarned",),
    ),
    Bug(
        name="a list that leaves a machine out is believed",
        file=RECONCILE,
        before=(
            "            there = server.provider_ref is not None "
            "and await provider.get(server.provider_ref) is not None"
        ),
        after="            there = server.provider_ref is None",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a vanished machine is billed on",
        file=RECONCILE,
        before="        if since is None or now - since < grace_s:\n            return False\n        # Whatever",
        after="        if since is None or now - since < 10**12:\n            return False\n        # Whatever",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a stale claim's outcome is applied",
        file="spawn/services/outcomes.py",
        before="        if operation.claim != token or operation.status is not OperationStatus.RUNNING:",
        after="        if operation.status is not OperationStatus.RUNNING:",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a late order is undone though another worker goes on with it",
        file="spawn/services/operator.py",
        before="        if not found or servers.server_from(found[0]).status not in FINAL | {Status.DESTROYING}:",
        after="        if not found:",
        promises=OF_MACHINES,
    ),
    Bug(
        name="claims are not released at the start",
        file="spawn/parts.py",
        before="        await parts.db.write(lambda tx: tx.execute(operations.RELEASE_CLAIMS, {}))\n",
        after="",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a destruction is never ordered",
        file="spawn/services/endings.py",
        before="    operations.insert_operation(tx, operation)\n",
        after="    if reason is not Reason.DEPOSIT_EXHAUSTED:\n        operations.insert_operation(tx, operation)\n",
        promises=OF_MACHINES,
    ),
    Bug(
        name="a destruction that failed is given up",
        file="spawn/services/outcomes.py",
        before="            # Kept for operators (`services.incidents`);",
        after="            return self._finish(tx, operation, server, now)\n            #",
        promises=OF_MACHINES,
    ),
    Bug(
        name="the fence is not checked",
        file="spawn/services/leader.py",
        before="            return await self._db.write(self._leader.fence(fn, token))",
        after="            return await self._db.write(fn)",
        promises=("live", "books", "unwarned", "crash"),
    ),
    Bug(
        name="two processes lead",
        file="spawn/services/leader.py",
        before="        if seen is not None and not self._may_take(seen):",
        after="        if seen is not None and seen.token < 0:",
        promises=("live", "books", "unwarned", "crash"),
    ),
)

OF_ACCESS: Final = (
    Bug(
        name="whose server it is, is not looked at",
        file=OWNERSHIP,
        before="    if server.wallet != wallet:",
        after="    if not wallet:",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="whose webhook it is, is not looked at",
        file=OWNERSHIP,
        before="    if webhook.wallet != wallet:",
        after="    if not wallet:",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="whose events they are, is not looked at",
        file="spawn/store/events.py",
        before="WHERE wallet = :wallet AND seq > :after",
        after="WHERE (wallet = :wallet OR 1 = 1) AND seq > :after",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="whose SSH key it is, is not looked at",
        file=OWNERSHIP,
        before="    if key.wallet != wallet:",
        after="    if not wallet:",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="a bar is not looked at",
        file="spawn/services/acting.py",
        before="    if barred is None:",
        after="    if barred is None or barred:",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="a root password is handed out twice",
        file="spawn/store/secrets.py",
        before="        if text is not None:\n            tx.execute(DELETE_SEALED",
        after="        if text is not None and kind == USER_DATA:\n            tx.execute(DELETE_SEALED",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="a copy of a payment is answered to whoever shows it",
        file="spawn/services/paid_calls.py",
        before="        if known.id == call.identity.nonce_key and known.seal != call.identity.seal:",
        after="        if known.id == call.identity.nonce_key and not known.id:",
        promises=("foreign", "answers"),
    ),
    Bug(
        name="a session may act",
        file="spawn/api/gate.py",
        before="    if identity.binds_request:\n        return True\n    return route",
        after="    if identity.wallet:\n        return True\n    return route",
        promises=("foreign", "answers"),
    ),
)
