"""Predictions on a real broker, with real workers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Exchange, Queue, binding

import rts
from rts.fields import MAX_TEXT
from rts.installation import parts_of
from rts.predictions import forecast, taken_tasks
from rts.predictions.initial_state import InitialState
from rts.predictions.queue_reader import HELD
from rts.predictions.snapshot import Snapshot
from rts.predictions.work import Work
from rts.settings import Settings
from rts.tasktypes import TaskType
from rts.testing import WorkerProcess, wait_until
from rts.unfinished.received import decode_marks
from tests.conftest import MakeApp, MakeStage, Stage
from tests.predictions import (
    OK,
    PATIENCE_S,
    SLOW,
    backlog_s,
    busy,
    served,
    topic_queue,
    waiting,
)
from tests.recording_link import RecordingLink
from tests.records import run


@pytest.fixture
def apps(apps: MakeApp) -> MakeApp:
    """Make apps that publish to a stage's workers, and are patient on a busy machine."""
    return lambda stage, **conf: apps(stage, **{"rts_timeout": PATIENCE_S, **conf})


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


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_running_waiting_and_ended_tasks(
    make_stage: MakeStage, apps: MakeApp, scheduler: str | None, redis_client: redis.Redis
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
    stage.worker(pool="threads", concurrency=1)
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


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_etas_other_queues_and_priorities(
    make_stage: MakeStage, apps: MakeApp, scheduler: str | None, redis_client: redis.Redis
) -> None:
    stage = make_stage(
        rts_scheduler=scheduler, rts_late_share=0.0, worker_prefetch_multiplier=1
    )
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    stage.worker(pool="threads", concurrency=2, queues=[default, other])
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


def test_just_started_tasks_and_held_ones_of_another_queue(
    make_stage: MakeStage,
    apps: MakeApp,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = make_stage(worker_prefetch_multiplier=4)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    stage.worker(pool="threads", concurrency=1, queues=[default, other])
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    of_new = forecast.of_new

    def slowly(*given: Any) -> rts.Prediction:
        time.sleep(0.5)
        return of_new(*given)

    monkeypatch.setattr(forecast, "of_new", slowly)
    asked_at = time.time()
    first, again = (rts.predict_new(OK, app=app) for _ in range(2))
    assert first.start > asked_at + 0.4  # a short task would be over before it is told
    assert again.start > first.start  # from one reading, but not before it is asked
    # Their deadlines would count from a publish after the answer, but for those of a call.
    assert first.deadline - first.start == pytest.approx(again.deadline - again.start)
    own = {"sla_deadline": asked_at + 100}
    assert rts.predict_new(OK, headers=own, app=app).deadline == asked_at + 100
    monkeypatch.undo()

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
    assert found.ahead == 2


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_queues_of_one_worker_are_served_round_robin(
    make_stage: MakeStage, apps: MakeApp, scheduler: str | None, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_scheduler=scheduler, worker_prefetch_multiplier=1)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"
    stage.worker(pool="threads", concurrency=1, queues=[default, other])
    wait_until(lambda: redis_client.hlen(f"{stage.prefix}workers"), message="it beats")
    busy(stage, app, 60, 1)
    for _ in range(20):
        app.send_task(OK, (0,))
    last = [app.send_task(OK, (0,), queue=other).id for _ in range(5)][-1]
    found = rts.predict(last, app=app)
    # One of the other queue goes before each of the five; one may be held already.
    assert 4 + 4 <= found.ahead <= 4 + 6
    alone = rts.predict_new(OK, queue=other, app=app)
    for _ in range(30):
        app.send_task(OK, (0,))
    beside = rts.predict_new(OK, queue=other, app=app)
    assert alone.ahead <= beside.ahead <= alone.ahead + 1  # more in the other changes nothing


def test_a_held_task_waits_only_for_its_own_worker(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_task_types={"slow": 20.0}, worker_prefetch_multiplier=4)
    app = apps(stage)
    _, runs, held = with_a_line(stage, app, redis_client)
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


def test_tasks_of_a_killed_worker_wait_for_their_redelivery(
    make_stage: MakeStage,
    apps: MakeApp,
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
    monkeypatch.setattr(taken_tasks, "REPORTED_S", 1.0)
    # Which the other one's next heartbeat tells, at the latest.
    wait_until(lambda: served(app, **SLOW).start < time.time() + 5, message="none is ahead")
    later = rts.predict(held[0], app=app)
    assert later.start == pytest.approx(begun + 600.0, abs=30.0)


def test_each_worker_limits_demoted_tasks_on_its_own(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_late_share=0.0, rts_task_types={"slow": 2.0})
    app = apps(stage)
    for _ in range(3):
        stage.worker(pool="threads", concurrency=1)
    late = {"headers": {"task_type": "slow", "sla_deadline": time.time() - 100}}
    busy(stage, app, 60, 3, **late)
    last = [app.send_task(OK, (0,), **late).id for _ in range(15)][-1]
    found = rts.predict(last, app=app)
    assert (found.ahead, found.slots) == (14, 3)
    # By threes: a share of all slots, 0.75, would be two of the three.
    assert found.start - time.time() < 5 * 2.0 + 3


def test_a_task_without_a_deadline_is_ordered_by_its_horizon(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    name = "with-horizon"
    stage = make_stage(
        rts_scheduler="edf", rts_queue_horizons={"*": 5.0, name: 1000.0}, rts_late_share=0.0
    )
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1, queues=[name])
    busy(stage, app, 60, 1, queue=name)
    stranger = Celery("stranger", broker=stage.broker, set_as_current=False)
    before = time.time()
    alien = stranger.send_task(OK, (0,), queue=name).id
    app.send_task(OK, (0,), queue=name, headers={"sla_deadline": before + 500})
    found = wait_until(lambda: rts.predict(alien, app=app))
    assert found.deadline == pytest.approx(before + 1000, abs=10)
    assert found.ahead == 1
    stranger.close()


def test_more_tasks_are_held_for_an_eta_than_are_read(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1)
    eta = datetime.now(timezone.utc) + timedelta(seconds=3600)
    with app.producer_pool.acquire() as one:
        ids = [app.send_task(OK, (0,), eta=eta, producer=one).id for _ in range(HELD + 98)]
        for _ in range(2):  # an app may publish an id again
            app.send_task(OK, (0,), eta=eta, producer=one, task_id="again")
    wait_until(lambda: redis_client.hlen("unacked") >= HELD + 100, message="all are held")
    for task_id in (ids[0], ids[50], ids[-1], "again"):
        found = rts.predict(task_id, app=app)
        assert found.start >= eta.timestamp() - 1


def test_a_task_published_and_started_within_a_second_has_started(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
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
    assert found.start < now + 60  # it does not wait for the long one


def test_an_overdue_task_that_has_just_started_is_not_over(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1)
    app.send_task(OK, (4,))
    overdue = app.send_task(OK, (60,), headers={"sla_deadline": time.time() + 1}).id

    def held() -> bool:
        return overdue in "".join(redis_client.hvals("unacked"))

    wait_until(held, message="the worker has taken it")
    wait_until(lambda: redis_client.zscore(f"{stage.prefix}overdue", overdue))
    wait_until(lambda: not held(), message="it starts")
    found = rts.predict(overdue, app=app)
    assert found.finish > time.time() + 1
    # One that no worker there is has received may be lost.
    lost = app.send_task(OK, headers={"sla_deadline": time.time()}, queue="nobody's").id
    redis_client.delete("nobody's")
    wait_until(lambda: redis_client.zscore(f"{stage.prefix}overdue", lost))
    assert rts.predict(lost, queue="nobody's", app=app) is None


def test_a_task_of_this_process_that_started_at_once(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    bound = topic_queue(stage)
    name = bound.name
    app = apps(stage, task_queues=[bound])
    stage.worker(pool="threads", concurrency=1, queues=[name])
    # The routing key is not the queue's name; from here on publishes are recorded.
    served(app, queue=name)
    runs = app.send_task(OK, (60,), queue=name).id
    wait_until(lambda: not waiting(redis_client, name), message="it is taken")
    found = rts.predict(runs, app=app)
    assert (found.ahead, found.slots) == (0, 1)


def test_a_task_that_started_at_once_before_this_process_asked_for_the_first_time(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage()
    stage.worker(pool="threads", concurrency=1)
    served(apps(stage))
    app = apps(stage)
    runs = app.send_task(OK, (60,)).id
    wait_until(lambda: not waiting(redis_client, app.conf.task_default_queue), message="taken")
    assert rts.predict(runs, app=app) is not None


def test_a_held_task_came_by_the_key_of_a_binding_or_by_a_topic(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(worker_prefetch_multiplier=8)
    name = f"{stage.conf['task_default_queue']}-bound"
    first, second = (Exchange(f"{name}-{number}") for number in (1, 2))
    bound = Queue(name, [binding(first, routing_key="one"), binding(second, routing_key="two")])
    topic = Queue(f"{name}-topic", Exchange(f"{name}-x", type="topic"), routing_key="orders.#")
    app = apps(stage, task_queues=[bound, topic])
    with app.connection() as connection:
        bound(connection.default_channel).declare()
    stage.worker(pool="threads", concurrency=1, queues=[name, topic.name])
    served(app, queue=name)
    busy(stage, app, 60, 1, exchange=second.name, routing_key="two")
    held = app.send_task(OK, (0,), exchange=first.name, routing_key="one").id
    other = app.send_task(OK, (0,), queue=topic.name, routing_key="orders.new").id
    for queue in (name, topic.name):
        wait_until(lambda q=queue: not waiting(redis_client, q), message="it is taken")
    found = rts.predict(held, app=app)
    assert found.slots == 1
    with pytest.raises(rts.CommandError, match=r"has its routing key, orders\.new"):
        rts.predict(other, app=app)
    assert rts.predict(held, queue=topic.name, app=app) is None


def test_a_new_task_uses_its_own_routing_options(make_stage: MakeStage, apps: MakeApp) -> None:
    stage = make_stage(worker_prefetch_multiplier=1)
    app = apps(stage)
    default = app.conf.task_default_queue
    other = f"{default}-other"

    @app.task(name="elsewhere", queue=other, priority=9)
    def elsewhere() -> None:
        """Of a queue of its own."""

    stage.worker(pool="threads", concurrency=1, queues=[default])
    stage.worker(pool="threads", concurrency=2, queues=[other])
    busy(stage, app, 60, 2, queue=other)
    for _ in range(6):  # more than the worker fetches ahead
        app.send_task(OK, (0,), queue=other, priority=6)
    found = rts.predict_new(elsewhere)
    assert (found.slots, found.ahead) == (2, 6)


def test_publishing_a_task_for_later_does_not_rule_out_earlier_arrivals(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    stage = make_stage(rts_scheduler="edf")
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1)
    served(app)
    predictor = parts_of(app).predictor

    def counted() -> list[float]:
        """Publish a task with a countdown; return when the cached reading saw it."""
        rts.predict_new(OK, app=app)
        app.send_task(OK, (0,), countdown=3600)
        readings = predictor._new_tasks._readings.values()
        return [reading.published_at for reading in readings if reading.published]

    (published_at,) = wait_until(counted)
    assert published_at < time.time() + 60


def test_tasks_behind_one_that_will_be_hopeless_overtake_it(
    make_stage: MakeStage, apps: MakeApp
) -> None:
    stage = make_stage(rts_scheduler="edf", rts_late_share=0.0)
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1)
    busy(stage, app, 60, 1)
    now = time.time()
    # Its tau is 10 s: it turns hopeless within 1 s, and all the others overtake it.
    soon = app.send_task(OK, (0,), headers={"sla_deadline": now + 10}).id
    for _ in range(10):
        app.send_task(OK, (0,), headers={"sla_deadline": now + 1000})
    found = rts.predict(soon, app=app)
    assert found.start > now + 50


@pytest.mark.parametrize("prefix", ["", "x" * 2 * MAX_TEXT], ids=["usual", "long"])
def test_a_task_with_late_acknowledgement_runs_or_waits(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis, prefix: str
) -> None:
    stage = make_stage(task_acks_late=True, worker_prefetch_multiplier=4)
    app = apps(stage)
    stage.worker(pool="threads", concurrency=1)
    app.send_task(OK, (0,), countdown=600)
    wait_until(lambda: redis_client.hlen("unacked"), message="it is held")
    # It is unacknowledged, too, but holds no slot.
    wait_until(lambda: served(app).start < time.time() + 2)
    (runs,) = busy(stage, app, 60, 1, task_id=f"{prefix}runs")
    next_ = app.send_task(OK, (0,), task_id=f"{prefix}next").id
    # For a moment it is neither in the queue nor with the worker.
    wait_until(lambda: redis_client.hlen("unacked") == 3, message="it is held, too")
    running, waits = rts.predict(runs, app=app), rts.predict(next_, app=app)
    assert running.start < time.time()
    assert waits.start_high > time.time()
    assert waits.ahead == 0


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
@pytest.mark.parametrize("task_id", ["größe", '"the" \\\\one'])
def test_a_waiting_task_is_found_by_an_id_that_json_escapes(
    make_stage: MakeStage, apps: MakeApp, scheduler: str | None, task_id: str
) -> None:
    app = apps(make_stage(rts_scheduler=scheduler))
    app.send_task(OK, (0,), task_id=task_id)
    # It waits, rather than that it has just started.
    with pytest.raises(rts.CommandError, match="no worker with rts takes tasks from the queue"):
        rts.predict(task_id, app=app)


def test_among_a_hundred_thousand_messages(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
) -> None:
    stage = make_stage(rts_task_types={"slow": 2.0}, worker_prefetch_multiplier=1)
    app = apps(stage)
    queue = app.conf.task_default_queue
    slow = {"headers": {"task_type": "slow"}}
    stage.worker(pool="threads", concurrency=4)
    busy(stage, app, 600, 4, **slow)
    for _ in range(9):  # more than the worker fetches ahead
        app.send_task(OK, (0,), **slow)
    text = str(wait_until(lambda: redis_client.lindex(queue, 0)))
    template_id = json.loads(text)["headers"]["id"]
    for start in range(0, 100_000, 5000):
        ids = [f"{number:036d}" for number in range(start, start + 5000)]
        redis_client.lpush(queue, *(text.replace(template_id, id_) for id_ in ids))
    for number in (100, 50_000, 99_999):
        answer = rts.predict(f"{number:036d}", app=app)
        assert answer.ahead == pytest.approx(number, abs=10)
        assert answer.start - time.time() == pytest.approx(2 * number / 4, rel=0.25)
    assert rts.predict("not-there", app=app) is None
    new = rts.predict_new(OK, headers={"task_type": "slow"}, app=app)
    assert new.ahead == pytest.approx(100_000, abs=10)


@pytest.mark.parametrize("scheduler", [None, "edf"], ids=["fifo", "edf"])
def test_large_messages_are_not_read_as_a_whole(
    make_stage: MakeStage, apps: MakeApp, scheduler: str | None, redis_client: redis.Redis
) -> None:
    stage = make_stage(
        rts_scheduler=scheduler, rts_task_types={"slow": 2.0}, worker_prefetch_multiplier=1
    )
    app = apps(stage)
    queue = app.conf.task_default_queue
    slow: dict[str, Any] = {"headers": {"task_type": "slow", "sla_deadline": time.time() + 600}}
    stage.worker(pool="threads", concurrency=1)
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
    backlog, sent = sent_of(partial(backlog_s, app, queue))
    assert backlog == pytest.approx(122, abs=5)
    assert sent < 1 << 20


def test_an_overdue_task_is_found_in_a_queue_that_nobody_knows(
    make_stage: MakeStage, apps: MakeApp, redis_client: redis.Redis
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
