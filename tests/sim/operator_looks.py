"""What the operator looks at, against sums of our own over the same rows.

Invariant: each figure that `spawn admin`, `spawn treasury` and `spawn economics` show is what the rows, and the chain,
add up to at that moment; and what goes on failing is told.
"""

from collections import Counter
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from spawn_ledger.tx import Tx
from spawn_providers.catalog import DEFAULT_CATALOG
from spawn_schemas.ids import Address

from spawn.domain.barring import Barred
from spawn.evm.node import NodeUnavailable
from spawn.evm.transactions import address_of
from spawn.services import admin_looks, economics, treasury
from spawn.services.admin_looks import ServerLine, WalletLine
from tests.sim.operator_books import moment
from tests.sim.operator_desk import looking
from tests.sim.operator_orders import wallets
from tests.sim.oracle.fees import micro
from tests.sim.oracle.prices import listed_prices
from tests.sim.rails import NodePort, sim_rail

if TYPE_CHECKING:
    from tests.sim.world import World

HOUR_S: Final = 3_600
TRIES: Final = 10
"""Attempts after which a destruction is an incident, whatever the clock says."""
SHOWN: Final = 20
PAGES: Final = 200
"""More than any list of a world has."""

Row = dict[str, Any]
_OWN: Final = (
    "SELECT 'wallet:' || CAST(:w AS TEXT) UNION ALL SELECT 'srv:' || id FROM server WHERE wallet = :w"
)


def _compare(world: "World", what: str, shown: object, mine: object) -> None:
    if shown != mine:
        world.violation("books", f"{what}: {shown} is shown, and the rows say {mine}")


# --- the whole on one page ----------------------------------------------------------------------------------------


async def status(world: "World") -> None:
    """`spawn admin status`, with what goes on failing."""
    now = world.clock.now_s()
    with world.books.snapshot() as tx:
        trouble = await admin_looks.trouble(looking(tx), now)
        shown = admin_looks.status(tx, trouble, now)
    bars = Counter(row["barred"] for row in world.rows("SELECT barred FROM account WHERE id LIKE 'wallet:%'"))
    found = (shown.at, shown.wallets, shown.suspended, shown.blocked, dict(shown.servers))
    states = Counter(row["status"] for row in world.rows("SELECT status FROM server"))
    _compare(
        world, "status", found, (moment(now), bars.total(), bars["suspended"], bars["blocked"], dict(states))
    )
    for what, waiting, column, where in (
        ("due", shown.due, "due_at", f"FROM server WHERE due_at <= {now}"),
        ("operations", shown.operations, "created_at", "FROM operation WHERE status = 'running'"),
        ("deliveries", shown.deliveries, "created_at", "FROM delivery WHERE state = 'pending'"),
    ):
        times = [row[column] for row in world.rows(f"SELECT {column} {where}")]
        mine = (len(times), max(0, now - min(times)) if times else 0)
        _compare(world, what, (waiting.count, waiting.oldest_s), mine)
    waits = sum(row["amount"] for row in world.rows("SELECT amount FROM arrival WHERE state = 'suspense'"))
    _compare(world, "suspense", micro(shown.suspense), waits)
    _check_incidents(world, shown.failing_destroys, shown.incidents, now)


def _check_incidents(world: "World", failing: int, told: tuple[str, ...], now: int) -> None:
    late = [
        row["server_id"]
        for row in world.rows(
            "SELECT * FROM operation WHERE status = 'running' AND command = 'destroy_server'"
        )
        if row["created_at"] <= now - HOUR_S or (row["created_at"] > now and row["attempts"] >= TRIES)
    ]
    _compare(world, "failing destructions", failing, len(late))
    for server in late if len(late) <= SHOWN else ():
        if not any(text.startswith(f"{server} is not destroyed since ") for text in told):
            world.violation("live", f"{server} cannot be destroyed, and nobody is told: {told}")
    if any("no operation does it" in text for text in told):
        world.violation("live", f"a server is being destroyed by nobody: {told}")
    burn = len(world.rows("SELECT id FROM server WHERE due_at <= :late", late=now - HOUR_S))
    if bool(burn) is not any("servers are due and not charged" in text for text in told):
        world.violation("books", f"{burn} servers are not charged for an hour, and it is told: {told}")


# --- wallets, servers, statements ---------------------------------------------------------------------------------


async def wallet_pages(world: "World") -> None:
    """`spawn admin wallets`, page by page; perhaps only the barred, or those with some digits."""
    only = world.random.choice((None, None, Barred.SUSPENDED, Barred.BLOCKED))
    piece = world.random.choice(("", "", "a", "0x1", "ff"))
    now, limit = world.clock.now_s(), world.random.choice((1, 7, 50))
    seen: list[WalletLine] = []
    after: Address | None = None
    with world.books.snapshot() as tx:
        for _ in range(PAGES):
            page = admin_looks.wallet_page(tx, piece=piece, only=only, after=after, limit=limit, now=now)
            seen += page.wallets
            if page.next is None:
                break
            after = Address(page.next)
        for line in seen:
            _check_wallet(world, line, now)
    bars = {row["id"][7:]: row["barred"] for row in world.rows("SELECT id, barred FROM account")}
    mine = [one for one in wallets(world) if piece in one and (only is None or bars[one] == only.value)]
    _compare(world, "wallets", [line.wallet for line in seen], mine)


async def wallet(world: "World") -> None:
    """`spawn admin wallet`: one of them, known or not."""
    known = wallets(world)
    name = Address(world.random.choice(known) if known else "0x" + "ab" * 20)
    now = world.clock.now_s()
    with world.books.snapshot() as tx:
        shown = admin_looks.show_wallet(tx, name, now)
        _check_statement(world, tx, name)
    if known:
        _check_wallet(world, shown.wallet, now)
    live = world.rows("SELECT id FROM server WHERE wallet = :w AND ended_at IS NULL ORDER BY id", w=name)
    _compare(world, f"servers of {name}", [line.id for line in shown.servers], [row["id"] for row in live])
    notes = world.rows(
        "SELECT at, kind, reason FROM wallet_note WHERE wallet = :w ORDER BY seq DESC LIMIT 20", w=name
    )
    mine = [(moment(row["at"]), row["kind"], row["reason"]) for row in notes]
    _compare(world, f"notes on {name}", [(note.at, note.kind, note.reason) for note in shown.notes], mine)


def _check_wallet(world: "World", line: WalletLine, now: int) -> None:
    """What it has, accrued to now: what the books say, less no more than its servers can have burnt since."""
    (account,) = world.rows("SELECT * FROM account WHERE id = :id", id=f"wallet:{line.wallet}")
    live = world.rows(
        "SELECT server.*, COALESCE(account.balance, 0) AS reserve FROM server LEFT JOIN account "
        "ON account.id = 'srv:' || server.id WHERE wallet = :wallet AND ended_at IS NULL",
        wallet=line.wallet,
    )
    books = account["balance"] + sum(row["reserve"] for row in live)
    burnt = sum(
        ceil(Fraction(row["daily_usdc"] * max(0, now - row["charged_until"]) + row["remainder"], 86_400))
        for row in live
        if row["charged_until"] is not None
    )
    dearest = sum(max(0, row["reprice_usdc"] or 0) for row in live)
    shown = micro(line.available) + micro(line.reserved)
    if not max(0, books - burnt) <= shown + (0 if not dearest else burnt) or shown > books:
        world.violation("books", f"{line} has {books}, of which {burnt} at most can be burnt")
    _compare(world, f"{line.wallet}", (line.barred, line.servers), (account["barred"], len(live)))


def _check_statement(world: "World", tx: Tx, name: Address) -> None:
    """Page by page: every line once, and together what the wallet has."""
    limit, before = world.random.choice((3, 17, 1_000)), None
    total, lines = 0, 0
    for _ in range(10_000):
        page = admin_looks.statement(tx, name, before=before, limit=limit)
        lines += len(page.movements)
        total += sum(micro(line.amount) for line in page.movements if line.kind in {"in", "out"})
        before = page.next
        if before is None:
            break
    own = [f"wallet:{name}"] + [
        f"srv:{row['id']}" for row in world.rows("SELECT id FROM server WHERE wallet = :w", w=name)
    ]
    rows = world.rows(
        f"SELECT debit, credit, amount FROM transfer WHERE debit IN ({_OWN}) OR credit IN ({_OWN})", w=name
    )
    mine = sum(row["amount"] * ((row["credit"] in own) - (row["debit"] in own)) for row in rows)
    _compare(world, f"the statement of {name}", (lines, total), (len(rows), mine))


async def servers(world: "World") -> None:
    """`spawn admin servers`: what each earned and cost, by the transfers."""
    wanted = world.random.choice((None, None, "running", "off", "destroyed", "failed"))
    known = wallets(world)
    owner = Address(world.random.choice(known)) if known and world.random.random() < 0.5 else None
    limit, after = world.random.choice((2, 50)), ""
    seen: list[ServerLine] = []
    with world.books.snapshot() as tx:
        for _ in range(PAGES):
            page = admin_looks.server_page(tx, wallet=owner, status=wanted, after=after, limit=limit)
            seen += page.servers
            if page.next is None:
                break
            after = page.next
    rows = [
        row
        for row in world.rows("SELECT * FROM server ORDER BY id")
        if (owner is None or row["wallet"] == owner)
        and (row["ended_at"] is None if wanted is None else row["status"] == wanted)
    ]
    _compare(world, "servers", [line.id for line in seen], [row["id"] for row in rows])
    earned, cost = _moved(world, "rev:compute") + _moved(world, "rev:traffic"), _moved(world, "owed:provider")
    for line, row in zip(seen, rows, strict=True):
        revenue, owed = earned[row["id"]], cost[row["id"]]
        silent = row["cost_daily_usdc"] is None and owed == 0
        mine = (revenue, None if silent else owed, None if silent else revenue - owed)
        shown = (
            micro(line.revenue),
            *(None if text is None else micro(text) for text in (line.cost, line.margin)),
        )
        _compare(world, f"what {line.id} earned", shown, mine)


def _moved(world: "World", account: str) -> Counter[str]:
    """By reference, what an account of ours was credited beyond its debits."""
    found: Counter[str] = Counter()
    for row in world.rows("SELECT * FROM transfer WHERE debit = :a OR credit = :a", a=account):
        found[row["reference"]] += row["amount"] if row["credit"] == account else -row["amount"]
    return found


# --- prices and economics -----------------------------------------------------------------------------------------


async def prices(world: "World") -> None:
    """`spawn admin price-changes`, and what `spawn economics` reckons with."""
    now = world.clock.now_s()
    with world.books.snapshot() as tx:
        lines = admin_looks.price_lines(tx, limit=100, now=now)
        pending = admin_looks.status(tx, await admin_looks.trouble(looking(tx), now), now).price_changes
    rows = world.rows("SELECT * FROM price_change ORDER BY announced_at")
    mine = {row["id"]: (_state(row, rows, now), micro_text(row), row["told_to"] is None) for row in rows}
    _compare(
        world, "price changes", {one.id: (one.state.value, micro(one.daily), one.told) for one in lines}, mine
    )
    newest = {(row["type"], row["location"]): row for row in rows}.values()
    waits = sum(row["effective_at"] > now or row["told_to"] is not None for row in newest)
    _compare(world, "price changes to come", pending, waits)
    _check_price_list(world)
    _check_settling(world)


def micro_text(row: Row) -> int:
    """The price of a row of `price_change`."""
    return int(row["daily_usdc"])


def _state(row: Row, rows: list[Row], now: int) -> str:
    offer = (row["type"], row["location"])
    later = [
        one
        for one in rows
        if (one["type"], one["location"]) == offer and one["announced_at"] > row["announced_at"]
    ]
    if later:
        return "withdrawn" if later[0]["announced_at"] < row["effective_at"] else "replaced"
    return "announced" if now < row["effective_at"] else "in force"


def _check_price_list(world: "World") -> None:
    settings = world.settings
    shown = {
        (offer.type, offer.location): int(offer.daily_usdc)
        for offer in economics.price_list(DEFAULT_CATALOG, settings).offers
    }
    mine = listed_prices(eur_price=settings.eur_price, floor_percent=settings.price_floor_percent)
    _compare(world, "the price list", shown, mine)


def _check_settling(world: "World") -> None:
    """What settling costs: gas of 64,760 alone, of 29,960 and 41,510 for each in a batch; a fee; or nothing."""
    settings, batch = world.settings, world.random.choice((1, 2, 50))
    wei = Fraction(str(settings.gas_price_gwei)) * 10**9
    alone = ceil(64_760 * wei * Fraction(settings.eth_price) / 10**12)
    together = ceil(
        Fraction(ceil((29_960 + 41_510 * batch) * wei * Fraction(settings.eth_price) / 10**12), batch)
    )
    fee = micro(settings.facilitator_fee)
    expected = {
        "self": (alone, alone if batch == 1 else together),
        "facilitator": (fee, fee),
        "devnet": (0, 0),
    }
    for rail, costs in expected.items():
        found = economics.settling_of(settings, rail, batch)
        _compare(world, f"settling by {rail}", (found.alone_usdc, found.batched_usdc), costs)
    economics.warn_of_loss(settings)


# --- books and chain ----------------------------------------------------------------------------------------------


async def look_at_treasury(world: "World") -> None:
    """`spawn treasury`: the books as they are now, the chain a moment later."""
    now = world.clock.now_s()
    with world.books.snapshot() as tx:
        db = looking(tx)
        rail = sim_rail(world, db, None)
        try:
            gas = await _gas(world)
            # The snapshot begins with what is read of it first.
            before = _books(world)
            found = await treasury.look(db, rail.holdings, world.settings.pay_to, now, gas=gas)
            last = await treasury.last_comparison(db)
        except NodeUnavailable:
            world.count("operator: the chain does not answer")
            return
        unfinished = tx.all("SELECT state, amount FROM reservation WHERE rail = 'x402'", {})
    _compare(world, "the treasury's books", (found.compared.books_usdc, found.suspense_usdc), before)
    open_ = Counter(f"call {row['state']}" for row in unfinished if row["state"] in {"reserved", "settled"})
    shown = {line.what: line.count for line in found.unfinished if line.what.startswith("call ")}
    _compare(world, "unfinished calls", shown, dict(open_))
    if found.compared.is_short:
        world.count("operator: the chain has less than the books")
        if world.calm:
            world.violation("books", treasury.shortage(found.compared))
    if last is not None and last.is_short and world.settings.payments == "devnet":
        world.violation("books", treasury.shortage(last))


async def _gas(world: "World") -> treasury.GasMoney | None:
    settings, node = world.settings, world.chain.node
    if settings.payments != "self" or node is None:
        return None
    keys = tuple(map(address_of, settings.relayer_keys))
    found = await treasury.gas_money(NodePort(world, node), keys, cap_wei=settings.relay_fee_cap_wei)
    for one in found.relayers:
        mine = (
            one.balance_wei // (90_000 * max(1, found.price_wei)),
            one.balance_wei // (90_000 * found.cap_wei),
        )
        _compare(world, f"gas of {one.address}", (one.payments_now, one.payments_at_cap), mine)
    return found


def _books(world: "World") -> tuple[int, int]:
    """What came in, and how much of it waits for whoever sent it."""
    held = suspense = 0
    for row in world.rows("SELECT debit, credit, amount FROM transfer"):
        held += row["amount"] * ((row["debit"] == "ext:usdc") - (row["credit"] == "ext:usdc"))
        suspense += row["amount"] * ((row["credit"] == "suspense") - (row["debit"] == "suspense"))
    return held, suspense


LOOKS: Final = (
    status,
    status,
    wallet_pages,
    wallet,
    wallet,
    servers,
    prices,
    look_at_treasury,
    look_at_treasury,
)
