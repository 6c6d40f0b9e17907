"""Write throughput and query times of the ledger.

- drain: records per second from the outbox (a Redis stream) through the real drain into
  one mongod, by one process; and that process's CPU time per record for writing alone,
  which is what a worker's machine pays;
- report: time of ``rts report --since 24h`` with many runs stored, spread over 30 days, and
  all within the 24 hours; and with as many more outside the window, as a ratio: these must
  not make it slower;
- objectives: time of the query behind ``rts check --slo``, the exporter and the alerts: all
  windows of the objectives, on the same ledgers.

Servers are embedded and private; time is wall time, medians of several rounds.

    python benchmarks/ledger.py [--records 50000] [--stored 1000000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pymongo
import redis
from heading import note, print_heading

from rts.ledger.drain import BATCH, Drain
from rts.ledger.mongo import MongoLedger
from rts.ledger.outbox import RedisOutbox
from rts.link.link import Link
from rts.records import Execution, Learned, OutboxEntry
from rts.settings import Settings
from rts.tasktypes import DEFAULT_TASK_TYPES
from rts.testing import MongoServer, RedisServer
from rts.views.report import report
from rts.views.slo import standings

DAY_S = 86400.0
TYPES = tuple(DEFAULT_TASK_TYPES)
NAMES, WORKERS = 20, 4


def executions(n: int, begin: float, end: float, seed: int) -> Iterator[Execution]:
    """Generate *n* runs whose ends are evenly spaced between two instants; 2 % fail."""
    rng = random.Random(seed)
    for i in range(n):
        completed_at = begin + (end - begin) * i / n
        runtime_s = rng.lognormvariate(0.0, 1.0)
        started_at = completed_at - runtime_s
        arrival = started_at - rng.expovariate(2.0)
        task_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        worker, pid = f"celery@host{rng.randrange(WORKERS)}", rng.randrange(1000, 30000)
        yield Execution(
            run_id=f"{task_id}:0:{pid}:{started_at * 1e6:.0f}",
            task_id=task_id,
            name=f"shop.tasks.task_{rng.randrange(NAMES)}",
            task_type=rng.choice(TYPES),
            type_source="explicit",
            tau=1.5,
            k=2.0,
            arrival=arrival,
            deadline=arrival + 3.0,
            arrival_source="published",
            queue="celery",
            retries=0,
            parent_id=None,
            root_id=task_id,
            worker=worker,
            instance=f"{worker}:4711:{begin:.0f}",
            pid=pid,
            started_at=started_at,
            load_at_start={"load": 0.41, "cpu": 0.5, "memory": 0.32, "age_s": 0.1},
            completed_at=completed_at,
            runtime_s=runtime_s,
            cpu_s=runtime_s * 0.9,
            max_rss_bytes=50_000_000,
            state="FAILURE" if rng.random() < 0.02 else "SUCCESS",
        )


def batches(runs: Iterator[Execution]) -> Iterator[list[OutboxEntry]]:
    """Yield the runs in batches, as the outbox delivers them."""
    learned = Learned(1.5, 1.6, 1.4, 1.5)
    entries = (
        OutboxEntry(f"{number}-1", run, learned if run.state == "SUCCESS" else None)
        for number, run in enumerate(runs)
    )
    while batch := list(islice(entries, BATCH)):
        yield batch


def write_cost(mongo_url: str, records: int) -> dict[str, float]:
    """Time writing alone, of entries that are already in memory."""
    ledger = MongoLedger(Settings(mongo_url=mongo_url, ledger_ttl=0))
    ledger.prepare()
    now = time.time()
    ready = list(batches(executions(records, now - 600, now, seed=1)))
    wall, cpu = time.perf_counter(), time.process_time()
    for batch in ready:
        ledger.write(batch)
    cost = {
        "records_per_s": records / (time.perf_counter() - wall),
        "cpu_us_per_record": (time.process_time() - cpu) / records * 1e6,
    }
    wall = time.perf_counter()
    for batch in ready:
        ledger.write(batch)
    cost["again_per_s"] = records / (time.perf_counter() - wall)
    assert ledger.database.assignments.count_documents({}) == records
    _drop(ledger)
    return cost


def drain_rate(redis_url: str, mongo_url: str, records: int) -> dict[str, float]:
    """Fill the outbox, then drain it with one real drain; return rate and CPU."""
    settings = Settings(redis_url=redis_url, mongo_url=mongo_url, ledger_ttl=0)
    client = redis.Redis.from_url(redis_url)
    now = time.time()
    for batch in batches(executions(records, now - 600, now, seed=2)):
        pipe = client.pipeline(transaction=False)
        for entry in batch:
            fields: dict[Any, Any] = {"r": entry.execution.to_json()}
            if entry.learned is not None:
                fields["l"] = "1.5 1.6 1.4 1.5"
            pipe.xadd(settings.keys.outbox, fields)
        pipe.execute()
    client.close()
    ledger = MongoLedger(settings)
    ledger.prepare()
    drain = Drain(RedisOutbox(Link(settings), settings, "benchmark"), ledger)
    wall, cpu = time.perf_counter(), time.process_time()
    while drain.step():
        pass
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    stored = ledger.database.assignments.count_documents({})
    if (drain.moved, stored) != (records, records):
        raise SystemExit(f"drained {drain.moved}, stored {stored} of {records} records")
    _drop(ledger)
    return {"records_per_s": records / seconds, "cpu_us_per_record": cpu / records * 1e6}


def _drop(ledger: MongoLedger) -> None:
    ledger.database.client.drop_database(ledger.database.name)
    ledger.close()


class Stored:
    """A filled ledger for the queries."""

    def __init__(self, mongo_url: str, rounds: int) -> None:
        # Filling needs no durability.
        self.ledger = MongoLedger(
            Settings(mongo_url=f"{mongo_url}?w=1&journal=false", ledger_ttl=0)
        )
        self.ledger.prepare()
        self._rounds = rounds
        #: End of the reports' window of 24 hours.
        self.until = time.time()

    def fill(self, n: int, begin: float, end: float, seed: int) -> None:
        """Store *n* runs that end between two instants, given in seconds before ``until``."""
        runs = executions(n, self.until - begin, self.until - end, seed)
        for batch in batches(runs):
            self.ledger.write(batch)

    def ask(self) -> tuple[float, float, int]:
        """Return the seconds of the first report, the median of later ones, and the runs."""
        until = datetime.fromtimestamp(self.until, timezone.utc)
        first, later, found = self._timed(
            lambda: report(self.ledger.database, until - timedelta(days=1), until, "type")
        )
        return first, later, found.total.runs if found.total else 0

    def ask_objectives(self) -> tuple[float, float, int]:
        """Return the seconds of the first query of the objectives, the median of later ones,
        and the tasks in the longest window.
        """
        until = datetime.fromtimestamp(self.until, timezone.utc)
        settings = Settings(slo={TYPES[0]: 0.99, "*": 0.95})
        first, later, found = self._timed(
            lambda: standings(self.ledger.database, settings, until)
        )
        return first, later, sum(standing.windows["budget"].valid for standing in found)

    def _timed(self, query: Callable[[], Any]) -> tuple[float, float, Any]:
        """Return the seconds of the first query, the median of later ones, and the answer."""
        times, answer = [], None
        for _ in range(self._rounds + 1):
            begin = time.perf_counter()
            answer = query()
            times.append(time.perf_counter() - begin)
        return times[0], statistics.median(times[1:]), answer

    def drop(self) -> None:
        """Drop the database."""
        _drop(self.ledger)


def reports(mongo_url: str, stored: int, rounds: int) -> Any:
    """Time the reports; return the figures by case."""
    results: dict[str, Any] = {}
    for case, days in (("spread over 30 days", 30), ("all within 24 hours", 1)):
        note(f"storing {stored} runs, {case}")
        ledger = Stored(mongo_url, rounds)
        ledger.fill(stored, days * DAY_S, 0.0, seed=3)
        first, later, inside = ledger.ask()
        slo_first, slo_later, tasks = ledger.ask_objectives()
        note(f"storing {stored} runs outside the window")
        ledger.fill(stored, 60 * DAY_S, 31 * DAY_S, seed=4)
        _, more, _ = ledger.ask()
        results[case] = {
            "runs_in_window": inside,
            "first_s": first,
            "later_s": later,
            "with_as_many_outside_s": more,
            "ratio": more / later,
            "objectives": {"tasks": tasks, "first_s": slo_first, "later_s": slo_later},
        }
        ledger.drop()
    return results


def main() -> None:
    """Run everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=50_000, help="drained")
    parser.add_argument("--stored", type=int, default=1_000_000, help="behind a report")
    parser.add_argument("--rounds", type=int, default=5, help="reports of each kind")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with RedisServer() as server, MongoServer() as mongo:
        enlarge(mongo.url)
        note(f"writing {arguments.records} records")
        results: dict[str, Any] = {
            "write": write_cost(mongo.url, arguments.records),
            "drain": drain_rate(server.url, mongo.url, arguments.records),
            "report": reports(mongo.url, arguments.stored, arguments.rounds),
        }
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results, arguments)


def show(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Print the tables."""
    print_heading(
        ("redis", "pymongo"),
        workload=f"{len(TYPES)} types, {NAMES} names, {WORKERS} workers; batches of {BATCH}; "
        "majority and journal",
        caveats="one mongod, with a cache of 1 GB, one Redis and the client share the machine",
    )
    write, drain = results["write"], results["drain"]
    print(
        f"drain      {drain['records_per_s']:,.0f} records/s from the outbox, "
        f"{drain['cpu_us_per_record']:.0f} µs of CPU each in the draining process"
    )
    print(
        f"write      {write['records_per_s']:,.0f} records/s, "
        f"{write['cpu_us_per_record']:.0f} µs of CPU each; "
        f"{write['again_per_s']:,.0f}/s when delivered again"
    )
    print()
    print(f"report --since 24h, {arguments.stored:,} runs stored")
    print(f"{'':<22}{'in window':>10}{'first':>9}{'later':>9}{'+ outside':>11}{'ratio':>7}")
    for case, r in results["report"].items():
        print(
            f"{case:<22}{r['runs_in_window']:>10,}{r['first_s']:>8.2f}s{r['later_s']:>8.2f}s"
            f"{r['with_as_many_outside_s']:>10.2f}s{r['ratio']:>7.2f}"
        )
    print()
    print(f"objectives, windows of 5 minutes to 30 days, {arguments.stored:,} tasks stored")
    print(f"{'':<22}{'in window':>10}{'first':>9}{'later':>9}")
    for case, r in results["report"].items():
        slo = r["objectives"]
        print(f"{case:<22}{slo['tasks']:>10,}{slo['first_s']:>8.2f}s{slo['later_s']:>8.3f}s")


def enlarge(mongo_url: str) -> None:
    """Give mongod 1 GB of cache, more than an embedded one has, less than a real ledger's."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(mongo_url)
    client.admin.command("setParameter", 1, wiredTigerEngineRuntimeConfig="cache_size=1G")
    client.close()


if __name__ == "__main__":
    main()
