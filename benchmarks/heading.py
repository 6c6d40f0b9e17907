"""What every benchmark prints above its figures: their conditions, in one form.

    machine    x86_64, 2 cores, Linux
    versions   Python 3.11.7, redis 8.1.0, pymongo 4.20.1
    workload   50,000 tasks, one run each

Figures without their conditions say nothing, so the docs show both.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version


def print_heading(packages: Iterable[str] = (), **conditions: str) -> None:
    """Print the machine, the versions, the *conditions* by their names, and an empty line.

    *packages* are those whose versions the figures hang on, as they are called on PyPI.
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
