"""Draws docs/images/replay.svg: the six types on 16 slots, in four orders, over the load.

.venv/bin/python docs/make_plots.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from rts.simulation.traces import at_load, six_types, write_trace

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "replay.svg"
ORDERS = ("edf", "sjf", "fifo", "plain-edf")


def main() -> None:
    """Make the workload, and have ``rts replay`` draw it."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as trace:
        write_trace(trace.name, at_load(six_types(5000, seed=1), 16, 1.0))
        command = [sys.executable, "-m", "celery", "-A", "workers.app", "rts", "replay"]
        command += ["--trace", trace.name, "--slots", "16", "--overhead", "0"]
        for order in ORDERS:
            command += ["--scheduler", order]
        command += ["--plot", str(PICTURE), "--plot-by", "load"]
        subprocess.run(command, cwd=ROOT, check=True)
    text = PICTURE.read_text(encoding="utf-8")
    PICTURE.write_text("\n".join(map(str.rstrip, text.splitlines())) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
