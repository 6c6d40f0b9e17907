"""The benchmarks, made small: that they run and print what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def figures(script: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark and return its figures."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=170, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_overhead() -> None:
    found = figures("overhead.py", "--pairs", "1", "--tasks", "200")
    for what in ("publish", "worker"):
        plain, with_rts, ratio = found[what]
        assert 0 < plain < 1
        assert ratio == with_rts / plain
    assert found["pymongo in a child"] is False
    assert found["rss_growth_bytes"] < 8e6


def test_ledger() -> None:
    found = figures("ledger.py", "--records", "2000", "--stored", "4000", "--rounds", "1")
    assert found["drain"]["records_per_s"] > 0
    for case in found["report"].values():
        assert 0 < case["runs_in_window"] <= 4000
        assert case["later_s"] > 0
