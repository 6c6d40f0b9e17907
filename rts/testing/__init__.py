"""Real servers and workers for tests: ours and our users'.

:mod:`rts.testing.plugin` has pytest fixtures of them; :mod:`rts.testing.replay` runs a recorded
or synthetic workload on a worker.
"""

from rts.testing.binaries import ServerNotFound
from rts.testing.server import ServerFailed
from rts.testing.servers import MongoServer, RedisServer
from rts.testing.waiting import wait_until
from rts.testing.workers import WorkerFailed, WorkerProcess

__all__ = [
    "MongoServer",
    "RedisServer",
    "ServerFailed",
    "ServerNotFound",
    "WorkerFailed",
    "WorkerProcess",
    "wait_until",
]
