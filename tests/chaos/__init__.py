"""Replicas that die and stand still under load, and what is true afterwards.

It runs outside pytest too, whose configuration puts the examples on the path of every other test.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
