"""What `spawn admin` does not understand, before it looks at any database."""

import pytest
from click.testing import CliRunner

from spawn import cli_admin_tables
from spawn.cli_admin import admin
from spawn.services.admin_looks import Movement, StatementPage

SOMEBODY = "0x8ba1f109551bd432803012645ac136ddd64dba72"
PRICE = ("price-change", "--type", "small", "--location", "nbg1", "--daily", "1")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("credit", "0x12", "1", "--reason", "x"), "an address is 0x and 40 hex digits"),
        (("credit", SOMEBODY, "lots", "--reason", "x"), "an amount is a decimal string"),
        (("credit", SOMEBODY, "-1", "--reason", "x"), "No such option"),
        (("credit", SOMEBODY, "0", "--reason", "x"), "more than zero"),
        (("credit", SOMEBODY, "1"), "Missing option '--reason'"),
        (("suspend", SOMEBODY), "Missing option '--reason'"),
        (("block", SOMEBODY), "Missing option '--reason'"),
        (("wallet",), "Missing argument 'ADDRESS'"),
        (("wallets", "--search", "%"), "hex digits"),
        (("wallets", "--search", "0x" + "1" * 41), "hex digits"),
        (("wallets", "--limit", "0"), "'--limit'"),
        (("servers", "--status", "odd"), "odd"),
        (("statement", SOMEBODY, "--before", "x"), "'--before'"),
        ((*PRICE, "--from", "soon"), "2027-01-31"),
        ((*PRICE, "--from", "2027-02-31"), "2027-01-31"),
        (("price-change", "--type", "small"), "Missing option"),
        (("price-withdraw",), "Missing argument 'ID'"),
        (("frobnicate",), "No such command"),
    ],
)
def test_what_is_not_understood_exits_with_2(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(admin, arguments)
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize("command", sorted(admin.commands))
def test_every_command_says_what_it_does(command: str) -> None:
    done = CliRunner().invoke(admin, [command, "--help"])
    assert done.exit_code == 0
    assert admin.commands[command].help


def test_a_list_that_goes_on_says_how_without_forgetting_what_was_asked_for() -> None:
    """The command is not repeated: it would have to repeat its filters and its address, too."""
    burn = Movement(at="2026-02-24T10:00:00Z", code="burn", amount="-0.01", kind="out", reference="srv_1")
    shown = cli_admin_tables.statement(StatementPage(movements=(burn,), next=53))
    assert shown.splitlines()[-1] == "more: the same command with --before 53"


@pytest.mark.parametrize(
    ("address", "fits"),
    [
        ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", True),  # of EIP-55 itself
        ("0x5aaeb6053f3e94c9b9a09f33669435e7ef1beaed", True),
        ("0x5AAEB6053F3E94C9B9A09F33669435E7EF1BEAED", True),
        ("0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAee", False),
        ("0x5AAeb6053F3E94C9b9A09f33669435E7Ef1BeAed", False),
    ],
)
def test_capitals_that_do_not_fit_the_digits_are_a_mistake(address: str, fits: bool) -> None:
    done = CliRunner().invoke(admin, ["credit", address])
    assert done.exit_code == 2
    assert ("Missing argument 'AMOUNT'" if fits else "(EIP-55)") in done.output
