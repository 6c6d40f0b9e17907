"""The processes of a benchmark, kept apart from all else on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

from rts.settings import OVERRIDING


def environment(**own: str) -> dict[str, str]:
    """Return the environment of a benchmark's processes, with variables of their *own*. They
    import from its folder, then from where the benchmark does, so that they run the same rts.
    """
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), **own}


def noop_environment(
    broker: str, settings: Mapping[str, Any], celery: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, str]:
    """Return the environment of processes with the app of noop_app.py; *settings*: of rts,
    none for plain Celery; *celery*: further settings of Celery.
    """
    own = {"BENCH_RTS": json.dumps(settings), "BENCH_CELERY": json.dumps(dict(celery))}
    return environment(BENCH_BROKER=broker, **own)


def run_script(script: str, env: Mapping[str, str], *arguments: object) -> str:
    """Run a Python script in a fresh process; return its output."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


@contextmanager
def isolated() -> Iterator[None]:
    """Keep out variables of the shell that name another broker, and records that others have
    spooled for a server on the same port: by default below the system's temporary folder.
    """
    with (
        tempfile.TemporaryDirectory(prefix="rts-bench-", ignore_cleanup_errors=True) as folder,
        patch.dict(os.environ, TMPDIR=folder),
    ):
        for name in OVERRIDING:
            os.environ.pop(name, None)
        yield
