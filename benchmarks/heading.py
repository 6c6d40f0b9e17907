"""What every benchmark prints: notes on the way, and above its figures their conditions.

    machine    x86_64, 2 cores, Linux
    versions   Python 3.11.7, redis 8.1.0, pymongo 4.20.1
    workload   50,000 tasks, one run each

The docs show it with the figures.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from importlib.metadata import version


def print_heading(packages: Iterable[str] = (), **conditions: str) -> None:
    """Print the machine, the versions, the *conditions* by name, and an empty line.

    *packages*: PyPI names of the packages whose versions matter.
    """
    versions = [f"{package} {version(package)}" for package in packages]
    lines = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": ", ".join((f"Python {platform.python_version()}", *versions)),
        **conditions,
    }
    for name, text in lines.items():
        print(f"{name:<11}{text}")
    print()


def note(text: str) -> None:
    """Say on standard error what is being done."""
    print(text, file=sys.stderr, flush=True)
