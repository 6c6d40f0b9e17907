"""The example app of rts: six typed tasks that do real work, and three troublemakers."""

from __future__ import annotations

import os

# Before numpy is loaded. A prefork worker has a process per core already: BLAS threads
# on top of them only compete for the same cores (measured: 2 to 8 times slower).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
