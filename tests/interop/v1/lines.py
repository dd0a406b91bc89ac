"""One JSON request a line on stdin, one JSON answer a line on stdout, until stdin ends: `lines.mjs` in Python."""

import json
import sys
from collections.abc import Callable
from typing import Any


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer every line. A failure of the client itself is an answer too: {"error": text}."""
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever the client raises is what the test wants to know
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)
