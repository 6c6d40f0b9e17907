"""A spool of its own for each benchmark, with all its processes: records that something
else has left on this machine, for a server that had the same port, are not its.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_spool() -> Iterator[None]:
    """Have this process, and those that it starts, keep their records in a new folder."""
    with tempfile.TemporaryDirectory(prefix="rts-bench-", ignore_cleanup_errors=True) as folder:
        os.environ["RTS_SPOOL_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["RTS_SPOOL_DIR"]
