"""Bugs of lives: warnings, ends, prices, and what receivers hear of them."""

from typing import Final

from tests.sim.planted_bug import Bug

BILLING: Final = "spawn/services/billing.py"
WARNINGS: Final = "spawn/domain/warnings.py"
DELIVERIES: Final = "spawn/services/deliveries.py"
OF_ENDS: Final = ("unwarned", "unpaid", "books", "live", "answers")
OF_EVENTS: Final = ("unwarned", "live", "books", "answers")

OF_LIVES: Final = (
    Bug(
        name="early destroy: an hour that is paid",
        file="ledger/spawn_ledger/runway.py",
        before="        return {alone.server_id: paid_until(alone.meter, own_usdc)}",
        after="        return {alone.server_id: paid_until(alone.meter, own_usdc) - 3600}",
        promises=OF_ENDS,
    ),
    Bug(
        name="destroyed before its last warning is as old as it is tight",
        file=WARNINGS,
        before="    return max(ends_at + 1 + policy.grace_s, notice.last_warned_at + policy.last_s)",
        after="    return ends_at + 1 + policy.grace_s",
        promises=OF_ENDS,
    ),
    Bug(
        name="a short life ends without its late warning",
        file=WARNINGS,
        before=(
            "    return _is_told(policy, notice) and notice.last_warned_at is None\n\n\n"
            "def may_end_at(policy: Policy, notice: Notice, ends_at: int) -> int:\n"
        ),
        after=(
            "    return False\n\n\n"
            "def may_end_at(policy: Policy, notice: Notice, ends_at: int) -> int:\n"
            "    if notice.last_warned_at is None:\n"
            "        return ends_at + 1\n"
        ),
        promises=OF_ENDS,
    ),
    Bug(
        name="nobody is warned",
        file=BILLING,
        before="        if threshold_s is not None:\n            cause",
        after="        if threshold_s == 0:\n            cause",
        promises=OF_ENDS,
    ),
    Bug(
        name="the last warning is not told",
        file=BILLING,
        before="        if threshold_s is not None:\n            cause",
        after="        if threshold_s is not None and threshold_s > self.policy.last_s:\n            cause",
        promises=OF_ENDS,
    ),
    Bug(
        name="a warning is not remembered",
        file=BILLING,
        before="            notice = warnings.warned(notice, threshold_s, self.policy, now)",
        after=(
            "            warned = warnings.warned(notice, threshold_s, self.policy, now)\n"
            "            notice = replace(warned, epoch=notice.epoch + 1, warned_s=notice.warned_s)"
        ),
        promises=OF_ENDS,
    ),
    Bug(
        name="a top-up loses the race with the end",
        file=BILLING,
        before=(
            "            at = server.exhausted_at\n"
            "            if at is not None and now >= warnings.may_end_at(self.policy, _notice(server), at):"
        ),
        after=(
            "            at = old.server.exhausted_at\n"
            "            if at is not None and now >= warnings.may_end_at(self.policy, _notice(old.server), at):"
        ),
        promises=OF_ENDS,
    ),
    Bug(
        name="nobody is destroyed",
        file=BILLING,
        before="        ended = {server.id: self._end(tx, server, now) for server in ending if server.id != sparing}",
        after="        ended = {server.id: self._end(tx, server, now) for server in ending if server.id == sparing}",
        promises=OF_ENDS,
    ),
    Bug(
        name="who is due is looked at too late",
        file=WARNINGS,
        before="    return max(now, min(next_turn, now + (HOUR if counts_on_wallet else DAY)))",
        after="    return now + 3 * DAY",
        promises=OF_ENDS,
    ),
    Bug(
        name="a price rises without notice",
        file="spawn/domain/price_changes.py",
        before="    return max(change.effective_at, now + NOTICE_S if change.daily_usdc > daily_usdc else now)",
        after="    return now",
        promises=("unwarned", "books", "paid", "answers"),
    ),
    Bug(
        name="an owner starves another server of the wallet",
        file=BILLING,
        before="            if end < horizon and end + 1 < was.get(server_id, FAR_FUTURE):",
        after="            if end < now and end + 1 < was.get(server_id, FAR_FUTURE):",
        promises=OF_ENDS,
    ),
)

TOLD: Final = (
    Bug(
        name="a status without its event",
        file="spawn/services/changes.py",
        before="    Status.OFF: EventType.SERVER_OFF,\n",
        after="",
        promises=OF_EVENTS,
    ),
    Bug(
        name="a delivery is lost when its receiver is down",
        file=DELIVERIES,
        before="    if error is not None and not _is_gone(answer):",
        after="    if error is not None and answer is not None and not _is_gone(answer):",
        promises=OF_EVENTS,
    ),
    Bug(
        name="a delivery counts before it was sent",
        file=DELIVERIES,
        before="        except NotAnswered as failure:\n            error = str(failure)",
        after="        except NotAnswered:\n            error = None",
        promises=OF_EVENTS,
    ),
    Bug(
        name="deliveries overtake each other",
        file=DELIVERIES,
        before='                elif row["head"] != row["seq"]:',
        after='                elif row["head"] < 0:',
        promises=OF_EVENTS,
    ),
    Bug(
        name="a webhook hears of what it does not want",
        file="spawn/store/events.py",
        before="    OR ',' || types || ',' LIKE '%,' || :family || ',%'",
        after="    OR ',' || types || ',' NOT LIKE '%,' || :family || ',%'",
        promises=OF_EVENTS,
    ),
    Bug(
        name="events are forgotten before they are delivered",
        file="spawn/store/events.py",
        before='    last = old[-1] if pending is None or pending["seq"] is None else pending["seq"] - 1',
        after="    last = old[-1]",
        promises=OF_EVENTS,
    ),
)
