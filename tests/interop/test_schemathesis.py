"""schemathesis reads `/openapi.json` and asks everything of a running service, with a funded wallet.

`SPAWN_TEST_FUZZ_EXAMPLES` says how many cases it makes up for each operation, `SPAWN_TEST_FUZZ_SEED` which.
"""

import asyncio
import os
from pathlib import Path
from typing import Final

from tests.interop.explorer import PROOFS, explore
from tests.interop.service import spawn_dev
from tests.interop.story import ON_LENT_MACHINES
from tests.wallets import Wallet

EXAMPLES: Final = int(os.environ.get("SPAWN_TEST_FUZZ_EXAMPLES", "10"))
SEED: Final = int(os.environ.get("SPAWN_TEST_FUZZ_SEED", "1"))
REACHED_SHARE: Final = 0.9
ELSEWHERE: Final = {f"{method} {path}" for method, path in ON_LENT_MACHINES} | {
    "POST /v1/hosts/register",
    "POST /v1/hosts/key",
    "POST /api/hosts/heartbeat",
}
"""What `spawn dev` always refuses: it rents out no lent machines."""
SETTINGS: Final = {
    "SPAWN_DEPOSIT_DAILY_CAP": "1000000.00",
    "SPAWN_RATE_ADDRESS_PER_MINUTE": "0",
    "SPAWN_RATE_WALLET_PER_MINUTE": "0",
}
"""No limit that would answer in place of what is asked."""


async def test_every_answer_to_whatever_is_asked_is_a_documented_one(tmp_path: Path) -> None:
    wallet = Wallet.numbered(300)
    with spawn_dev(tmp_path, SETTINGS) as service:
        await service.mint(wallet, "1000000.00")
        explored = await asyncio.to_thread(explore, service, wallet, examples=EXAMPLES, seed=SEED)
        assert await service.violations() == []
    print(f"{explored.cases} cases with seed {SEED}; let in by {dict(explored.proofs)}")
    assert not explored.findings, "\n\n".join(explored.findings[:5])
    broken = [name for name, answers in explored.answers.items() if any(status >= 500 for status in answers)]
    assert broken == []
    assert set(explored.operations) > ELSEWHERE
    unreached = [name for name in explored.unreached if name.partition(":")[0] not in ELSEWHERE]
    reached = 1 - len(unreached) / (len(explored.operations) - len(ELSEWHERE))
    assert reached >= REACHED_SHARE, unreached
    assert "POST /v1/sessions" not in " ".join(explored.unreached)
    assert explored.proofs.keys() == set(PROOFS)
    assert "Traceback" not in (tmp_path / "service.log").read_text()
