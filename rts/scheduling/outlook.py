"""Predictions for an app: what its queues, its workers and its taus say now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from kombu.exceptions import OperationalError

from rts.errors import CommandError, StoreUnavailable
from rts.headers import read_plan
from rts.ledger.janitor import LOST_AFTER_S
from rts.link.link import Link, replies_as_text
from rts.link.scripts import pack
from rts.records import Execution, Plan
from rts.scheduling.forecast import Prediction, Snapshot, Work, predict
from rts.scheduling.places import tail_of
from rts.scheduling.transport import DEMOTED, HOPEFUL
from rts.settings import Settings
from rts.simulation.orders import EarliestDeadlineFirst, FirstComeFirstServed, Order
from rts.tasktypes import UNTYPED
from rts.tau.sketch import Sketch

#: Waiting messages that are read for one prediction; further ones count as alike.
SAMPLE = 1000
#: Messages whose mean tau stands for that of all.
MEAN_OF = 20
#: Messages that are looked through for a task's id.
SEARCHED = 200_000
#: A note of a run is believed for so many taus: of short runs it is old.
STALE_TAUS = 20.0


def order_of(settings: Settings) -> Order:
    """Return the order that workers with these settings keep."""
    if settings.scheduler != "edf":
        return FirstComeFirstServed()
    return EarliestDeadlineFirst(
        demote=settings.hopeless != "keep",
        hopeless_slots=settings.hopeless_slots,
        late_share=settings.late_share,
    )


class Outlook:
    """Reads one queue and its workers, and predicts."""

    def __init__(self, app: Any, settings: Settings, link: Link) -> None:
        self._app = app
        self._settings = settings
        self._link = link

    def of_new(self, plan: Plan, queue: str) -> Prediction:
        """Predict a task that would be published now.

        Raises:
            CommandError: the broker is not Redis, or no worker takes from *queue*.
            StoreUnavailable: Redis is away.
        """
        work = Work(plan.task_type, plan.arrival, plan.tau, plan.deadline)
        with self._queue(queue) as messages:
            texts, total = messages.first(SAMPLE)
        waiting = [_work(message, self._settings) for message in texts]
        return self._predict(queue, waiting, work, max(0, total - len(waiting)))

    def of_task(self, task_id: str, queue: str) -> Prediction | None:
        """Predict a task that runs, or waits in *queue*; ``None`` where it does neither.

        Raises:
            CommandError: the broker is not Redis, or no worker takes from *queue*.
            StoreUnavailable: Redis is away.
        """
        for execution in self._running():
            if execution.task_id == task_id and execution.started_at is not None:
                return self._predict(queue, [], (_of(execution), execution.started_at), 0)
        with self._queue(queue) as messages:
            texts, total = messages.first(SAMPLE)
            position = _find(task_id, texts)
            if position is None and total > len(texts):
                found = messages.search(task_id)
                if found is not None:
                    position, message = found
                    waiting = [_work(each, self._settings) for each in texts]
                    waiting.append(_work(message, self._settings))
                    unseen = max(0, position - len(texts))
                    return self._predict(queue, waiting, len(waiting) - 1, unseen)
        if position is None:
            return None
        waiting = [_work(message, self._settings) for message in texts]
        return self._predict(queue, waiting, position, 0)

    def pressure(self, queue: str) -> tuple[float, int, float]:
        """Return the seconds of work that wait in *queue*, the slots of its workers, and
        their mean load.

        Raises:
            CommandError: the broker is not Redis.
            StoreUnavailable: Redis is away.
        """
        slots, load = self._workers(queue)
        with self._queue(queue) as messages:
            sample, total = messages.first(MEAN_OF)
        taus = [_work(message, self._settings).tau for message in sample]
        return total * sum(taus) / len(taus) if taus else 0.0, slots, load

    def _workers(self, queue: str) -> tuple[int, float]:
        """Return how many tasks of *queue* may run at a time, and the workers' load."""
        time_, beats = self._link.call(
            pack("TIME"), pack("HGETALL", self._settings.keys.workers)
        )
        now = int(time_[0]) + int(time_[1]) / 1e6
        slots, loads = 0, []
        for beat in replies_as_text(beats).values():
            try:
                told = json.loads(beat)
                queues = told.get("queues") or [queue]
                if now - float(told["seen_at"]) <= LOST_AFTER_S and queue in queues:
                    slots += int(told["concurrency"])
                    loads.append(float(told["load"].get("load") or 0.0))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # of another version
        return slots, sum(loads) / len(loads) if loads else 0.0

    def _predict(self, queue: str, waiting: list[Work], target: Any, unseen: int) -> Prediction:
        slots, _ = self._workers(queue)
        if not slots:
            raise CommandError(f"no worker with rts takes tasks from the queue {queue}")
        keys = self._settings.keys
        types = sorted({w.task_type for w in waiting} | set(self._settings.task_types))
        time_, *answers = self._link.call(
            pack("TIME"), *(pack("HGETALL", keys.ratio + task_type) for task_type in types)
        )
        now = int(time_[0]) + int(time_[1]) / 1e6
        sketches = {
            task_type: Sketch.from_hash(replies_as_text(answer))
            for task_type, answer in zip(types, answers, strict=True)
        }
        running = [
            (_of(execution), execution.started_at)
            for execution in self._running()
            if execution.queue == queue
            and execution.started_at is not None
            and now - execution.started_at < STALE_TAUS * execution.tau
        ]
        snapshot = Snapshot(now, slots, waiting, running, sketches, unseen)
        return predict(snapshot, target, lambda: order_of(self._settings))

    def _running(self) -> list[Execution]:
        (answer,) = self._link.call(pack("HVALS", self._settings.keys.running))
        found = []
        for text in answer:
            try:
                found.append(Execution.from_json(text))
            except ValueError:
                continue
        return found

    @contextmanager
    def _queue(self, name: str) -> Iterator[_Messages]:
        with self._app.connection_for_read() as connection:
            if connection.transport.driver_type != "redis":
                raise CommandError(
                    "predictions need Redis as the broker: others hide their queues"
                )
            try:
                connection.ensure_connection(max_retries=1, interval_start=0)
                yield _Messages(connection.default_channel, name)
            except (OperationalError, *connection.connection_errors) as exc:
                raise StoreUnavailable(f"the broker {connection.as_uri()} is away") from exc


class _Messages:
    """The messages of a queue in the order in which they are to be taken."""

    def __init__(self, channel: Any, name: str) -> None:
        self._client = redis.Redis(connection_pool=channel.pool)
        prefix = f"{channel.global_keyprefix}{name}"
        self._sets = [f"{prefix}{channel.sep}{part}" for part in (HOPEFUL, DEMOTED)]
        steps = channel.priority_steps
        self._lists = [f"{prefix}{channel.sep}{step}" if step else prefix for step in steps]

    def first(self, limit: int) -> tuple[list[Any], int]:
        """Return up to *limit* messages and how many there are."""
        found: list[Any] = []
        for page in self._pages(limit):
            found += page
            break
        with self._client.pipeline(transaction=False) as pipe:
            for name in self._sets:
                pipe.zcard(name)
            for name in self._lists:
                pipe.llen(name)
            return [_message(raw) for raw in found], sum(pipe.execute())

    def search(self, task_id: str) -> tuple[int, Any] | None:
        """Return the position of a task and its message."""
        seen, wanted = 0, task_id.encode()
        for page in self._pages(2000):
            for index, (ordered, text) in enumerate(page):
                if wanted in text and _id(message := _message((ordered, text))) == task_id:
                    return seen + index, message
            seen += len(page)
            if seen >= SEARCHED:
                break
        return None

    def _pages(self, size: int) -> Iterator[list[tuple[bool, bytes]]]:
        page: list[tuple[bool, bytes]] = []
        for name in (*self._sets, *self._lists):
            start = 0
            while True:
                stop = start + size - 1
                if name in self._sets:
                    members: Any = self._client.zrange(name, start, stop)
                    texts = [(True, text) for text in members]
                else:  # taken from the list's right end
                    texts = [
                        (False, text)
                        for text in reversed(self._client.lrange(name, -stop - 1, -start - 1))
                    ]
                page += texts
                start += size
                if len(page) >= size:
                    yield page[:size]
                    page = page[size:]
                if len(texts) < size:
                    break
        yield page


def _message(raw: tuple[bool, bytes]) -> Mapping[str, Any]:
    ordered, text = raw
    try:
        message = json.loads(tail_of(text))[0] if ordered else json.loads(text)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _id(message: Mapping[str, Any]) -> object:
    headers = message.get("headers")
    return headers.get("id") if isinstance(headers, dict) else None


def _find(task_id: str, messages: list[Any]) -> int | None:
    return next((i for i, message in enumerate(messages) if _id(message) == task_id), None)


def _work(message: Mapping[str, Any], settings: Settings) -> Work:
    headers = message.get("headers")
    plan = read_plan(headers, settings.task_types) if isinstance(headers, dict) else None
    if plan is None:
        return Work(UNTYPED, 0.0, settings.task_types[UNTYPED].tau, float("inf"))
    return Work(plan.task_type, plan.arrival, plan.tau, plan.deadline)


def _of(execution: Execution) -> Work:
    return Work(execution.task_type, execution.arrival, execution.tau, execution.deadline)
