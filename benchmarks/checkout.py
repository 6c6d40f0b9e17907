"""Lets a benchmark import the example app, which comes with the checkout alone, also where rts
is not installed in place.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
