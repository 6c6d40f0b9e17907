"""The record of a run, which is written as text, holds what its request holds."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from datetime import datetime, timezone, tzinfo
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from billiard.pool import soft_timeout_sighandler
from celery.canvas import Signature
from celery.exceptions import Reject, Retry
from kombu.transport.native_delayed_delivery import calculate_routing_key

from rts import health
from rts.clock import FleetClock
from rts.fields import MAX_TEXT
from rts.headers import open_task, write_plan
from rts.lifecycle.outcomes import end_state
from rts.lifecycle.runs import (
    SHORT_S,
    Runs,
    new_execution,
    run_of,
    set_run,
    take_aborted,
)
from rts.lifecycle.worker_side import WorkerSide
from rts.load.sample import LoadSample
from rts.notices import DeadlineMissed
from rts.records import Execution, Plan, _decoded
from rts.signals import deadline_missed
from rts.unfinished.notes import NoteBoard
from rts.unfinished.open_task_format import pack_task
from rts.unfinished.shared_memory import SharedMemory
from tests.clock import Clock

PLAN = Plan("mixed", "inferred", 9.1, 2.0, 1764016968.123, 1764016986.323)
REQUEST = {
    "id": "d0f1",
    "task": "proj.add",
    "parent_id": None,
    "root_id": "d0f1",
    "retries": 2,
    "delivery_info": {"routing_key": "work"},
    "args": ["secret"],
}


class Sink:
    """Collects the lines."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def ended(self, execution: Execution) -> None:
        raise AssertionError("a run that ends itself is a line")

    def ended_line(self, line: bytes) -> None:
        self.lines.append(line)


class Load:
    """Returns samples of an age, in seconds, and counts the reads."""

    def __init__(self) -> None:
        self.looks, self.age_s = 0, 0.25

    def read(self, now: float) -> LoadSample:
        self.looks += 1
        return LoadSample.of(0.5, 0.25, sampled_at=now - self.age_s)


@pytest.fixture
def board() -> NoteBoard:
    return SharedMemory(4).notes


class Place:
    """Runs with all their collaborators."""

    def __init__(self, board: NoteBoard, threaded: bool = False) -> None:
        self.board, self.sink, self.load, self.monotonic = board, Sink(), Load(), Clock()
        self.runs = Runs(
            FleetClock(),
            self.load,
            board,
            self.sink,
            worker='w"@h',
            instance="w@h/1-a",
            threaded=threaded,
            monotonic=self.monotonic,
        )

    def run(self, request: dict[str, Any], seconds: float, state: str = "SUCCESS") -> Execution:
        """Run one task; return its record."""
        run = self.runs.start(PLAN, request)
        self.monotonic.at += seconds
        self.runs.finish(run, state)
        line = self.sink.lines.pop()
        assert line.endswith(b"]\n")
        assert line.count(b"\n") == 1
        return Execution.from_json(line)


@pytest.fixture
def place(board: NoteBoard) -> Place:
    return Place(board)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parent_id": 'p"\\', "root_id": "r\n\u2028"},
        {"id": "\ud800", "task": "Größe"},
        {"delivery_info": {"routing_key": None}},
        {"delivery_info": {"routing_key": "0." * 26 + "1.0.work"}},
        # What no message from Celery has:
        {"delivery_info": {}},
        {"delivery_info": {"routing_key": "work", "priority": 9}},
        {"delivery_info": {"routing_key": "work", "priority": "high"}},
        {"delivery_info": {"routing_key": "work", "priority": 9}, "retries": None},
        {"delivery_info": None},
        {"id": 5, "retries": 1},
        {"retries": None},
        {"root_id": ["r"]},
    ],
)
def test_the_record_matches_the_request(place: Place, changes: dict[str, Any]) -> None:
    request = {**REQUEST, **changes}
    got = place.run(request, 1.5)
    expected = new_execution(
        PLAN,
        request,
        worker='w"@h',
        instance="w@h/1-a",
        pid=os.getpid(),
        started_at=got.started_at,
        load_at_start={"load": 0.375, "cpu": 0.5, "memory": 0.25, "age_s": 0.25},
    )
    end = {
        name: getattr(got, name)
        for name in ("completed_at", "runtime_s", "cpu_s", "max_rss_bytes", "state")
    }
    assert got == expected._replace(run_id=got.run_id, **end)
    assert got.run_id.startswith(f"{request['id']}:{request['retries'] or 0}:{os.getpid()}:")
    assert got.runtime_s == pytest.approx(1.5, abs=1e-9)
    assert got.completed_at - got.started_at == pytest.approx(1.5, abs=1e-5)
    assert 0 <= got.cpu_s < 5
    assert got.max_rss_bytes > 1 << 20
    assert got.state == "SUCCESS"


class NoOffset(tzinfo):
    def utcoffset(self, at: datetime | None) -> None: ...

    dst = tzname = utcoffset


@pytest.mark.parametrize("priority", [0, 9])
def test_a_retry_tells_when_the_task_may_run_again(place: Place, priority: int) -> None:
    request = {**REQUEST, "delivery_info": {"routing_key": "work", "priority": priority}}

    def ended(when: object, state: str = "RETRY") -> Execution:
        place.runs.finish(place.runs.start(PLAN, request), state, Retry(when=when))
        return Execution.from_json(place.sink.lines.pop())

    again_at = ended(7.5).again_at
    assert again_at == pytest.approx(time.time() + 7.5, abs=5)
    eta = datetime.fromtimestamp(1_900_000_000, timezone.utc)
    for zone in (timezone.utc, None, NoOffset()):  # Celery takes naive times for UTC, too
        assert ended(eta.replace(tzinfo=zone)).again_at == 1_900_000_000
    for unknown in (ended(None), ended("soon"), ended(1e300), ended(7.5, "SUCCESS")):
        assert unknown.again_at is None
        assert unknown.priority == priority


@pytest.mark.parametrize("priority", [0, 9])
def test_a_run_tells_when_a_message_with_an_eta_was_published(
    place: Place, priority: int
) -> None:
    delivery = {"routing_key": "work", "priority": priority}

    def ended(published: object, state: str, returned: object = None) -> Execution:
        request = {**REQUEST, "delivery_info": delivery, "rts_published": published}
        place.runs.finish(place.runs.start(PLAN, request), state, returned)
        return Execution.from_json(place.sink.lines.pop())

    run = ended(1764016960.5, "SUCCESS")
    assert (run.priority, run.again_at, run.published_at) == (priority, None, 1764016960.5)
    again = ended(1764016960.5, "RETRY", Retry(when=7.5))
    assert again.published_at == 1764016960.5
    assert again.again_at == pytest.approx(time.time() + 7.5, abs=5)
    for strange in (None, "soon", -1.0, 1e300, [1], float("nan")):
        assert ended(strange, "SUCCESS").published_at is None


def test_a_delay_in_the_routing_key_is_not_part_of_the_queue(place: Place) -> None:
    key = calculate_routing_key(2, "work")
    got = place.run({**REQUEST, "delivery_info": {"routing_key": key}}, 0)
    written: dict[str, Any] = {"id": "d0f1", "task": "proj.add"}
    write_plan(written, PLAN)
    assert got.queue == open_task(written, key).queue == "work"
    assert open_task(written, "w" * 60).queue == "w" * 60


def test_what_json_cannot_hold_is_recorded_as_text(place: Place) -> None:
    got = place.run({**REQUEST, "parent_id": b"x", "delivery_info": {"routing_key": 1j}}, 0)
    assert (got.parent_id, got.queue) == ("b'x'", "1j")
    given = uuid4()
    request = {"id": given, "task": "proj.add", "root_id": given}
    assert place.run(request, 0).task_id == str(given)
    never = new_execution(PLAN, request, worker="w@h", instance="w@h/1-a", pid=None)
    assert Execution.from_json(never.to_json()).root_id == str(given)
    place.runs.start(PLAN, request)
    assert place.board.take(given) is not None  # type: ignore[arg-type]  # as Celery passes it


def test_what_is_longer_than_any_name_is_cut_alike_wherever_it_is_kept(place: Place) -> None:
    for given in ("x" * 1_000_000, ["x" * 1_000_000], "x" * (MAX_TEXT + 1), "x" * MAX_TEXT):
        request = dict.fromkeys(("id", "task", "parent_id", "root_id"), given)
        request["delivery_info"] = {"routing_key": given}
        for retries in ([0] * 1_000_000, 0):
            got = place.run({**request, "retries": retries}, 0)
            assert len(got.to_json()) < 7 * MAX_TEXT
        never = new_execution(PLAN, request, worker="w@h", instance="w@h/1-a", pid=None)
        write_plan(request, PLAN)
        wire = pack_task(open_task(request, given), replaces=False)
        assert len(wire) < 6 * MAX_TEXT
        ids = {got.task_id, never.task_id, wire.split("\r\n")[1]}
        assert ids == {got.root_id} == {got.name}
        assert len(got.task_id) == MAX_TEXT
        place.runs.start(PLAN, {**request, "task": "t", "parent_id": None, "root_id": None})
        assert place.board.take(given) is not None  # type: ignore[arg-type]  # a stranger's


def test_missing_fields_are_none(place: Place) -> None:
    got = place.run({"id": "a", "task": "proj.add"}, 0)
    assert (got.queue, got.retries, got.parent_id, got.root_id) == (None, 0, None, None)


@pytest.mark.parametrize(
    ("replaced", "state", "recorded"),
    [
        (True, "IGNORED", "REPLACED"),
        (True, "FAILURE", "FAILURE"),
        (False, "IGNORED", "IGNORED"),
    ],
)
def test_a_task_is_replaced_where_it_is_ignored_for_another(
    place: Place, replaced: bool, state: str, recorded: str
) -> None:
    run = place.runs.start(PLAN, REQUEST)
    if replaced:
        run.replaced = True
    place.runs.finish(run, state)
    assert Execution.from_json(place.sink.lines[0]).state == recorded


def test_a_custom_state_and_a_rejected_task(place: Place) -> None:
    assert place.run(REQUEST, 0, 'MY"STATE').state == 'MY"STATE'
    rejected = place.run(REQUEST, 0, "REJECTED")
    assert (rejected.state, rejected.cause) == ("REJECTED", "rejected")


@pytest.mark.parametrize(
    ("acks_late", "requeue", "recorded"),
    [(True, True, "REQUEUED"), (True, False, "REJECTED"), (False, True, "REJECTED")],
)
def test_a_message_that_was_acknowledged_is_not_queued_again(
    acks_late: bool, requeue: bool, recorded: str
) -> None:
    task = SimpleNamespace(acks_late=acks_late)
    assert end_state(task, "REJECTED", Reject("", requeue=requeue)) == recorded


def test_a_task_has_not_failed_because_other_code_could_not_publish() -> None:
    """Such as a handler of the app's, or a result backend, as the task ends."""
    with pytest.raises(TypeError):  # noqa: PT012  postrun comes while the error is raised
        try:
            Signature({"task": "proj.add"}).apply_async(args=5)
        finally:
            assert end_state(SimpleNamespace(acks_late=False), "SUCCESS", None) == "SUCCESS"


def test_a_run_in_flight_is_noted_with_what_is_known_at_its_start(place: Place) -> None:
    run = place.runs.start(PLAN, REQUEST)
    ((_, note),) = place.board.notes()
    assert (note.task_id, note.state, note.completed_at) == ("d0f1", "STARTED", None)
    assert note.load_at_start == run.load_at_start
    place.runs.finish(run, "SUCCESS")
    assert list(place.board.notes()) == []
    assert json.loads(place.sink.lines[0])[:19] == list(note[:19])


@pytest.mark.parametrize("where", ["request", "line"])
def test_a_run_is_finished_though_a_soft_time_limit_strikes_at_its_end(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    reached: list[str] = []

    def reach(point: str) -> None:
        reached.append(point)
        if point == where and reached.count(where) == 1:
            signal.raise_signal(signal.SIGUSR1)

    class Task:
        app = None

        @property
        def request(self) -> Place:  # any object with an identity
            reach("request")
            return place

    def line(text: bytes) -> None:
        reach("line")
        place.sink.lines.append(text)

    monkeypatch.setattr(place.sink, "ended_line", line)
    parts: Any = SimpleNamespace(worker=SimpleNamespace(runs=place.runs))
    set_run(place, place.runs.start(PLAN, REQUEST))
    before = signal.signal(signal.SIGUSR1, soft_timeout_sighandler)
    try:
        WorkerSide(lambda _: parts).postrun(task=Task(), state="SUCCESS")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [Execution.from_json(text).state for text in place.sink.lines] == ["SUCCESS"]
    assert list(place.board.notes()) == []
    assert health.take_counts() == {}


def test_an_aborted_run_is_taken_once_and_only_for_its_own_task(place: Place) -> None:
    class Request:
        id = "d0f1"

    request = Request()
    run = place.runs.start(PLAN, REQUEST)
    set_run(request, run)
    assert run_of(request) is run
    assert run_of(Request()) is None
    assert take_aborted("d0f1") is None
    run.aborted = True
    assert take_aborted("another") is None
    assert take_aborted("d0f1") is run
    assert take_aborted("d0f1") is None
    run.aborted = True
    del request
    assert take_aborted("d0f1") is None


def test_only_a_run_that_may_be_a_miss_is_read_again_for_receivers(place: Place) -> None:
    """Decoding its record takes as long as all else that is done for a run."""
    told: list[str] = []

    def tell(sender: str, notice: DeadlineMissed, **_: Any) -> None:
        told.append(notice.cause)

    deadline_missed.connect(tell)
    decoded = _decoded.cache_info().misses
    for deadline in (time.time() + 60, time.time() - 60):
        run = place.runs.start(PLAN._replace(deadline=deadline), REQUEST)
        place.runs.finish(run, "FAILURE")
    assert told == ["late"]
    assert _decoded.cache_info().misses - decoded <= 1
    place.runs.finish(
        place.runs.start(PLAN._replace(deadline=time.time() + 60), REQUEST), "REJECTED"
    )
    assert told == ["late", "rejected"]
    run = place.runs.start(PLAN._replace(deadline=time.time() + 60), REQUEST)
    run.aborted = True
    place.runs.finish(run, "FAILURE")
    assert told == ["late", "rejected", "killed"]


def test_arguments_are_in_no_record(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.runs, "_slow_note", None)  # a usual request does without it
    place.runs.finish(place.runs.start(PLAN, REQUEST), "SUCCESS")
    assert b"secret" not in place.sink.lines[0]


def test_short_runs_share_a_reading_and_longer_ones_get_their_own(place: Place) -> None:
    for _ in range(10):
        assert place.run(REQUEST, SHORT_S / 2).max_rss_bytes
    assert place.load.looks == 1
    for _ in range(3):
        place.run(REQUEST, 2 * SHORT_S)
    assert place.load.looks == 3
    place.monotonic.at += 1.0
    place.runs._cpu_time = lambda: 7.0
    assert place.run(REQUEST, 0).cpu_s == 0.0
    assert place.load.looks == 4


def test_a_run_in_a_thread_is_charged_for_that_thread_alone(board: NoteBoard) -> None:
    def burn() -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    cpu_s = {}
    for threaded in (True, False):
        place = Place(board, threaded)
        run = place.runs.start(PLAN, REQUEST)
        other = threading.Thread(target=burn)
        other.start()
        other.join()
        place.monotonic.at += 1.0
        place.runs.finish(run, "SUCCESS")
        cpu_s[threaded] = Execution.from_json(place.sink.lines.pop()).cpu_s or 0.0
    assert cpu_s[True] < 0.04 < cpu_s[False]


def test_a_reading_is_not_shared_beyond_the_maximum_age_of_a_sample(place: Place) -> None:
    place.load.age_s = 0.48
    for looks in (1, 2):
        load = place.run(REQUEST, 0).load_at_start
        assert (load["age_s"], place.load.looks) == (0.48, looks)
        place.monotonic.at += 0.03
