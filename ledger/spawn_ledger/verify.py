"""Whether the books are right, asked of the database itself: each invariant of money that it can show.

Invariant: books kept through this package give no violation, and whatever breaks a rule is named, with a
sentence that says what is wrong and where.

Every transfer is read: for nights, tests and doubts. Run it where all its statements see one moment (SQLite's
writer, or REPEATABLE READ); elsewhere what moves between two of them looks wrong.
"""

from typing import Final

import msgspec
from spawn_schemas.money import Usdc

from spawn_ledger.accounts import EXT_USDC, OWED_PROVIDER, REV_COMPUTE, REV_TRAFFIC, SUSPENSE
from spawn_ledger.accrual import DAY
from spawn_ledger.transfers import balance_of
from spawn_ledger.tx import Tx


class Violation(msgspec.Struct, frozen=True, kw_only=True):
    """A broken rule, by name, and a sentence for the operator. Amounts in it are micro-USDC."""

    rule: str
    sentence: str


class _Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A query that finds what breaks a rule; its columns fill the sentence."""

    name: str
    sql: str
    sentence: str


# Each stretch of time that was charged, read from the name of its transfer; `at` is its end. Nothing else is named so.
_STRETCHES: Final = """
SELECT id, code, reference, amount, at AS until,
    CAST(substr(id, length(reference) + 7, length(id) - length(reference) - 6 - length(tail)) AS BIGINT) AS since
FROM (
    SELECT transfer.*, '|' || at || CASE
        WHEN code = 'cost' THEN '' WHEN id LIKE '%|reserve' THEN '|reserve' ELSE '|wallet' END AS tail
    FROM transfer
) AS named WHERE id LIKE 'burn|%' OR id LIKE 'cost|%'
"""
# The months of its first and its last second, numbered without a gap (Howard Hinnant, chrono-Compatible Low-Level Date
# Algorithms, `civil_from_days`): a year begins in March there, an era has 400 of them.
_MONTHS: Final = f"""
SELECT id, code, reference, amount, since, until, side,
    (era * 400 + year) * 12 + (5 * (day - (365 * year + year / 4 - year / 100)) + 2) / 153 AS month
FROM (
    SELECT within.*, (day - day / 1460 + day / 36524 - day / 146096) / 365 AS year FROM (
        SELECT moment.*, (at / :day + 719468) / 146097 AS era, (at / :day + 719468) % 146097 AS day FROM (
            SELECT stretch.*, 'first' AS side, since AS at FROM ({_STRETCHES}) AS stretch
            UNION ALL SELECT stretch.*, 'last' AS side, until - 1 AS at FROM ({_STRETCHES}) AS stretch
        ) AS moment
    ) AS within
) AS dated
"""  # noqa: S608 - made of constants

_RULES: Final = (
    _Rule(
        name="cached balance",
        sql="""
            SELECT account.id, account.balance, CAST(COALESCE(leg.total, 0) AS BIGINT) AS total
            FROM account LEFT JOIN (
                SELECT side.id, SUM(side.amount) AS total FROM (
                    SELECT credit AS id, amount FROM transfer
                    UNION ALL SELECT debit AS id, -amount AS amount FROM transfer
                ) AS side GROUP BY side.id
            ) AS leg ON leg.id = account.id
            WHERE account.balance <> COALESCE(leg.total, 0) ORDER BY account.id
        """,
        sentence="{id} shows a balance of {balance}, but its transfers add up to {total}",
    ),
    _Rule(
        name="held",
        sql="""
            SELECT account.id, account.held, CAST(COALESCE(pending.total, 0) AS BIGINT) AS total
            FROM account LEFT JOIN (
                SELECT debit, SUM(amount) AS total FROM hold WHERE state = 'pending' GROUP BY debit
            ) AS pending ON pending.debit = account.id
            WHERE account.held <> COALESCE(pending.total, 0) ORDER BY account.id
        """,
        sentence="{id} has {held} held, but its pending holds add up to {total}",
    ),
    _Rule(
        name="never negative",
        sql="""
            SELECT id, balance, held FROM account
            WHERE balance < 0 OR held < 0 OR held > balance ORDER BY id
        """,
        sentence="{id} has a balance of {balance} with {held} held: a customer account is never below zero",
    ),
    _Rule(
        name="customer has a row",
        sql="""
            SELECT DISTINCT used.id FROM (
                SELECT debit AS id FROM transfer UNION SELECT credit AS id FROM transfer
                UNION SELECT debit AS id FROM hold WHERE state = 'pending'
            ) AS used
            WHERE (substr(used.id, 1, 7) = 'wallet:' OR substr(used.id, 1, 4) = 'srv:')
                AND NOT EXISTS (SELECT 1 FROM account WHERE account.id = used.id)
            ORDER BY used.id
        """,
        sentence="{id} has movements but no row in account",
    ),
    _Rule(
        name="operator is derived",
        sql="""
            SELECT id, balance FROM account
            WHERE substr(id, 1, 7) <> 'wallet:' AND substr(id, 1, 4) <> 'srv:' ORDER BY id
        """,
        sentence="{id} is no customer account, but has a cached balance of {balance}",
    ),
    _Rule(
        name="reserve has a server",
        sql="""
            SELECT account.id, account.balance FROM account
            WHERE substr(account.id, 1, 4) = 'srv:' AND account.balance <> 0
                AND NOT EXISTS (SELECT 1 FROM server WHERE server.id = substr(account.id, 5))
            ORDER BY account.id
        """,
        sentence="{id} holds {balance} for a server that does not exist",
    ),
    _Rule(
        name="charged",
        sql="""
            SELECT server.id, server.charged_usdc, CAST(COALESCE(charge.total, 0) AS BIGINT) AS total
            FROM server LEFT JOIN (
                SELECT reference, SUM(CASE WHEN credit = :rev_compute THEN amount ELSE -amount END) AS total
                FROM transfer WHERE credit = :rev_compute OR debit = :rev_compute GROUP BY reference
            ) AS charge ON charge.reference = server.id
            WHERE server.charged_usdc <> COALESCE(charge.total, 0) ORDER BY server.id
        """,
        sentence="{id} says that {charged_usdc} was charged, but its burn adds up to {total}",
    ),
    _Rule(
        name="cost",
        sql="""
            SELECT server.id, server.cost_usdc, CAST(COALESCE(cost.total, 0) AS BIGINT) AS total
            FROM server LEFT JOIN (
                SELECT reference, SUM(CASE WHEN credit = :owed_provider OR substr(credit, 1, 5) = 'host:' THEN amount
                    ELSE -amount END) AS total
                FROM transfer WHERE code <> 'traffic' AND (credit = :owed_provider OR debit = :owed_provider
                    OR substr(credit, 1, 5) = 'host:' OR substr(debit, 1, 5) = 'host:') GROUP BY reference
            ) AS cost ON cost.reference = server.id
            WHERE server.cost_usdc <> COALESCE(cost.total, 0) ORDER BY server.id
        """,
        sentence="{id} says that it cost us {cost_usdc}, but what its provider is owed adds up to {total}",
    ),
    _Rule(
        name="owed to its host",
        sql="""
            SELECT transfer.id, transfer.credit, COALESCE(server.host_id, 'nobody') AS host FROM transfer
            LEFT JOIN server ON server.id = transfer.reference
            WHERE transfer.code = 'cost' AND substr(transfer.credit, 1, 5) = 'host:'
                AND transfer.credit <> 'host:' || COALESCE(server.host_id, 'nobody')
            ORDER BY transfer.id
        """,
        sentence="transfer {id} owes {credit} for a server that is on the machine of {host}",
    ),
    _Rule(
        name="traffic",
        sql="""
            SELECT server.id, COALESCE(traffic.charged_usdc, 0) AS charged_usdc,
                COALESCE(traffic.cost_usdc, 0) AS cost_usdc,
                CAST(COALESCE(moved.charged, 0) AS BIGINT) AS charged, CAST(COALESCE(moved.cost, 0) AS BIGINT) AS cost
            FROM server LEFT JOIN traffic ON traffic.server_id = server.id LEFT JOIN (
                SELECT reference, SUM(CASE WHEN credit = :rev_traffic THEN amount ELSE 0 END) AS charged,
                    SUM(CASE WHEN credit = :owed_provider THEN amount ELSE 0 END) AS cost
                FROM transfer WHERE code = 'traffic' GROUP BY reference
            ) AS moved ON moved.reference = server.id
            WHERE COALESCE(traffic.charged_usdc, 0) <> COALESCE(moved.charged, 0)
                OR COALESCE(traffic.cost_usdc, 0) <> COALESCE(moved.cost, 0) ORDER BY server.id
        """,
        sentence="{id} says that {charged_usdc} was charged for its traffic, which cost us {cost_usdc}, but its "
        "transfers add up to {charged} and {cost}",
    ),
    _Rule(
        name="charged once",
        sql=f"""
            SELECT id, since, earlier FROM (
                SELECT id, since, until, LAG(until) OVER (PARTITION BY code, reference ORDER BY since, until) AS earlier
                FROM (
                    SELECT MIN(id) AS id, code, reference, since, until FROM ({_STRETCHES}) AS leg
                    GROUP BY code, reference, since, until
                ) AS stretch
            ) AS ordered WHERE since < earlier OR since >= until ORDER BY id
        """,  # noqa: S608 - made of constants
        sentence="{id} begins at {since}, although the stretch before it ended at {earlier}",
    ),
    _Rule(
        name="within a month",
        sql=f"""
            SELECT id FROM ({_MONTHS}) AS dated GROUP BY id HAVING MIN(month) <> MAX(month) ORDER BY id
        """,  # noqa: S608 - made of constants
        sentence="{id} spans the start of a month",
    ),
    # For the months in which the server had one price all along. What the month before left over may fill one more.
    _Rule(
        name="month cap",
        sql=f"""
            SELECT server.id, CAST(month.total AS BIGINT) AS total, month.since,
                (server.daily_usdc * server.capped_s + :day - 1) / :day AS most
            FROM server JOIN (
                SELECT reference, month, MIN(since) AS since, SUM(amount) AS total
                FROM ({_MONTHS}) AS dated WHERE code = 'burn' AND side = 'first' GROUP BY reference, month
            ) AS month ON month.reference = server.id
            WHERE month.since >= server.priced_at
                AND month.total > (server.daily_usdc * server.capped_s + :day - 1) / :day
            ORDER BY server.id
        """,  # noqa: S608 - made of constants
        sentence="{id} was charged {total} in the month of {since}, and a month costs {most} at most",
    ),
    _Rule(
        name="burn set",
        sql="SELECT id FROM burn_due ORDER BY id",
        sentence="{id} was left over in the set of those that are being charged",
    ),
    _Rule(
        name="remainder",
        sql="SELECT id, remainder FROM server WHERE remainder < 0 OR remainder >= :day ORDER BY id",
        sentence="{id} carries a remainder of {remainder}, which is not a fraction of a micro-USDC",
    ),
    _Rule(
        name="ended server",
        sql="""
            SELECT server.id, COALESCE(account.balance, 0) AS balance, server.traffic_owed_usdc,
                CASE WHEN server.charged_until IS NULL THEN 'stopped' ELSE 'running' END AS meter
            FROM server LEFT JOIN account ON account.id = 'srv:' || server.id
            WHERE server.ended_at IS NOT NULL
                AND (COALESCE(account.balance, 0) <> 0 OR server.charged_until IS NOT NULL
                    OR server.traffic_owed_usdc <> 0)
            ORDER BY server.id
        """,
        sentence="{id} has ended with {balance} in its reserve, {traffic_owed_usdc} owed and its meter {meter}",
    ),
    _Rule(
        name="machine that is gone",
        sql="SELECT id, cost_until FROM server WHERE ended_at IS NOT NULL AND cost_until IS NOT NULL ORDER BY id",
        sentence="{id} has ended, and its machine costs us still, since {cost_until}",
    ),
    _Rule(
        name="hold of an ended server",
        sql="""
            SELECT hold.id, server.id AS server_id
            FROM hold JOIN operation ON operation.id = hold.reference
            JOIN server ON server.id = operation.server_id
            WHERE hold.state = 'pending' AND server.ended_at IS NOT NULL ORDER BY hold.id
        """,
        sentence="hold {id} is pending although {server_id} has ended",
    ),
    _Rule(
        name="hold of no running operation",
        sql="""
            SELECT hold.id, hold.reference FROM hold
            WHERE hold.state = 'pending' AND NOT EXISTS (
                SELECT 1 FROM operation WHERE operation.id = hold.reference AND operation.status = 'running'
            ) ORDER BY hold.id
        """,
        sentence="hold {id} is pending, but no running operation is called {reference}",
    ),
    _Rule(
        name="hold resolves once",
        sql="""
            SELECT hold.id, hold.state, CASE WHEN transfer.id IS NULL THEN 'no' ELSE 'another' END AS found
            FROM hold LEFT JOIN transfer ON transfer.id = hold.id
            WHERE CASE WHEN hold.state = 'posted'
                THEN transfer.id IS NULL OR transfer.debit <> hold.debit OR transfer.credit <> hold.credit
                    OR transfer.amount <> hold.amount
                ELSE transfer.id IS NOT NULL END
            ORDER BY hold.id
        """,
        sentence="hold {id} is {state}, but {found} transfer has its id",
    ),
    _Rule(
        name="suspense",
        sql="""
            SELECT books.total AS total, waiting.total AS waiting FROM (
                SELECT CAST(COALESCE(SUM(CASE WHEN credit = :suspense THEN amount ELSE -amount END), 0) AS BIGINT)
                    AS total
                FROM transfer WHERE credit = :suspense OR debit = :suspense
            ) AS books, (
                SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS total FROM arrival WHERE state = 'suspense'
            ) AS waiting WHERE books.total <> waiting.total
        """,
        sentence="suspense is {total}, but the arrivals that wait in it add up to {waiting}",
    ),
    _Rule(
        name="claim",
        sql="""
            SELECT arrival.id, arrival.sender FROM arrival
            LEFT JOIN transfer ON transfer.id = 'claim|' || arrival.id
            WHERE CASE WHEN arrival.state = 'claimed'
                THEN transfer.id IS NULL OR transfer.credit <> 'wallet:' || arrival.sender
                    OR transfer.amount <> arrival.amount
                ELSE transfer.id IS NOT NULL END
            ORDER BY arrival.id
        """,
        sentence="arrival {id} and what {sender} got of it do not agree",
    ),
    _Rule(
        name="barred",
        sql="""
            SELECT id, barred FROM account WHERE barred IS NOT NULL
                AND (substr(id, 1, 7) <> 'wallet:' OR barred NOT IN ('suspended', 'blocked')) ORDER BY id
        """,
        sentence="{id} is barred as {barred}, and only a wallet can be, as suspended or blocked",
    ),
    _Rule(
        name="delivery",
        sql="""
            SELECT event.seq, delivery.webhook_id FROM delivery
            JOIN event ON event.seq = delivery.seq JOIN webhook ON webhook.id = delivery.webhook_id
            WHERE webhook.wallet <> event.wallet OR delivery.resource <> event.resource
            ORDER BY event.seq, delivery.webhook_id
        """,
        sentence="event {seq} is to be delivered to {webhook_id}, which did not ask for it",
    ),
)

_PARAMS: Final = {
    "rev_compute": REV_COMPUTE,
    "rev_traffic": REV_TRAFFIC,
    "owed_provider": OWED_PROVIDER,
    "suspense": SUSPENSE,
    "day": DAY,
}

# Customers' cached balances, and what every operator account but `ext:usdc` was credited beyond its debits.
_OWED_AND_EARNED: Final = """
SELECT CAST(
    COALESCE((SELECT SUM(balance) FROM account), 0)
    + COALESCE((SELECT SUM(amount) FROM transfer WHERE credit <> :ext
        AND substr(credit, 1, 7) <> 'wallet:' AND substr(credit, 1, 4) <> 'srv:'), 0)
    - COALESCE((SELECT SUM(amount) FROM transfer WHERE debit <> :ext
        AND substr(debit, 1, 7) <> 'wallet:' AND substr(debit, 1, 4) <> 'srv:'), 0) AS BIGINT) AS total
"""


def verify(tx: Tx, *, chain_balance_usdc: Usdc | None = None) -> list[Violation]:
    """Every violation in the books, none when they are right.

    `chain_balance_usdc` is what the chain showed for our address; None leaves that comparison out. A top-up
    credited since it was read looks like a violation: ask again before believing that one.
    """
    violations = [
        Violation(rule=rule.name, sentence=rule.sentence.format_map(row))
        for rule in _RULES
        for row in tx.all(rule.sql, _PARAMS)
    ]
    held_on_chain = balance_of(tx, EXT_USDC).balance
    (owed_and_earned,) = tx.all(_OWED_AND_EARNED, {"ext": EXT_USDC})
    if owed_and_earned["total"] != held_on_chain:
        violations.append(
            Violation(
                rule="books balance",
                sentence=f"customers and revenue add up to {owed_and_earned['total']}, "
                f"but {EXT_USDC} is {held_on_chain}",
            )
        )
    if chain_balance_usdc is not None and held_on_chain > chain_balance_usdc:
        violations.append(
            Violation(
                rule="chain",
                sentence=f"{EXT_USDC} is {held_on_chain}, but the chain shows only {chain_balance_usdc}",
            )
        )
    return violations
