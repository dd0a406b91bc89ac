"""The benchmark. It runs outside pytest, whose configuration puts the examples on the path of every other test."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
