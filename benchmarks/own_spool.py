"""A private spool for a benchmark's processes, so that they do not deliver records that others
on this machine have spooled for a server on the same port.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def own_spool() -> Iterator[None]:
    """Have the processes that are started meanwhile spool their records in a new folder: the
    default of ``rts_spool_dir`` lies below the system's temporary one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="rts-bench-", ignore_cleanup_errors=True) as folder,
        patch.dict(os.environ, TMPDIR=folder),
    ):
        yield
