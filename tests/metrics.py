"""What makes the numbers of the metrics, without processes, and how these are read."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rts.ledger.drain import Drain
from rts.ledger.mongo import MongoLedger
from rts.ledger.outbox import RedisOutbox
from rts.link.link import Link
from rts.records import Execution, OpenTask
from rts.settings import Settings
from rts.tau.finish import FinishCall, finish_entry
from rts.unfinished.open_tasks import OpenTasks
from rts.views.metrics import RtsCollector
from tests.open_tasks import overdue_sweep


class Fleet:
    """What moves records and gives verdicts."""

    def __init__(self, settings: Settings, ledger: MongoLedger) -> None:
        self.ledger = ledger
        self._settings = settings
        self._link = Link(settings)
        self.drains = [
            Drain(RedisOutbox(self._link, settings, name), ledger) for name in ("a", "b")
        ]
        self._sweep = overdue_sweep(settings, ledger)

    def publish(self, *tasks: Execution) -> None:
        open_tasks = OpenTasks(self._link, self._settings, every_s=1e6)
        for e in tasks:
            open_tasks.note(
                OpenTask(
                    *(e.task_id, e.name, e.task_type, e.type_source, e.tau, e.k, e.arrival),
                    *(e.deadline, e.arrival_source, e.queue),
                )
            )
        open_tasks.flush()

    def end(self, *runs: Execution) -> None:
        entries = [finish_entry(run, n) for n, run in enumerate(runs, 1)]
        self._link.call(FinishCall(self._settings).pack(None, entries))

    def drain(self) -> None:
        while sum(drain.step() for drain in self.drains):
            pass

    def look(self) -> None:
        while self._sweep.step():
            pass


def exposed(collector: RtsCollector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def scraped(settings: Settings, queues: Any = None) -> str:
    """Return what a collector of its own shows."""
    with closing(RtsCollector(settings, queues)) as collector:
        return exposed(collector)


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the samples of an answer by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def values(text: str, name: str, *labels: str) -> dict[Any, float]:
    """Return the values of one metric, summed up by some of its labels."""
    found: Counter[Any] = Counter()
    for (sample, having), value in samples(text).items():
        if sample == name:
            key = tuple(dict(having)[label] for label in labels)
            found[key[0] if len(labels) == 1 else key] += value
    return dict(found)
