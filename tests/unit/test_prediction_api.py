"""What is built for the first prediction or route."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery.result import AsyncResult

import rts
from rts.errors import StoreUnavailable
from rts.installation import parts_of
from rts.predictions import routing
from rts.predictions.predictor import _not_before
from rts.predictions.pressures import Pressure
from rts.records import OpenTask, Plan
from tests.conftest import MakeApp
from tests.forked import forks_beside_threads, holds_in_child

NOBODY = "redis://127.0.0.1:1"


class Queues(str, Enum):
    HIGH = "high"


def test_two_threads_that_route_first_share_their_state(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, made = threading.Barrier(2), []

    class Slow(routing.Risks):
        """Waits for a second one to be made."""

        def __init__(self, *given: Any) -> None:
            made.append(self)
            try:
                meeting.wait(0.5)
            except threading.BrokenBarrierError:
                pass  # there is no second one
            super().__init__(*given)

    monkeypatch.setattr("rts.predictions.predictor.Risks", Slow)
    make_app(NOBODY, rts_redis_url=NOBODY, rts_routes={"mixed": ["a", "b"]})
    threads = [threading.Thread(target=rts.route, args=("some.task",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_is_no_id_of_a_task_is_refused_with_a_hint(make_app: MakeApp) -> None:
    app = make_app(NOBODY, rts_redis_url=NOBODY)
    for wrong in (None, AsyncResult("x", app=app)):
        with pytest.raises(rts.CommandError, match=r"is no id of a task; pass result\.id"):
            rts.predict(cast(Any, wrong), app=app)


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        (None, ("celery", 0)),
        ({"priority": 3}, ("celery", 3)),
        ({"queue": "videos"}, ("videos", 0)),
        ({"routing_key": "k"}, ("celery", 0)),
        ({"exchange": "media", "routing_key": "k"}, "the exchange media: name its queue"),
    ],
)
def test_where_a_new_task_would_go(make_app: MakeApp, route: Any, expected: Any) -> None:
    routes = {} if route is None else {"work": route}
    app = make_app(NOBODY, rts_redis_url=NOBODY, task_routes=routes)
    parts = parts_of(app)
    asked: list[Any] = []
    parts.predictor = cast(
        Any,
        SimpleNamespace(of_new=lambda *given: asked.append(given[2:4]), close=lambda: None),
    )
    if isinstance(expected, str):
        with pytest.raises(rts.CommandError, match=expected):
            rts.predict_new("work", app=app)
    else:
        rts.predict_new("work", app=app)
        rts.predict_new("work", priority=5, app=app)
        rts.predict_new("work", Queues.HIGH, priority=0, app=app)
        assert asked == [expected, (expected[0], 5), ("high", 0)]


def test_an_answer_that_is_older_than_the_question_keeps_its_order() -> None:
    def made(start_low: float, start_high: float, finish: float) -> rts.Prediction:
        starts = (100.0, start_low, start_high)
        return rts.Prediction(*starts, finish, 100.6, 115.5, 130.0, 1.0, ahead=0, slots=2)

    for found in (made(100.0, 100.5, 115.4), made(99.5, 100.5, 100.7)):
        later = _not_before(100.6, found)
        assert (later.start, later.start_low, later.start_high) == (100.6, 100.6, 100.6)
        assert later.finish == pytest.approx(found.finish + 0.6)
        assert later.finish_low <= later.finish <= later.finish_high


def test_predictions_know_what_was_published_where_no_tasks_are_tracked(
    make_app: MakeApp,
) -> None:
    app = make_app(rts_redis_url=NOBODY, rts_open_max=0)
    parts = parts_of(app)
    told: list[OpenTask] = []
    parts.predictor = cast(Any, SimpleNamespace(published=told.append, close=lambda: None))
    sent = app.send_task("work")
    assert [task.task_id for task in told] == [sent.id]


@pytest.mark.parametrize(
    ("load", "sent_s", "expected"),
    [
        # It ends in (10 / 2 + 4) s and is due in 19 s.
        (0.5, 0.0, 0.5),
        (0.5, 22.0, 10 * 1 + 0.5),
        (2.0, 0.0, 2.0),
        (3.0, 0.0, 10 * (3 * 9 - 19) + 3.0),
    ],
)
def test_the_risk_follows_its_formula(load: float, sent_s: float, expected: float) -> None:
    plan = Plan("mixed", "inferred", 4.0, 2.0, 100.0, 119.0)
    assert routing.risk(Pressure(10.0, 2, load), plan, 100.0, sent_s) == expected


class Readings:
    """Queues of one slot and a load each, read by a clock that stands still."""

    def __init__(self, **loads: float) -> None:
        self.now, self.loads, self.away = 0.0, loads, False
        self.asked: list[tuple[str, ...]] = []
        pressures: Any = self
        self.risks = routing.Risks(pressures, 5.0)

    def read(self, queues: Sequence[str]) -> dict[str, Pressure]:
        self.asked.append(tuple(queues))
        if self.away:
            raise StoreUnavailable("away")
        return {q: Pressure(0.0, int(q in self.loads), self.loads.get(q, 0.0)) for q in queues}

    def choose(self, *queues: str, at: float, deadline: float = 1e9) -> str | None:
        """Choose one for a task with a tau of 1 s."""
        self.now = at
        plan = Plan("mixed", "inferred", 1.0, 2.0, 100.0, deadline)
        return self.risks.choose(plan, queues, 100.0)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    made = Readings(a=0.1, b=0.9)
    monkeypatch.setattr(routing, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_queues_are_read_again_when_it_is_time(readings: Readings) -> None:
    choose, asked = readings.choose, readings.asked
    assert choose("a", "b", at=0.0) == choose("b", "a", at=0.9) == "a"
    assert len(asked) == 1
    assert choose("nobody's", at=0.9) is None
    assert choose("a", "nobody's", at=0.9) == "a"
    assert len(asked) == 2
    assert asked[-1] == ("nobody's",), "the others were fresh"
    readings.away = True
    assert choose("a", "b", at=1.9) == "a", "it was so a moment ago"
    assert choose("a", "b", at=3.0) is None
    assert len(asked) == 3, "nobody asks again within the period"
    readings.away = False
    assert choose("a", "b", at=7.1) == "a"


def test_a_route_reads_its_own_candidates_and_those_once_a_second(readings: Readings) -> None:
    pairs = [(f"a{n}", f"other{n}") for n in range(100)]
    readings.loads = {queue: len(queue) / 10 for pair in pairs for queue in pair}
    for _ in range(3):
        for pair in pairs:
            assert readings.choose(*pair, at=0.0) in pair
        assert readings.asked == pairs
    readings.choose(*pairs[7], at=routing.FRESH_S)
    assert readings.asked == [*pairs, pairs[7]]


def test_a_tie_is_left_to_celery_and_what_was_sent_counts_until_the_next_look(
    readings: Readings,
) -> None:
    readings.loads = {"a": 0.5, "b": 0.5}
    # Due in twice its tau: of three in one queue, the last one is late.
    assert readings.choose("a", "b", at=0.0, deadline=102.0) is None
    readings.loads["b"] = 0.6
    for look in (1.0, 2.0):
        at = look * routing.FRESH_S
        chosen = [readings.choose("a", "b", at=at, deadline=102.0) for _ in range(5)]
        assert chosen == [*"aabba"]


@forks_beside_threads
def test_a_child_asks_though_a_thread_of_its_parent_held_the_locks(make_app: MakeApp) -> None:
    app = make_app(NOBODY, rts_redis_url=NOBODY, rts_routes={"mixed": ["a", "b"]})
    assert rts.route("some.task") is None
    parts = parts_of(app)
    predictor = parts.predictor

    def it_asks() -> bool:
        with pytest.raises(StoreUnavailable):
            rts.predict_new("some.task", app=app)
        assert rts.route("some.task") is None
        made = parts.predictor
        return made is not None and made.risks._lock.acquire(blocking=False)

    asked = holds_in_child(
        it_asks,
        *(parts.predicting, predictor.risks._lock, predictor._new_tasks._lock),
        predictor._broker._shared._lock,
    )
    assert asked


def test_threads_that_wait_for_the_one_that_reads_share_its_failure(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would wait for the server's timeout, one after the other."""
    many, asked, looked = 8, [], threading.Semaphore(0)
    app = make_app(NOBODY, rts_redis_url=NOBODY)
    with pytest.raises(StoreUnavailable):
        rts.predict_new("work", app=app)
    parts = parts_of(app)
    predictor: Any = parts.predictor
    new_tasks = predictor._new_tasks
    cached = new_tasks._cached

    def looks(*where: Any) -> Any:
        looked.release()
        return cached(*where)

    def fails(*where: Any) -> Any:
        asked.append(where)
        for _ in range(many + 1):  # the one that reads looks twice
            assert looked.acquire(timeout=30)
        raise StoreUnavailable("away")

    monkeypatch.setattr(new_tasks, "_cached", looks)
    monkeypatch.setattr(new_tasks, "_read", fails)

    def ask() -> None:
        with pytest.raises(StoreUnavailable):
            rts.predict_new("work", app=app)

    with ThreadPoolExecutor(many) as pool:
        for each in [pool.submit(ask) for _ in range(many)]:
            each.result()
    assert len(asked) == 1
