"""Settings are understood or refused by name, never guessed."""

import pytest

from spawn.setting_reader import read_settings
from spawn.settings import InvalidSetting, Settings


def test_nothing_set_means_the_defaults() -> None:
    assert read_settings({}) == Settings(public_url="http://127.0.0.1:8402")


def test_other_variables_and_those_of_the_tests_are_not_ours() -> None:
    assert read_settings({"HOME": "/root", "SPAWN_TEST_REQUIRE": "all"}) == read_settings({})


def test_a_setting_has_the_type_of_its_field() -> None:
    settings = read_settings({"SPAWN_BURN_EVERY_S": "7", "SPAWN_TICK_S": "0.5", "SPAWN_SIMULATED_SEED": "-3"})
    assert (settings.burn_every_s, settings.tick_s, settings.simulated_seed) == (7, 0.5, -3)


def test_an_override_wins() -> None:
    settings = read_settings({"SPAWN_LISTEN": "127.0.0.1:1"}, listen="127.0.0.1:2")
    assert settings.listen == "127.0.0.1:2"
    assert settings.public_url == "http://127.0.0.1:2"


@pytest.mark.parametrize(
    ("deposit", "charge", "least"),
    [("0.01", "0.001", 10_000), ("0.01", "0.05", 50_000), ("0.10", "0.05", 100_000)],
)
def test_a_deposit_is_never_smaller_than_the_minimum_charge(deposit: str, charge: str, least: int) -> None:
    set_so = {"SPAWN_DEPOSIT_MINIMUM": deposit, "SPAWN_MINIMUM_CHARGE": charge}
    settings = read_settings(set_so | {"SPAWN_DEPOSIT_DEFAULT": "0.001"})
    assert (settings.deposit_minimum_usdc, settings.deposit_default_usdc) == (least, least)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SPAWN_LISTN", "SPAWN_LISTEN"),
        ("SPAWN_X402_PAYTO", "SPAWN_X402_PAY_TO"),
        ("SPAWN_listen", "SPAWN_LISTEN"),
    ],
)
def test_a_typing_error_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InvalidSetting, match=f"{name} is no setting.*Did you mean {meant}\\?"):
        read_settings({name: "x"})


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(InvalidSetting, match=r"Known are: .*SPAWN_DATABASE_URL.*SPAWN_X402_TIMEOUT_S"):
        read_settings({"SPAWN_UNHEARD_OF_AND_VERY_STRANGE_INDEED": "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPAWN_LISTEN", "8402"),
        ("SPAWN_LISTEN", "127.0.0.1:0"),
        ("SPAWN_LISTEN", "127.0.0.1:65536"),
        ("SPAWN_LISTEN", "127.0.0.1:٣"),
        ("SPAWN_PUBLIC_URL", "spawn.example"),
        ("SPAWN_PUBLIC_URL", "ftp://spawn.example"),
        ("SPAWN_PUBLIC_URL", "https://spawn.example/api"),
        ("SPAWN_PUBLIC_URL", "https://spawn.example?x=1"),
        ("SPAWN_PUBLIC_URL", "https://me@spawn.example"),
        ("SPAWN_PUBLIC_URL", "https://spawn.example:99999"),
        ("SPAWN_PUBLIC_URL", "https://[::1"),
        ("SPAWN_PAYMENTS", "stripe"),
        ("SPAWN_PROVIDERS", "elsewhere"),
        ("SPAWN_HETZNER_TOKEN", "two words"),
        ("SPAWN_HETZNER_ENDPOINT", "api.hetzner.cloud"),
        ("SPAWN_HETZNER_NETWORK_ID", "-1"),
        ("SPAWN_HETZNER_FIREWALL_ID", "mine"),
        ("SPAWN_X402_NETWORK", "base"),
        ("SPAWN_X402_NETWORK", "eip155:"),
        ("SPAWN_X402_NETWORK", "8453"),
        ("SPAWN_X402_PAY_TO", "0x12"),
        ("SPAWN_X402_ASSET", "USDC"),
        ("SPAWN_X402_TIMEOUT_S", "0"),
        ("SPAWN_SECRET_KEY", "hunter2"),
        ("SPAWN_DEPOSIT_DEFAULT", "free"),
        ("SPAWN_DEPOSIT_MINIMUM", "-1"),
        ("SPAWN_MINIMUM_CHARGE", "1.01"),
        ("SPAWN_EUR_PRICE", "1,08"),
        ("SPAWN_DEPOSIT_DAILY_CAP", "1e9"),
        ("SPAWN_SIMULATED_SPEED", "fast"),
        ("SPAWN_SIMULATED_SPEED", "0"),
        ("SPAWN_SIMULATED_SPEED", "nan"),
        ("SPAWN_SIMULATED_SPEED", "inf"),
        ("SPAWN_SIMULATED_SEED", "1.5"),
        ("SPAWN_BURN_EVERY_S", "0"),
        ("SPAWN_RECONCILE_EVERY_S", ""),
        ("SPAWN_TICK_S", "0"),
        ("SPAWN_FIRST_ANSWER_S", "-1"),
        ("SPAWN_IN_FLIGHT_WAIT_S", "3600"),
        ("SPAWN_BODY_MAX_BYTES", "0"),
        ("SPAWN_RATE_ADDRESS_PER_MINUTE", "-1"),
        ("SPAWN_RATE_WALLET_PER_MINUTE", "1000001"),
        ("SPAWN_RATE_WALLET_PER_MINUTE", "0.5"),
        ("SPAWN_TRUSTED_PROXIES", "proxy.internal"),
        ("SPAWN_TRUSTED_PROXIES", "10.0.0.0/8;10.1.0.0/16"),
        ("SPAWN_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("SPAWN_RELAYER_KEY", "00" * 32),
        ("SPAWN_RELAYER_KEY", "ff" * 32),
        ("SPAWN_RELAYER_KEY", f"{'ab' * 32},0x{'AB' * 32}"),
        ("SPAWN_RELAY_FEE_CAP_GWEI", "0.0000000001"),
        ("SPAWN_EUR_PRICE", "0"),
        ("SPAWN_TRUSTED_PROXIES", "10.0.0.0/33"),
        ("SPAWN_TRUSTED_PROXIES", "10.0.0.1:8080"),
        ("SPAWN_TRUSTED_PROXIES", "[2001:db8::1]"),
        ("SPAWN_TRUSTED_PROXIES", "10.0.0.0/8,0.0.0.0/0"),
        ("SPAWN_TRUSTED_PROXIES", "::/0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        read_settings({name: value})
    message = str(refused.value)
    assert message.startswith(f"{name} should be ")
    assert message.endswith(".")


@pytest.mark.parametrize(
    ("name", "value", "payments"),
    [
        ("SPAWN_RELAYER_KEY", "5e" * 32, "devnet"),
        ("SPAWN_X402_FACILITATOR_URL", "https://facilitator.test", "devnet"),
    ],
)
def test_what_belongs_to_another_way_to_settle_is_refused(name: str, value: str, payments: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"{name} has no use with SPAWN_PAYMENTS={payments}"):
        read_settings({name: value, "SPAWN_PAYMENTS": payments})


def test_a_secret_is_never_repeated() -> None:
    with pytest.raises(InvalidSetting) as refused:
        read_settings({"SPAWN_SECRET_KEY": "hunter2"})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("public_url", "authority"),
    [
        ("https://spawn.example", "spawn.example"),
        ("https://spawn.example/", "spawn.example"),
        ("https://spawn.example:443", "spawn.example"),
        ("https://Spawn.Example:8443", "spawn.example:8443"),
        ("http://spawn.example:80", "spawn.example"),
        ("http://spawn.example:443", "spawn.example:443"),
        ("http://[::1]:8402", "[::1]:8402"),
    ],
)
def test_what_a_signature_must_name(public_url: str, authority: str) -> None:
    """RFC 9421 section 2.2.3: the host in lower case, the port unless it is the scheme's own."""
    assert read_settings({"SPAWN_PUBLIC_URL": public_url}).authority == authority


def test_where_to_listen() -> None:
    assert read_settings({"SPAWN_LISTEN": "[::1]:8402"}).listen_address == ("::1", 8402)


def test_trusted_proxies_are_addresses_and_networks() -> None:
    read = read_settings({"SPAWN_TRUSTED_PROXIES": " 10.0.0.0/8,192.0.2.1, 2001:db8::/32 ,"}).trusted_networks
    assert [str(network) for network in read] == ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]
    assert read_settings({}).trusted_networks == ()


@pytest.mark.parametrize("everywhere", ["0.0.0.0:80", "[::]:80"])
def test_a_service_on_every_address_must_know_its_name(everywhere: str) -> None:
    """Or else no signature could match: it names the host it is for."""
    with pytest.raises(InvalidSetting, match="SPAWN_PUBLIC_URL"):
        read_settings({"SPAWN_LISTEN": everywhere})
    named = {"SPAWN_LISTEN": everywhere, "SPAWN_PUBLIC_URL": "https://spawn.example"}
    assert read_settings(named).listen_address[1] == 80


def test_hetzner_needs_a_token() -> None:
    with pytest.raises(InvalidSetting, match="SPAWN_HETZNER_TOKEN is needed with SPAWN_PROVIDERS=hetzner"):
        read_settings({"SPAWN_PROVIDERS": "hetzner"})


def test_play_money_buys_no_real_machine() -> None:
    hetzner = {"SPAWN_PROVIDERS": "hetzner", "SPAWN_HETZNER_TOKEN": "t" * 64}
    with pytest.raises(InvalidSetting, match="SPAWN_PAYMENTS=devnet is play money"):
        read_settings(hetzner)
    emulated = read_settings(hetzner | {"SPAWN_HETZNER_ENDPOINT": "http://127.0.0.1:1/v1"})
    assert emulated.payments == "devnet"


def test_an_inventory_at_hetzner_is_taken_each_ten_minutes_unless_said_otherwise() -> None:
    hetzner = {
        "SPAWN_PROVIDERS": "hetzner",
        "SPAWN_HETZNER_TOKEN": "t" * 64,
        "SPAWN_HETZNER_ENDPOINT": "http://127.0.0.1:1/v1",
    }
    assert read_settings(hetzner).reconcile_every_s == 600
    assert read_settings(hetzner | {"SPAWN_RECONCILE_EVERY_S": "90"}).reconcile_every_s == 90
    assert read_settings({}).reconcile_every_s == 60
