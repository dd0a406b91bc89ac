"""Holds 402 bodies against the model of PyPI `x402` 1.0:  python -m tests.interop.v1.check

A line {"message": any} is answered with what the model reads in it, or with what it objects to.
"""

from typing import Any

from x402.types import x402PaymentRequiredResponse  # type: ignore[import-not-found]  # of another environment

from tests.interop.v1.lines import serve


def check(ask: dict[str, Any]) -> dict[str, Any]:
    read = x402PaymentRequiredResponse.model_validate(ask["message"])
    return {"read": read.model_dump(by_alias=True, exclude_none=True)}


serve(check)
