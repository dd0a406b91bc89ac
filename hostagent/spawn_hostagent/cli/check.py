"""What `spawn-host check` looks at, on a machine that is set up and on one that is not yet.

Invariant: a missing or wrong configuration is one of the findings, not the end of the looking.
"""
# ruff: noqa: PLC0415 - see cli_common

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from spawn_hostagent.cli.common import console, default_state, isolation_of, open_config, open_detector
from spawn_hostagent.config import Config, ConfigError
from spawn_hostagent.failures import Failure
from spawn_hostagent.preflight.checks import Check

if TYPE_CHECKING:
    from spawn_schemas.inventory import Isolation


def look(path: Path) -> tuple[Config, tuple[Check, ...]]:
    """The configuration, or its defaults, and every check. Raises nothing of what it finds."""
    from spawn_hostagent.joining.service import Service
    from spawn_hostagent.preflight.gather import preflight

    config, first = _config(path)
    detector = open_detector(config)

    async def isolate() -> "Isolation":
        return await isolation_of(config, detector)

    async def work() -> tuple[Check, ...]:
        service = Service(config.service) if config.service else None
        return (await preflight(config, detector, service, isolate)).checks

    with console(stderr=True).status("Looking at this machine; trying its isolation takes a few seconds"):
        return config, (*first, _registered(config), *asyncio.run(work()))


def _config(path: Path) -> tuple[Config, list[Check]]:
    try:
        return open_config(path), [Check(name="configuration", ok=True, severity="info", message=str(path))]
    except (ConfigError, Failure) as error:
        config = Config(service="", state_dir=str(default_state()))
        missing = not path.exists()
        found = Check(
            name="configuration",
            ok=missing,
            severity="info" if missing else "error",
            message=f"{path} is not written yet: what follows is with its defaults"
            if missing
            else str(error),
            remedy=f"Correct {path}, then run this again.",
        )
        return config, [found]


def _registered(config: Config) -> Check:
    from spawn_hostagent.joining.identity import find_record

    try:
        record = find_record(config.state)
    except Failure as error:
        return Check(name="registration", ok=False, message=str(error), remedy="As it says.")
    if record is None:
        return Check(name="registration", ok=True, severity="info", message="not yet: `spawn-host setup`")
    return Check(
        name="registration",
        ok=True,
        severity="info",
        message=f"{record.name} ({record.host_id}) at {record.service}, key in a {record.kept_in}",
    )
