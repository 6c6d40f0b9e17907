"""The size of one task in storage: bytes in Redis, on disk and in MongoDB.

Servers are embedded and private. Task names have 17 or 18 characters, ids are UUIDs, there is
no GPU.

    python benchmarks/sizes.py [--tasks 50000]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import redis
from heading import print_heading
from ledger import batches, executions

from rts.ledger.mongo import MongoLedger
from rts.link.link import Link
from rts.records import Execution, OpenTask
from rts.settings import Settings
from rts.testing import MongoServer, RedisServer
from rts.unfinished.open_tasks import CHUNK, OpenTasks

#: Labels of the table.
OPEN, OUTBOX = "open task, Redis", "record in the outbox, Redis"
SPOOL = "record in the spool, disk"
DOCUMENTS, INDEXES, STORED = (
    "documents, MongoDB, before compression",
    "indexes, MongoDB",
    "documents, MongoDB, compressed",
)


def in_redis(url: str, runs: Sequence[Execution]) -> dict[str, float]:
    """Return the bytes of Redis memory per task while it is open, and per outbox record."""
    client = redis.Redis.from_url(url)
    settings = Settings(redis_url=url)
    open_tasks = OpenTasks(Link(settings), settings, every_s=1e9)
    before = _used(client)
    for start in range(0, len(runs), CHUNK):
        for run in runs[start : start + CHUNK]:
            open_tasks.note(
                OpenTask(
                    *(run.task_id, run.name, run.task_type, run.type_source, run.tau, run.k),
                    *(run.arrival, run.deadline, run.arrival_source, run.queue),
                    root_id=run.root_id,
                )
            )
        open_tasks.flush()
    if client.zcard(settings.keys.open) != len(runs):
        raise SystemExit("not all tasks were registered as open")
    opened = _used(client) - before
    before = _used(client)
    for start in range(0, len(runs), 1000):
        pipe = client.pipeline(transaction=False)
        for run in runs[start : start + 1000]:
            pipe.xadd(settings.keys.outbox, {"r": run.to_json(), "l": "1.5 1.6 1.4 1.5"})
        pipe.execute()
    kept = _used(client) - before
    open_tasks.stop()
    client.close()
    return {OPEN: opened / len(runs), OUTBOX: kept / len(runs)}


def in_mongo(url: str, runs: Sequence[Execution]) -> dict[str, float]:
    """Return the bytes per run of its two documents and of their indexes."""
    ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))
    ledger.prepare()
    for batch in batches(iter(runs)):
        ledger.write(batch)
    ledger.database.client.admin.command("fsync")  # sizes are those of the last checkpoint
    stats = [ledger.database.command("collStats", name) for name in ("tasks", "assignments")]
    ledger.close()
    each = {DOCUMENTS: "size", STORED: "storageSize", INDEXES: "totalIndexSize"}
    return {what: sum(s[key] for s in stats) / len(runs) for what, key in each.items()}


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    now = time.time()
    runs = list(executions(arguments.tasks, now - 600, now, seed=1))
    with RedisServer() as server, MongoServer() as mongo:
        spooled = sum(len(run.to_json().encode()) + 1 for run in runs) / len(runs)
        results = {**in_redis(server.url, runs), SPOOL: spooled, **in_mongo(mongo.url, runs)}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    print_heading(("redis", "pymongo"), workload=f"{arguments.tasks:,} tasks, one run each")
    for what, size in results.items():
        print(f"{what:<40}{size:>7,.0f} bytes")


if __name__ == "__main__":
    main()
