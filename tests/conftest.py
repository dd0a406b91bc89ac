"""What holds for every test: an absent engine is named, and where all are demanded nothing is skipped."""

from collections.abc import Generator
from typing import TypeVar

import pytest

from tests.engines import REQUIRE_VARIABLE, demanded, skips_refused

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure() -> None:
    try:
        demanded()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error


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
