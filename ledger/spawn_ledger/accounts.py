"""The chart of accounts: every pot that money can lie in, and who it belongs to.

Invariant: an account is a customer's exactly when its id begins with `wallet:` or `srv:`. Only those have a
cached balance, a row in `account`; with several replicas one row per operator account would be locked by all.
"""

from typing import Final, NewType

from spawn_schemas.ids import Address, HostId, ServerId

AccountId = NewType("AccountId", str)

EXT_USDC: Final = AccountId("ext:usdc")
"""The USDC that we hold on chain: what every credit to a customer, and what waits in suspense, is backed by."""
REV_OPFEE: Final = AccountId("rev:opfee")
"""Earned from the fees of single calls."""
REV_COMPUTE: Final = AccountId("rev:compute")
"""Earned from servers that ran."""
REV_TRAFFIC: Final = AccountId("rev:traffic")
"""Earned from what servers sent beyond what was included."""
SUSPENSE: Final = AccountId("suspense")
"""USDC that arrived without saying whose it is, until its sender claims it."""
COST_PROVIDER: Final = AccountId("cost:provider")
"""What providers charge us for what a server's wallet pays for, its seconds and what it sends: the other side of
`rev:compute` and `rev:traffic`."""
OWED_PROVIDER: Final = AccountId("owed:provider")
"""What we owe providers for machines, by our own meters, until an invoice of theirs is paid."""
COST_GAS: Final = AccountId("cost:gas")
"""What bringing payments to the chain costs us, at the price of ether when it was spent."""
EXT_GAS: Final = AccountId("ext:gas")
"""The ether that paid for gas. It was never a customer's, so that its balance is what has left, below zero."""
EXP_OVERRUN: Final = AccountId("exp:overrun")
"""What a machine costs between the end of its money and its real end, and what it sent that nobody paid for: ours to
bear, never the wallet's."""
EXP_GOODWILL: Final = AccountId("exp:goodwill")
"""What an operator gave to wallets, for a reason that is written down beside it."""

_WALLET: Final = "wallet:"
HOST: Final = "host:"
"""What the account of each lent machine begins with: what we owe its owner for rentals that were paid for."""
_SERVER: Final = "srv:"
_DEBIT_NORMAL: Final = ("ext:", "cost:", "exp:")


def wallet_account(address: Address) -> AccountId:
    """Where a wallet's available money lies."""
    return AccountId(_WALLET + address)


def server_account(server_id: ServerId) -> AccountId:
    """Where a server's reserve lies."""
    return AccountId(_SERVER + server_id)


def host_account(host_id: HostId) -> AccountId:
    """What we owe the owner of a lent machine."""
    return AccountId(HOST + host_id)


def is_customer(account: AccountId) -> bool:
    """Whether what lies there is owed to a customer; such an account can never be below zero."""
    return account.startswith((_WALLET, _SERVER))


def grows_by_debit(account: AccountId) -> bool:
    """Whether debits raise the balance (what we hold or spent), rather than credits (owed or earned)."""
    return account.startswith(_DEBIT_NORMAL)
