"""A node of another chain, or a token with another domain, is no node of ours, and that is told."""

import pytest
from spawn_schemas.ids import Address

from spawn.evm.eip3009 import balance_of_call
from spawn.evm.node import CallReverted, WrongChain
from spawn.payments.chosen_chain import ChosenChain
from spawn.payments.exact import Terms, terms
from tests.fake_node import FakeNode
from tests.payments import TERMS

SEPARATOR = bytes.fromhex("3644e515")
SOMEBODY = Address("0x" + "11" * 20)


class Token(FakeNode):
    """A chain whose token tells its domain: `separator`, or reverts without one."""

    separator: bytes | None = TERMS.domain_separator

    async def call(
        self,
        to: Address,
        data: bytes,
        *,
        sender: Address | None = None,
        gas: int | None = None,
        block: int | None = None,
    ) -> bytes:
        if data != SEPARATOR:
            return await super().call(to, data, sender=sender, gas=gas, block=block)
        if self.separator is None:
            raise CallReverted
        return self.separator


def named(name: str = "USDC", chain_id: int = TERMS.chain_id, asset: Address = TERMS.asset) -> Terms:
    return terms(chain_id=chain_id, asset=asset, asset_name=name, asset_version="2", pay_to=TERMS.pay_to)


async def test_the_chain_that_the_settings_name_answers() -> None:
    node = ChosenChain(Token(TERMS, now=lambda: 0), TERMS)
    assert await node.chain_id() == TERMS.chain_id
    assert int.from_bytes(await node.call(TERMS.asset, balance_of_call(SOMEBODY)), "big") == 0


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        (named(chain_id=8453), "SPAWN_X402_NETWORK"),
        (named(asset=SOMEBODY), "SPAWN_X402_ASSET"),
        (named(name="USD Coin"), "SPAWN_X402_ASSET_NAME"),
    ],
)
async def test_another_answers_nothing_and_is_an_incident_told_once(
    wrong: Terms, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = Token(TERMS, now=lambda: 0)
    node = ChosenChain(token, wrong)
    for _ in range(2):
        with pytest.raises(WrongChain, match=setting):
            await node.nonce(SOMEBODY)
    with pytest.raises(WrongChain):
        await node.send(b"\x02")
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    assert caplog.messages[0].startswith("incident: ")
    assert setting in caplog.text


async def test_a_token_that_does_not_tell_its_domain_is_taken_at_our_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = Token(TERMS, now=lambda: 0)
    token.separator = None
    assert await ChosenChain(token, TERMS).nonce(SOMEBODY) == 0
    assert "does not tell its EIP-712 domain" in caplog.text
