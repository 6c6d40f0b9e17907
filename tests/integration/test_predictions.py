"""Predictions and routes on a real broker, with real workers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import psutil
import pytest
import redis
from celery import Celery
from kombu import Exchange, Queue, binding

import rts
from rts.installation import parts_of
from rts.predictions import initial_state
from rts.predictions.initial_state import InitialState
from rts.predictions.queue_reader import HELD
from rts.predictions.sampling import Work
from rts.predictions.snapshot import Snapshot
from rts.settings import Settings
from rts.tasktypes import TaskType
from rts.testing import RedisServer, WorkerProcess, wait_until
from rts.unfinished.received import decode_marks
from tests.conftest import ROOT, Stage
from tests.order import EDF
from tests.recording_link import RecordingLink
from tests.records import run

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

OK, LATE = "tests.apps.basic.ok", "tests.apps.basic.late"
#: Options of a task of the type "slow".
SLOW: dict[str, Any] = {"headers": {"task_type": "slow"}}


@pytest.fixture
def apps(apps: Callable[..., Celery]) -> Callable[..., Celery]:
    """Make apps that publish to a stage's workers, and are patient on a busy machine."""
    return lambda stage, **conf: apps(stage, **{"rts_timeout": 10.0, **conf})


def topic_queue(stage: Stage) -> Queue:
    """Return a queue whose routing key differs from its name."""
    name = f"{stage.conf['task_default_queue']}-bound"
    topic = Exchange(f"{name}-x", type="topic")  # a direct one is passed over by Celery
    return Queue(name, topic, routing_key=f"{name}-key")


def busy(stage: Stage, app: Celery, seconds: float, slots: int, **options: Any) -> list[str]:
    """Fill the slots of the stage's workers; return the ids of the running tasks."""
    ids = [app.send_task(OK, (seconds,), **options).id for _ in range(slots)]
    client = redis.Redis.from_url(stage.redis_url)
    wait_until(lambda: client.hlen(f"{stage.prefix}running") >= slots, message="they run")
    client.close()
    return ids


def with_a_line(
    stage: Stage, app: Celery, client: redis.Redis
) -> tuple[WorkerProcess, str, list[str]]:
    """Start a worker of one slot; return it, the id of what it runs for a minute, and those
    of the four tasks that it has taken ahead.
    """
    worker = stage.worker(pool="threads", concurrency=1)
    (runs,) = busy(stage, app, 60, 1, **SLOW)
    held = [app.send_task(OK, (0,), **SLOW).id for _ in range(4)]
    wait_until(lambda: not waiting(client, app.conf.task_default_queue), message="held")
    return worker, runs, held


def served(app: Celery, **options: Any) -> rts.Prediction:
    """Return the prediction for a new task, once a worker consumes its queue."""

    def told() -> rts.Prediction | None:
        try:
            return rts.predict_new(OK, app=app, **options)
        except rts.CommandError:
            return None  # its first heartbeat is to come

    return wait_until(told, message="a worker beats")


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_running_waiting_and_ended_tasks(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    scheduler: str | None,
    redis_client: redis.Redis,
) -> None:
    stage = make_stage(
        rts_scheduler=scheduler,
        rts_task_types={"slow": 2.0},
        worker_prefetch_multiplier=4,
        rts_late_share=0.0,
    )
    app = apps(stage)
    slow: dict[str, Any] = {"headers": {"task_type": "slow", "sla_deadline": time.time() + 600}}
    with pytest.raises(rts.CommandError, match="no worker with rts takes tasks from the queue"):
        rts.predict_new(OK, app=app)
    waits = app.send_task(OK, (0,), **slow).id
    deserted = f"{stage.conf['task_default_queue']}-deserted"
    elsewhere = app.send_task(OK, (0,), queue=deserted, **slow).id
    for task_id in (waits, elsewhere):
        with pytest.raises(rts.CommandError, match="no worker"):
            rts.predict(task_id, app=app)
    assert rts.predict("nobody", app=app) is None
    worker = stage.worker(pool="threads", concurrency=1)
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    wait_until(lambda: rts.predict(waits, app=app) is None, message="it is over")

    # More than the worker prefetches, which it does in order of arrival only.
    (runs,) = busy(stage, app, 60, 1, **slow)
    queue = [app.send_task(OK, (0,), **slow).id for _ in range(8)]
    now = time.time()
    running = wait_until(lambda: rts.predict(runs, app=app))
    assert now - 60 < running.start <= time.time() < running.finish_high
    assert running.ahead == 0
    answers = [rts.predict(task_id, app=app) for task_id in queue]
    found = [answer for answer in answers if answer is not None]
    assert len(found) == 8
    assert [answer.ahead for answer in found] == list(range(8))
    assert all(a.slots == 1 and a.start_low <= a.start <= a.start_high for a in found)
    # The tau of a slow task is 2 s: about so much lies between one start and the next.
    assert 8 < found[7].start - found[0].start < 20
    assert all(a.finish > a.start and a.on_time > 0.9 for a in found)
    new = rts.predict_new(OK, headers={"task_type": "slow", "sla_deadline": now + 601}, app=app)
    assert new.ahead == 8
    assert new.start > found[6].start
    # What this process publishes counts at once, between two readings of the queue.
    for more in range(1, 5):
        app.send_task(OK, (0,), headers={"task_type": "slow", "sla_deadline": now + 600})
        late = {"task_type": "slow", "sla_deadline": now + 601}
        assert rts.predict_new(OK, headers=late, app=app).ahead == 8 + more
    app.control.purge()
    worker.kill()


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_etas_other_queues_and_priorities(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    scheduler: str | None,
    redis_client: redis.Redis,
) -> None:
    stage = make_stage(
        rts_scheduler=scheduler, rts_late_share=0.0, worker_prefetch_multiplier=1
    )
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    worker = stage.worker(pool="threads", concurrency=2, queues=[default, other])
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    eta = datetime.now(timezone.utc) + timedelta(seconds=90)
    held = app.send_task(OK, (0,), eta=eta).id
    wait_until(lambda: not waiting(redis_client, default), message="a worker holds it")
    # For a moment it is neither in the queue nor with the worker.
    answer = wait_until(lambda: rts.predict(held, app=app))
    assert answer.start == pytest.approx(eta.timestamp(), abs=1.0)
    assert answer.finish > answer.start
    new = rts.predict_new(OK, headers={"eta": eta.isoformat()}, app=app)
    assert new.start == pytest.approx(eta.timestamp(), abs=1.0)

    busy(stage, app, 60, 2)
    for _ in range(8):  # more than a worker fetches ahead
        app.send_task(OK, (0,), queue=other)
    found = [app.send_task(OK, (0,), queue=other, priority=p) for p in (9, 0, 0)]
    last, *others = [rts.predict(task.id, app=app) for task in found]
    assert last is not None
    assert last.start > time.time()
    assert all(answer is not None for answer in others)
    if scheduler is None:  # 0 goes first on Redis
        assert [last.ahead, *(a.ahead for a in others if a is not None)] == [10, 8, 9]
    assert rts.predict(found[0].id, queue=default, app=app) is None
    assert rts.predict_new(OK, other, app=app).slots == 2
    assert rts.predict_new(OK, Queue(other), app=app).slots == 2
    with pytest.raises(rts.CommandError, match=f"the queue {default}-unknown"):
        rts.predict_new(OK, queue=f"{default}-unknown", app=app)
    assert rts.predict(found[0].id, queue=f"{default}-unknown", app=app) is None
    app.control.purge()
    worker.kill()


def waiting(client: redis.Redis, queue: str) -> int:
    return int(client.llen(queue)) + int(client.zcard(f"{queue}{EDF}"))


def test_just_started_tasks_and_held_ones_of_another_queue(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=4)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    worker = stage.worker(pool="threads", concurrency=1, queues=[default, other])
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    first, again = (rts.predict_new(OK, app=app) for _ in range(2))
    assert again.start > first.start  # from one reading, but not before it is asked

    app.send_task(OK, (60,))
    wait_until(lambda: not waiting(redis_client, default), message="it is taken")
    # It is not known to run yet.
    assert rts.predict_new(OK, app=app).start_low > time.time() + 1

    for _ in range(2):
        app.send_task(OK, (60,))
    # A worker consumes its queues round-robin.
    wait_until(lambda: not waiting(redis_client, default), message="they are held")
    last = app.send_task(OK, (0,), queue=other).id
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}running"), message="it runs")
    wait_until(lambda: not waiting(redis_client, other), message="it is held")
    found = rts.predict(last, app=app)
    assert found is not None
    assert found.ahead == 2
    app.control.purge()
    worker.kill()


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_queues_of_one_worker_are_served_round_robin(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    scheduler: str | None,
    redis_client: redis.Redis,
) -> None:
    stage = make_stage(rts_scheduler=scheduler, worker_prefetch_multiplier=1)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    worker = stage.worker(pool="threads", concurrency=1, queues=[default, other])
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    busy(stage, app, 60, 1)
    for _ in range(20):
        app.send_task(OK, (0,))
    last = [app.send_task(OK, (0,), queue=other).id for _ in range(5)][-1]
    found = rts.predict(last, app=app)
    assert found is not None
    # One of the other queue goes before each of the five; one may be held already.
    assert 4 + 4 <= found.ahead <= 4 + 6
    alone = rts.predict_new(OK, queue=other, app=app)
    for _ in range(30):
        app.send_task(OK, (0,))
    beside = rts.predict_new(OK, queue=other, app=app)
    assert alone.ahead <= beside.ahead <= alone.ahead + 1  # more in the other changes nothing
    app.control.purge()
    worker.kill()


def test_a_held_task_waits_only_for_its_own_worker(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_task_types={"slow": 20.0}, worker_prefetch_multiplier=4)
    app = apps(stage)
    first, runs, held = with_a_line(stage, app, redis_client)
    stage.worker(pool="threads", concurrency=1)

    def told() -> list[float]:
        found = [rts.predict(task_id, app=app) for task_id in held]
        return [] if None in found else [answer.start for answer in found if answer]

    def starts() -> list[float]:
        client = redis.Redis.from_url(stage.redis_url)
        beats = client.hvals(f"{stage.prefix}workers")
        client.close()
        marks = [len(decode_marks(json.loads(beat).get("received", ""))) for beat in beats]
        return told() if sorted(marks) == [0, 5] else []

    now = time.time()
    found = wait_until(starts, message="both workers tell what they have received")
    # Though the other is idle, all tasks that the first one holds wait for it.
    assert found[0] > now + 5
    assert found[3] - found[0] > 30
    new = rts.predict_new(OK, app=app, **SLOW)
    assert new.start < time.time() + 5
    assert rts.predict(runs, app=app) is not None
    first.kill()


def test_tasks_of_a_killed_worker_wait_for_their_redelivery(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = make_stage(rts_task_types={"slow": 20.0}, worker_prefetch_multiplier=4)
    app = apps(stage)
    app.conf.broker_transport_options = {"visibility_timeout": 600.0}
    first, _, held = with_a_line(stage, app, redis_client)
    begun = time.time()
    first.kill()
    stage.worker(pool="threads", concurrency=1)
    client = redis.Redis.from_url(stage.redis_url)
    wait_until(lambda: not client.hlen(f"{stage.prefix}running"), message="it is lost")
    wait_until(lambda: client.hlen(f"{stage.prefix}workers") == 1, message="one is left")
    client.close()
    # Messages that were taken so long ago would have been reported.
    monkeypatch.setattr(initial_state, "REPORTED_S", 1.0)
    # Which the other one's next heartbeat tells, at the latest.
    wait_until(lambda: served(app, **SLOW).start < time.time() + 5, message="none is ahead")
    later = rts.predict(held[0], app=app)
    assert later is not None
    assert later.start == pytest.approx(begun + 600.0, abs=30.0)


def test_each_worker_limits_demoted_tasks_on_its_own(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_late_share=0.0, rts_task_types={"slow": 2.0})
    app = apps(stage)
    workers = [stage.worker(pool="threads", concurrency=1) for _ in range(3)]
    late = {"headers": {"task_type": "slow", "sla_deadline": time.time() - 100}}
    busy(stage, app, 60, 3, **late)
    last = [app.send_task(OK, (0,), **late).id for _ in range(15)][-1]
    found = rts.predict(last, app=app)
    assert found is not None
    assert (found.ahead, found.slots) == (14, 3)
    # By threes: a share of all slots, 0.75, would be two of the three.
    assert found.start - time.time() < 5 * 2.0 + 3
    app.control.purge()
    for worker in workers:
        worker.kill()


def test_a_task_without_a_deadline_is_ordered_by_its_horizon(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> None:
    name = "with-horizon"
    stage = make_stage(
        rts_scheduler="edf", rts_queue_horizons={"*": 5.0, name: 1000.0}, rts_late_share=0.0
    )
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1, queues=[name])
    busy(stage, app, 60, 1, queue=name)
    stranger = Celery("stranger", broker=stage.broker, set_as_current=False)
    before = time.time()
    alien = stranger.send_task(OK, (0,), queue=name).id
    app.send_task(OK, (0,), queue=name, headers={"sla_deadline": before + 500})
    found = wait_until(lambda: rts.predict(alien, app=app))
    assert found.deadline == pytest.approx(before + 1000, abs=10)
    assert found.ahead == 1
    stranger.close()
    app.control.purge()
    worker.kill()


def test_more_tasks_are_held_for_an_eta_than_are_read(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1)
    eta = datetime.now(timezone.utc) + timedelta(seconds=3600)
    with app.producer_pool.acquire() as one:
        ids = [app.send_task(OK, (0,), eta=eta, producer=one).id for _ in range(HELD + 98)]
        for _ in range(2):  # an app may publish an id again
            app.send_task(OK, (0,), eta=eta, producer=one, task_id="again")
    wait_until(lambda: redis_client.hlen("unacked") >= HELD + 100, message="all are held")
    for task_id in (ids[0], ids[50], ids[-1], "again"):
        found = rts.predict(task_id, app=app)
        assert found is not None
        assert found.start >= eta.timestamp() - 1
    app.control.purge()
    worker.kill()


def test_a_task_published_and_started_within_a_second_has_started(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app = apps(stage)
    queue = app.conf.task_default_queue
    now = redis_client.time()[0]
    beat = {"seen_at": now + 60, "concurrency": 1, "queues": [queue]}
    redis_client.hset(f"{stage.prefix}workers", "w@h/1", json.dumps(beat))
    long = run("long")._replace(started_at=now, tau=1000.0, queue=queue, instance="w@h/1")
    redis_client.hset(f"{stage.prefix}running", "long", long.to_json())
    served(app)  # from here on publishes are recorded
    wait_until(lambda: 0.2 < redis_client.time()[1] / 1e6 < 0.5, message="amid a second")
    begun = app.send_task(OK, (0,)).id
    redis_client.delete(queue)  # as if a worker had taken it and not reported it yet
    found = rts.predict(begun, app=app)
    assert found is not None
    assert found.start < now + 60  # it does not wait for the long one


def test_a_task_of_this_process_that_started_at_once(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage()
    bound = topic_queue(stage)
    name = bound.name
    app = apps(stage, task_queues=[bound])
    worker = stage.worker(pool="threads", concurrency=1, queues=[name])
    # The routing key is not the queue's name; from here on publishes are recorded.
    served(app, queue=name)
    runs = app.send_task(OK, (60,), queue=name).id
    wait_until(lambda: not waiting(redis_client, name), message="it is taken")
    found = rts.predict(runs, app=app)
    assert found is not None
    assert (found.ahead, found.slots) == (0, 1)
    worker.kill()


def test_a_held_task_came_by_the_key_of_a_binding_or_by_a_topic(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=8)
    name = f"{stage.conf['task_default_queue']}-bound"
    first, second = (Exchange(f"{name}-{number}") for number in (1, 2))
    bound = Queue(name, [binding(first, routing_key="one"), binding(second, routing_key="two")])
    topic = Queue(f"{name}-topic", Exchange(f"{name}-x", type="topic"), routing_key="orders.#")
    app = apps(stage, task_queues=[bound, topic])
    with app.connection() as connection:
        bound(connection.default_channel).declare()
    worker = stage.worker(pool="threads", concurrency=1, queues=[name, topic.name])
    served(app, queue=name)
    busy(stage, app, 60, 1, exchange=second.name, routing_key="two")
    held = app.send_task(OK, (0,), exchange=first.name, routing_key="one").id
    other = app.send_task(OK, (0,), queue=topic.name, routing_key="orders.new").id
    for queue in (name, topic.name):
        wait_until(lambda q=queue: not waiting(redis_client, q), message="it is taken")
    found = rts.predict(held, app=app)
    assert found is not None
    assert found.slots == 1
    with pytest.raises(rts.CommandError, match=r"has its routing key, orders\.new"):
        rts.predict(other, app=app)
    worker.kill()


def test_a_new_task_uses_its_own_routing_options(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=1)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"

    @app.task(name="elsewhere", queue=other, priority=9)
    def elsewhere() -> None:
        """Of a queue of its own."""

    worker = stage.worker(pool="threads", concurrency=1, queues=[default])
    beside = stage.worker(pool="threads", concurrency=2, queues=[other])
    busy(stage, app, 60, 2, queue=other)
    for _ in range(6):  # more than the worker fetches ahead
        app.send_task(OK, (0,), queue=other, priority=6)
    found = rts.predict_new(elsewhere)
    assert (found.slots, found.ahead) == (2, 6)
    app.control.purge()
    worker.kill()
    beside.kill()


def test_publishing_a_task_for_later_does_not_rule_out_earlier_arrivals(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1)
    served(app)
    parts = parts_of(app)
    assert parts is not None
    predictor = parts.predictor
    assert predictor is not None

    def counted() -> list[float]:
        """Publish a task with a countdown; return when the cached reading saw it."""
        rts.predict_new(OK, app=app)
        app.send_task(OK, (0,), countdown=3600)
        readings = predictor._readings.values()
        return [reading.published_at for reading in readings if reading.published]

    (published_at,) = wait_until(counted)
    assert published_at < time.time() + 60
    app.control.purge()
    worker.kill()


def test_tasks_behind_one_that_will_be_hopeless_overtake_it(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_late_share=0.0)
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1)
    busy(stage, app, 60, 1)
    now = time.time()
    # Its tau is 10 s: it turns hopeless within 1 s, and all the others overtake it.
    soon = app.send_task(OK, (0,), headers={"sla_deadline": now + 10}).id
    for _ in range(10):
        app.send_task(OK, (0,), headers={"sla_deadline": now + 1000})
    found = rts.predict(soon, app=app)
    assert found is not None
    assert found.start > now + 50
    app.control.purge()
    worker.kill()


def test_a_task_with_late_acknowledgement_runs_or_waits(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(task_acks_late=True, worker_prefetch_multiplier=4)
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1)
    app.send_task(OK, (0,), countdown=600)
    wait_until(lambda: redis_client.hlen("unacked"), message="it is held")
    # It is unacknowledged, too, but holds no slot.
    wait_until(lambda: served(app).start < time.time() + 2)
    (runs,) = busy(stage, app, 60, 1)
    next_ = app.send_task(OK, (0,)).id
    running, waits = rts.predict(runs, app=app), rts.predict(next_, app=app)
    assert running is not None
    assert running.start < time.time()
    assert waits is not None
    assert waits.start_high > time.time()
    assert waits.ahead == 0
    worker.kill()


def test_among_a_hundred_thousand_messages(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_task_types={"slow": 2.0}, worker_prefetch_multiplier=1)
    app = apps(stage)
    queue = app.conf.task_default_queue
    slow = {"headers": {"task_type": "slow"}}
    worker = stage.worker(pool="threads", concurrency=4)
    busy(stage, app, 60, 4, **slow)
    for _ in range(9):  # more than the worker fetches ahead
        app.send_task(OK, (0,), **slow)
    text = str(wait_until(lambda: redis_client.lindex(queue, 0)))
    template_id = json.loads(text)["headers"]["id"]
    for start in range(0, 100_000, 5000):
        ids = [f"{number:036d}" for number in range(start, start + 5000)]
        redis_client.lpush(queue, *(text.replace(template_id, id_) for id_ in ids))
    for number in (100, 50_000, 99_999):
        answer = rts.predict(f"{number:036d}", app=app)
        assert answer is not None
        assert answer.ahead == pytest.approx(number, abs=10)
        assert answer.start - time.time() == pytest.approx(2 * number / 4, rel=0.25)
    assert rts.predict("not-there", app=app) is None
    new = rts.predict_new(OK, headers={"task_type": "slow"}, app=app)
    assert new.ahead == pytest.approx(100_000, abs=10)
    redis_client.delete(queue)
    worker.kill()


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_large_messages_are_not_read_as_a_whole(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    scheduler: str | None,
    redis_client: redis.Redis,
) -> None:
    stage = make_stage(
        rts_scheduler=scheduler, rts_task_types={"slow": 2.0}, worker_prefetch_multiplier=1
    )
    app = apps(stage)
    queue = app.conf.task_default_queue
    slow: dict[str, Any] = {"headers": {"task_type": "slow", "sla_deadline": time.time() + 600}}
    worker = stage.worker(pool="threads", concurrency=1)
    busy(stage, app, 60, 1, **slow)
    ids = [app.send_task(OK, ("x" * (1 << 20),), **slow).id for _ in range(60)]

    def sent_of(ask: Callable[[], object]) -> tuple[Any, int]:
        """Return an answer, and how many bytes Redis has sent for it."""
        before = redis_client.info("stats")["total_net_output_bytes"]
        found = ask()
        return found, redis_client.info("stats")["total_net_output_bytes"] - before

    for number in (10, 59):
        found, sent = sent_of(partial(rts.predict, ids[number], app=app))
        assert found.ahead == pytest.approx(number, abs=2)
        assert sent < 4 << 20  # the message in question is read
    new, sent = sent_of(partial(served, app, **slow))
    assert new.ahead == pytest.approx(60, abs=2)
    assert sent < 1 << 20
    parts = parts_of(app)
    assert parts is not None
    assert parts.predictor is not None
    read, sent = sent_of(partial(parts.predictor.pressures.read, [queue]))
    assert read[queue].backlog_s == pytest.approx(122, abs=5)
    assert sent < 1 << 20
    redis_client.delete(queue)
    worker.kill()


def test_threads_of_a_web_server_use_the_only_app(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage()
    script = f"""if True:
        from concurrent.futures import ThreadPoolExecutor
        from celery import Celery
        import rts

        app = Celery("web", broker={stage.broker!r})
        app.conf.update({stage.conf!r})
        rts.install(app)
        task = app.send_task("some.task").id
        with ThreadPoolExecutor(1) as requests:
            print(requests.submit(rts.predict, "nobody").result())
            for ask, what in ((rts.predict, task), (rts.predict_new, "some.task")):
                print(requests.submit(ask, what).exception())
            another = Celery("another", set_as_current=False)
            rts.install(another)
            print(requests.submit(rts.predict, "nobody").exception())
    """
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    nobody, waits, new, two = ran.stdout.splitlines()
    assert nobody == "None"
    assert waits.startswith("no worker with rts takes")
    assert new.startswith("no worker with rts takes")
    assert two.startswith("the app 'default' does not have rts: call rts.install(app), or name")


def test_an_overdue_task_is_found_in_a_queue_that_nobody_knows(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app, other_app = apps(stage), apps(stage)
    with stage.worker(pool="threads", concurrency=1):
        other = f"{app.conf.task_default_queue}-nobody"
        lost = app.send_task(OK, queue=other, headers={"sla_deadline": time.time() + 0.1}).id
        wait_until(
            lambda: redis_client.zscore(f"{stage.prefix}overdue", lost), message="it is overdue"
        )
        with pytest.raises(rts.CommandError, match=f"takes tasks from the queue {other}"):
            rts.predict(lost, app=other_app)


def test_unavailable_servers_and_unsupported_brokers() -> None:
    with RedisServer() as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
    url = f"redis://:secret@127.0.0.1:{port}/0"
    app = Celery("away", broker=url, set_as_current=False)
    app.conf.rts_redis_url = url
    rts.install(app)
    for ask in (lambda: rts.predict("x", app=app), lambda: rts.predict_new("t", app=app)):
        with pytest.raises(rts.StoreUnavailable) as caught:
            ask()
        assert "secret" not in str(caught.value)
    rts.uninstall(app)
    app.close()

    bare = Celery("bare", set_as_current=False)
    with pytest.raises(rts.CommandError, match=r"rts\.install"):
        rts.predict("x", app=bare)


def test_many_threads_predict_at_once(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], rts_redis_url: str
) -> None:
    """Each has a connection where it needs one, and one of them predicts for all."""
    many = 24  # kombu keeps ten connections
    with RedisServer() as server:
        stage = make_stage(broker=server.url, rts_redis_url=rts_redis_url)
        app = apps(stage, rts_timeout=60.0)
        worker = stage.worker(pool="threads", concurrency=1)
        served(app)
        assert rts.predict("nobody", app=app) is None
        client = redis.Redis.from_url(server.url)
        port = client.connection_pool.connection_kwargs["port"]

        def connections() -> int:
            made = psutil.Process().net_connections()
            return sum(each.raddr and each.raddr.port == port for each in made)

        for ask, least in (
            (lambda: rts.predict("nobody", app=app), many),
            (lambda: rts.predict_new("another", app=app), 1),
        ):
            client.config_resetstat()
            begun: list[None] = []

            def question(ask: Callable[[], Any] = ask, begun: list[None] = begun) -> bool:
                begun.append(None)
                return ask() is None

            with ThreadPoolExecutor(many) as pool:
                server.pause()
                asked = [pool.submit(question) for _ in range(many)]
                try:
                    wait_until(lambda: len(begun) == many, message="all ask")  # noqa: B023
                    wait_until(
                        lambda: connections() >= least or any(each.done() for each in asked),  # noqa: B023
                        message="all wait for the broker",
                    )
                finally:
                    server.resume()
            assert len({each.result() for each in asked}) == 1
        # None where what was read for the first question is fresh still.
        looks = client.info("commandstats").get("cmdstat_zrevrange", {"calls": 0})
        assert looks["calls"] < many / 2
        client.close()
        worker.kill()


def test_many_threads_ask_at_once_while_nobody_takes_from_the_queue(
    rts_redis_url: str, rts_key_prefix: str
) -> None:
    """One of them reads the queue; the others learn from it, each about its own queue."""
    many = 24
    with RedisServer() as server:
        app = Celery("alone", broker=server.url, set_as_current=False)
        app.conf.update(
            rts_redis_url=rts_redis_url, rts_key_prefix=rts_key_prefix, rts_timeout=60.0
        )
        rts.install(app)
        client = redis.Redis.from_url(server.url)
        begun: list[None] = []

        def question(queue: str = "left") -> str:
            begun.append(None)
            with pytest.raises(rts.CommandError) as caught:
                rts.predict_new("any", queue=queue, app=app)
            return str(caught.value)

        with ThreadPoolExecutor(many) as pool:
            server.pause()
            asked = [pool.submit(question) for _ in range(many)]
            try:
                wait_until(lambda: len(begun) == many, message="all ask")
            finally:
                server.resume()
        assert {each.result().partition("queue ")[2] for each in asked} == {
            "left: start one, or name the queue of the task"
        }
        assert client.info("commandstats")["cmdstat_zrevrange"]["calls"] < many / 2
        assert "queue other:" in question("other")
        rts.uninstall(app)
        app.close()
        client.close()


def test_only_the_broker_is_unavailable(rts_redis_url: str, rts_key_prefix: str) -> None:
    with RedisServer() as server:
        port = server.url.rpartition(":")[2].partition("/")[0]
    app = Celery("away", broker=f"redis://:secret@127.0.0.1:{port}/0", set_as_current=False)
    app.conf.update(rts_redis_url=rts_redis_url, rts_key_prefix=rts_key_prefix)
    rts.install(app)
    with pytest.raises(rts.StoreUnavailable, match="the broker redis://") as caught:
        rts.predict("x", app=app)
    assert "secret" not in str(caught.value)
    rts.uninstall(app)
    app.close()

    app = Celery("hides", broker="memory://", set_as_current=False)
    app.conf.update(rts_redis_url=rts_redis_url, rts_key_prefix=rts_key_prefix)
    rts.install(app)
    with pytest.raises(rts.CommandError, match="need Redis as the broker"):
        rts.predict("x", app=app)
    rts.uninstall(app)
    app.close()


def test_the_command_shows_when_a_task_starts_and_finishes(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery]
) -> None:
    stage = make_stage()
    app = apps(stage)
    worker = stage.worker(pool="threads", concurrency=1)
    busy(stage, app, 120, 1)
    waits = [app.send_task(OK, (0,)).id for _ in range(3)][-1]
    shown = stage.celery("rts", "eta", waits)
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[0] for line in shown.stdout.splitlines()] == [
        *("start", "finish", "deadline", "2")
    ]
    assert "2 tasks ahead of it, 1 slot\n" in shown.stdout
    late = app.send_task(OK, (0,), headers={"sla_deadline": time.time() - 60}).id
    assert " s ago, met with a probability of 0%" in stage.celery("rts", "eta", late).stdout
    told = json.loads(stage.celery("rts", "eta", waits, "--json").stdout)
    assert told["task_id"] == waits
    assert (told["ahead"], told["slots"]) == (2, 1)
    assert 0 <= told["on_time"] <= 1
    times = [told[k] for k in ("start_low", "start", "start_high")]
    assert times == sorted(times)
    assert told["finish"].endswith("Z")
    missing = stage.celery("rts", "eta", "nobody")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "task nobody is neither waiting nor running" in missing.stderr
    worker.kill()


def test_tasks_are_routed_to_the_queue_of_least_risk(
    make_stage: Callable[..., Stage],
    apps: Callable[..., Celery],
    redis_client: redis.Redis,
    mongo: Any,
) -> None:
    stage = make_stage()
    name = stage.conf["task_default_queue"]
    flooded, free, deserted = (f"{name}-{kind}" for kind in ("flooded", "free", "deserted"))
    app = apps(
        stage,
        rts_routes={"gpu-inference": [flooded, free, deserted], "cpu-light": [deserted]},
        task_routes=(rts.route,),
    )

    @app.task(name="known", rts={"task_type": "gpu-inference"})
    def known() -> None:
        """Of a type that has routes."""

    gpu = {"headers": {"task_type": "gpu-inference"}}

    def queue_of(**options: Any) -> str:
        return str(app.amqp.router.route(dict(options), OK, (), {})["queue"].name)

    assert queue_of(**gpu) == name  # nobody works anywhere: Celery's own
    first = stage.worker(pool="threads", concurrency=1, queues=[flooded])
    second = stage.worker(pool="threads", concurrency=1, queues=[free])
    beats = f"{stage.prefix}workers"
    wait_until(lambda: redis_client.hlen(beats) == 2, message="both beat")
    for _ in range(40):
        app.send_task(OK, (5,), queue=flooded, **gpu)
    # The state of the queues is cached for a second.
    wait_until(lambda: queue_of(**gpu) == free, message="the flooded queue is avoided")
    chosen = [queue_of(**gpu) for _ in range(10)]
    assert deserted not in chosen
    assert chosen[0] == free
    assert queue_of(headers={"task_type": "cpu-light"}) == name  # no worker takes from it
    assert queue_of(headers={"task_type": "mixed"}) == name  # no routes
    assert queue_of(queue=flooded, **gpu) == flooded  # it says where
    sent = known.apply_async()  # a worker that does not know it reports it as well
    task = wait_until(lambda: mongo.tasks.find_one({"_id": sent.id}), message="it came")
    assert task["queue"] == free
    assert rts.predict_new(OK, **gpu, app=app).ahead < 20
    app.control.purge()
    first.kill()
    second.kill()


def test_held_messages_count_for_a_route_under_any_routing_key(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=100)
    bound = topic_queue(stage)
    name = bound.name
    app = apps(stage, task_queues=[bound])
    worker = stage.worker(pool="threads", concurrency=1, queues=[name])
    served(app, queue=name)
    for _ in range(10):
        app.send_task(OK, (60,), queue=name)
    wait_until(lambda: not waiting(redis_client, name), message="they are taken")
    parts = parts_of(app)
    assert parts is not None
    assert parts.predictor is not None
    assert parts.predictor.pressures.read([name])[name].backlog_s > 0
    worker.kill()


def test_long_tasks_count_for_a_route_though_all_are_due_later(
    make_stage: Callable[..., Stage], apps: Callable[..., Celery], redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_task_types={"short": 1.0, "long": 100.0})
    app = apps(stage)
    queue = app.conf.task_default_queue
    beat = {"seen_at": redis_client.time()[0] + 60, "concurrency": 1, "queues": [queue]}
    redis_client.hset(f"{stage.prefix}workers", "w@h/1", json.dumps(beat))
    served(app)
    for kind in ("short", "long"):
        for _ in range(60):
            app.send_task(OK, (0,), headers={"task_type": kind})
    parts = parts_of(app)
    assert parts is not None
    assert parts.predictor is not None
    found = parts.predictor.pressures.read([queue])[queue]
    # It is 6,060 s by twenty of them, chosen at random.
    assert found.backlog_s > 900


def test_the_ratios_of_the_types_of_the_tasks_there_are_read(
    rts_redis_url: str, rts_key_prefix: str, redis_client: redis.Redis
) -> None:
    types = {f"t{n}": TaskType(f"t{n}", 5.0) for n in range(100)}
    settings = Settings(
        redis_url=rts_redis_url, key_prefix=rts_key_prefix, task_types=types, timeout=5.0
    )
    for n in range(100):
        redis_client.hset(f"{settings.keys.ratio}t{n}", "1", n)
    link = RecordingLink(settings)
    nobody: Any = None
    state = InitialState(nobody, settings, link, nobody, nobody)
    there = Work("t7", 0.0, 1.0, 2.0)
    snapshot = state.with_ratios(
        Snapshot(0.0, 1, waiting=[there, there]), Work("t8", *there[1:])
    )
    counts = {task_type: sketch.count for task_type, sketch in snapshot.ratios.items()}
    assert counts == {"*": 0, "t7": 7, "t8": 8}
    link.asked.clear()
    assert state.with_ratios(snapshot, there) is snapshot
    assert link.asked == []
    link.close()


def test_routing_never_waits_twice_for_an_unavailable_server() -> None:
    with RedisServer() as server:
        url = server.url
    app = Celery("away", broker=url, set_as_current=False)
    app.conf.update(rts_routes={"mixed": ["a", "b"]}, task_routes=(rts.route,))
    rts.install(app)
    for _ in range(50):
        assert app.amqp.router.route({}, "some.task")["queue"].name == "celery"
    parts = parts_of(app)
    assert parts is not None
    assert parts.link.breaker.succeeded(), "it was open"
    rts.uninstall(app)
    app.close()
