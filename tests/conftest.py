"""What holds for every test: an absent engine is named, and where all are demanded nothing is skipped."""

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Final, TypeVar

import pytest

from tests import databases
from tests.engines import REQUIRE_VARIABLE, demanded, postgres, skips_refused

# These assert outside of a test module; pytest has to be told to explain what failed there, before they are imported.
pytest.register_assert_rewrite(
    "tests.interop.story", "tests.interop.anvil_service", "tests.interop.stock_payments"
)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


_server: Final = ExitStack()
"""The PostgreSQL of this run, if its tests keep their books there."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "embedded: about the embedded engine: not run on another")
    config.addinivalue_line("markers", "gapless: counts numbers that a repeated write skips: no collisions")
    try:
        demanded()
        wanted = databases.engine()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    if wanted == "postgresql" and databases.SERVER_VARIABLE not in os.environ:
        server = _server.enter_context(postgres())
        os.environ[databases.SERVER_VARIABLE] = server.url("{database}")
        databases.make_template()


def pytest_unconfigure() -> None:
    _server.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is about one engine is no skip on another: it is not asked."""
    unasked = {"embedded": databases.engine() != "sqlite", "gapless": databases.retries() > 0}
    names = {name for name, is_so in unasked.items() if is_so}
    left_out = [item for item in items if names & {mark.name for mark in item.iter_markers()}]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[None]:
    """A PostgreSQL for a test that is about one, whichever engine the others keep their books in."""
    if databases.SERVER_VARIABLE in os.environ:
        yield
        return
    with postgres() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv(databases.SERVER_VARIABLE, server.url("{database}"))
        databases.make_template()
        yield
        databases.drop_made()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    yield
    if nextitem is None or nextitem.path != item.path:
        databases.drop_made()


def _refuse_skip(report: Report) -> Report:
    # An expected failure also reports as skipped, and is none.
    if report.skipped and skips_refused() and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and {REQUIRE_VARIABLE}=all refuses every skip: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))
