"""Keeps the processes of a benchmark apart from all else on this machine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from rts.settings import OVERRIDING


def import_path() -> str:
    """Return the PYTHONPATH of a benchmark's processes: its own folder, then what the benchmark
    itself imports from, so that they run the same rts.
    """
    own = str(Path(__file__).parent)
    return os.pathsep.join([own, os.environ.get("PYTHONPATH", "")])


@contextmanager
def isolated() -> Iterator[None]:
    """Have no variable of the shell name another broker, and processes that are started
    meanwhile deliver no records that others have spooled for a server on the same port: the
    default spool lies below the system's temporary folder.
    """
    with (
        tempfile.TemporaryDirectory(prefix="rts-bench-", ignore_cleanup_errors=True) as folder,
        patch.dict(os.environ, TMPDIR=folder),
    ):
        for name in OVERRIDING:
            os.environ.pop(name, None)
        yield
