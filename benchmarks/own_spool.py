"""A private spool for a benchmark and its processes, so that it does not deliver records
that others on this machine have spooled for a server on the same port.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_spool() -> Iterator[None]:
    """Spool the records of this process, and of those that it starts, in a new folder."""
    with tempfile.TemporaryDirectory(prefix="rts-bench-", ignore_cleanup_errors=True) as folder:
        os.environ["RTS_SPOOL_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["RTS_SPOOL_DIR"]
