"""A simulation that tries to break every promise: the real service in a world made of one seed.

It runs outside pytest too, whose configuration puts the examples on the path of every other test.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
