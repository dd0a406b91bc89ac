"""Who is told to wait, what is remembered of whom, and that it stays bounded."""

import tracemalloc
from collections.abc import Callable

import pytest
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import Address

from spawn.api.limits import Limits
from spawn.settings import Settings
from tests.harness import VirtualClock

HOME = "198.51.100.7"
PER_MINUTE = 6
"""Six at once, then one each ten seconds."""

BYTES_PER_KEY = 500
"""What remembering one may take."""


def limits(
    clock: VirtualClock, *, address: int = PER_MINUTE, wallet: int = PER_MINUTE, keys: int = 100
) -> Limits:
    settings = Settings(rate_address_per_minute=address, rate_wallet_per_minute=wallet)
    return Limits(settings, clock, keys_max=keys)


def wallet(number: int) -> Address:
    return Address(f"0x{number:040x}")


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


def use_up(take: Callable[[], None]) -> None:
    for _ in range(PER_MINUTE):
        take()


def refused(call: Callable[[], None]) -> SpawnError:
    with pytest.raises(SpawnError) as raised:
        call()
    assert raised.value.code is Code.RATE_LIMITED
    assert raised.value.next
    return raised.value


def is_used_up(all_limits: Limits, caller: str) -> bool:
    try:
        all_limits.take_address(caller)
    except SpawnError:
        return True
    return False


def test_an_address_is_told_when_to_come_back() -> None:
    clock = VirtualClock()
    both = limits(clock)
    use_up(lambda: both.take_address(HOME))
    error = refused(lambda: both.take_address(HOME))
    assert error.retry_after_s == 10
    assert "6 calls a minute" in error.message
    clock.advance(9.999)
    assert refused(lambda: both.take_address(HOME)).retry_after_s == 1
    clock.advance(0.001)
    both.take_address(HOME)
    refused(lambda: both.take_address(HOME))


def test_a_wallet_is_told_when_to_come_back() -> None:
    clock = VirtualClock()
    both = limits(clock)
    use_up(lambda: both.take_wallet(wallet(1)))
    error = refused(lambda: both.take_wallet(wallet(1)))
    assert error.retry_after_s == 10
    assert error.next
    assert "same payment" in error.next
    clock.advance(10)
    both.take_wallet(wallet(1))
    refused(lambda: both.take_wallet(wallet(1)))


def test_addresses_and_wallets_are_each_their_own() -> None:
    both = limits(VirtualClock(), address=1, wallet=1)
    both.take_address(HOME)
    both.take_wallet(wallet(1))
    both.take_address("198.51.100.8")
    both.take_wallet(wallet(2))
    refused(lambda: both.take_address(HOME))
    refused(lambda: both.take_wallet(wallet(1)))


def test_an_ipv6_site_is_one_caller() -> None:
    both = limits(VirtualClock(), address=2)
    both.take_address("2001:db8:1:2::1")
    both.take_address("2001:db8:1:2:ffff::2")
    refused(lambda: both.take_address("2001:db8:1:2:3:4:5:6"))
    both.take_address("2001:db8:1:3::1")


def test_a_limit_of_0_is_none() -> None:
    none = limits(VirtualClock(), address=0, wallet=0)
    for _ in range(5_000):
        none.take_address(HOME)
        none.take_wallet(wallet(1))


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    clock = VirtualClock()
    both = limits(clock)
    use_up(lambda: both.take_address(HOME))
    use_up(lambda: both.take_wallet(wallet(1)))
    clock.advance(-3600)
    assert refused(lambda: both.take_address(HOME)).retry_after_s == 10
    assert refused(lambda: both.take_wallet(wallet(1))).retry_after_s == 10
    clock.advance(10)
    both.take_address(HOME)
    both.take_wallet(wallet(1))


def memory_taken(by: Callable[[], None]) -> int:
    """Bytes that are held afterwards and were not before."""
    tracemalloc.start()
    try:
        by()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_flood_of_addresses_neither_grows_nor_frees_a_wallet() -> None:
    both = limits(VirtualClock(), keys=1000)
    use_up(lambda: both.take_wallet(wallet(1)))

    def flood() -> None:
        for number in range(20_000):
            both.take_address(address(number))

    assert memory_taken(flood) < 1000 * BYTES_PER_KEY
    refused(lambda: both.take_wallet(wallet(1)))


def test_who_has_its_calls_back_is_forgotten() -> None:
    clock = VirtualClock()
    both = limits(clock, keys=100_000)

    def minutes() -> None:
        for number in range(5_000):
            both.take_address(address(number))
            if number % 100 == 99:
                clock.advance(60)

    assert memory_taken(minutes) < 300 * BYTES_PER_KEY


@pytest.mark.parametrize("others", [99, 100])
def test_when_there_is_no_room_the_one_that_called_longest_ago_is_forgotten(others: int) -> None:
    both = limits(VirtualClock(), address=1, keys=100)
    for number in range(others):
        both.take_address(address(number))
    both.take_address(HOME)
    assert is_used_up(both, HOME)
    assert is_used_up(both, address(1))
    assert is_used_up(both, address(0)) == (others == 99)


def test_who_goes_on_calling_is_not_forgotten() -> None:
    clock = VirtualClock()
    both = limits(clock, keys=10)
    use_up(lambda: both.take_wallet(wallet(0)))
    for number in range(1, 100):
        both.take_wallet(wallet(number))
        refused(lambda: both.take_wallet(wallet(0)))


def test_a_call_that_is_given_back_was_none() -> None:
    clock = VirtualClock()
    counted = limits(clock)
    for _ in range(3):
        use_up(lambda: counted.take_wallet(wallet(1)))
        for _ in range(PER_MINUTE):
            counted.give_back(wallet(1))
    use_up(lambda: counted.take_wallet(wallet(1)))
    with pytest.raises(SpawnError):
        counted.take_wallet(wallet(1))
    counted.give_back(wallet(2))


def test_what_is_only_noted_is_never_refused_and_counts_all_the_same() -> None:
    counted = limits(VirtualClock())
    for _ in range(2 * PER_MINUTE):
        counted.note_address(HOME)
    with pytest.raises(SpawnError):
        counted.take_address(HOME)
