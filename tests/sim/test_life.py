"""What a simulated life leaves behind in the process that runs it: nothing."""

import logging

import pytest

from tests.sim.life import listening


def test_who_logs_in_a_life_is_heard_after_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("spawn.jobs.treasury")
    heard: list[str] = []
    with listening(lambda record: heard.append(record.getMessage())):
        logger.warning("not heard within")
        logger.error("heard within")
    logger.warning("heard after")
    assert (heard, caplog.messages) == (["heard within"], ["heard after"])
