"""The boundary to the host app: whatever fails inside, no exception escapes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery, signals
from celery.app.task import Context
from celery.exceptions import Reject
from celery.signals import Signal

from rts import health
from rts.lifecycle import receivers
from rts.lifecycle.ends import Ends
from rts.lifecycle.planning import Planner
from rts.lifecycle.runs import set_run
from rts.records import Execution, new_execution
from rts.settings import Settings
from rts.unfinished.shared_memory import SharedMemory
from tests.planning import NOW, StoppedClock, Taus


class Broken(Exception):
    """Something that should never happen."""


def broken(*_: object) -> Any:
    raise Broken


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """Disconnect the receivers of other tests' apps before, and those of this one after."""
    receivers.disconnect()
    yield
    receivers.disconnect()


APP = Celery("receivers", set_as_current=False)


class Sender:
    """Stands for a task and for a consumer."""

    app = APP
    name = "proj.add"
    request = SimpleNamespace(id="other")


SENDER = Sender()
HOOKS: list[tuple[Signal, dict[str, Any]]] = [
    (signals.before_task_publish, {"sender": "proj.add", "headers": {"id": "1"}}),
    (
        signals.after_task_publish,
        {"sender": "proj.add", "headers": {"id": "1", "rts_deadline": 1}},
    ),
    (signals.task_received, {"sender": SENDER}),
    (signals.task_prerun, {"sender": SENDER, "task": SENDER}),
    (signals.task_postrun, {"sender": SENDER, "task": None, "state": "SUCCESS"}),
    (signals.task_failure, {"sender": SENDER, "task_id": "1"}),
    (signals.task_revoked, {"sender": SENDER}),
    (signals.task_unknown, {"sender": SENDER}),
    (signals.task_rejected, {"sender": SENDER}),
    (signals.worker_shutdown, {"sender": SENDER}),
]


@pytest.mark.parametrize(("signal", "arguments"), HOOKS, ids=[s.name for s, _ in HOOKS])
def test_a_hook_that_fails_is_counted_and_logged_once(
    signal: Signal, arguments: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    receivers.connect(broken, broken)
    for _ in range(3):
        answers = signal.send(**arguments)
        assert [answer for _, answer in answers if isinstance(answer, Exception)] == []
    assert health.take_counts() == {"hook_errors": 3}
    ours = [record for record in caplog.records if record.name == "rts"]
    assert len(ours) == 1, "and Celery itself logs no traceback of it"
    assert "report it" in ours[0].getMessage()


def test_a_message_of_the_old_protocol_is_sent_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    receivers.connect(broken, lambda _: SimpleNamespace())
    sent: dict[str, Any] = {"rts_deadline": 1.0}  # as a retry passes it on
    headers = dict(sent)
    signals.before_task_publish.send(sender="proj.add", headers=headers, properties={})
    signals.after_task_publish.send(sender="proj.add", headers=headers, routing_key="q")
    assert headers == sent
    assert health.take_counts() == {"unsupported_protocol": 1}
    assert "task_protocol" in caplog.text


def test_celerys_own_tasks_are_ignored() -> None:
    receivers.connect(broken, broken)
    signals.before_task_publish.send(sender="celery.backend_cleanup", headers={"id": "1"})
    assert health.take_counts() == {}
    receivers.disconnect()
    parts: Any = SimpleNamespace(worker=SimpleNamespace())
    receivers.connect(lambda _: parts, broken)
    cleanup = APP.tasks["celery.backend_cleanup"]  # beat's expires
    signals.task_revoked.send(sender=cleanup, request=Context(), expired=True)
    headers = {"id": "1", "task": cleanup.name}
    message = SimpleNamespace(headers=headers, properties={}, delivery_info={})
    signals.task_rejected.send(sender=SENDER, message=message)
    assert health.take_counts() == {}


@pytest.mark.parametrize("headers", [None, [], {"id": "1"}, {"task": "proj.add"}])
def test_a_message_that_is_no_task_is_ignored(headers: Any) -> None:
    parts: Any = SimpleNamespace(worker=SimpleNamespace())
    receivers.connect(lambda _: parts, broken)
    message = SimpleNamespace(headers=headers, delivery_info={})
    signals.task_rejected.send(sender=SENDER, message=message)
    assert health.take_counts() == {}


def ends_into(ended: list[Execution], settings: Settings) -> Ends:
    """Return what reports the ends of runs, into a list."""
    clock, memory = StoppedClock(), SharedMemory(1)
    return Ends(
        Planner(settings, Taus(), clock, lambda name: None),
        clock,
        memory,
        cast(Any, SimpleNamespace(ended=ended.append)),
        worker="w@h",
        instance="w@h/1-a",
    )


def test_a_message_that_celery_cannot_make_a_task_of_has_the_k_of_its_priority() -> None:
    ended: list[Execution] = []
    ends = ends_into(ended, Settings(priority_multipliers={9: 1.5}))
    parts: Any = SimpleNamespace(worker=SimpleNamespace(ends=ends))
    receivers.connect(lambda _: parts, broken)
    message = SimpleNamespace(
        headers={"id": "1", "task": "no.such.task", "properties": "a stranger's"},
        properties={"priority": 9},
        delivery_info={"routing_key": "work"},
    )
    signals.task_unknown.send(sender=SENDER, message=message)
    assert [(end.k, end.queue) for end in ended] == [(1.5, "work")]
    assert health.take_counts() == {}


def test_a_run_that_was_killed_ends_once_after_as_long_as_it_ran() -> None:
    ended: list[Execution] = []
    ends = ends_into(ended, Settings())
    message = {"id": "a", "task": "proj.add", "retries": 0}
    plan = ends.planner.plan("proj.add", {}, None)
    # The last one started before the clock was set back.
    for started_at in (NOW - 5, NOW + 1):
        run = new_execution(plan, message, worker="w", instance="i", started_at=started_at)
        assert ends.memory.notes.put(run.to_json().encode()) is not None
        for _ in range(2):  # as Celery may tell of it
            ends.aborted("a", "killed")
    assert [(end.state, end.cause, end.runtime_s) for end in ended] == [
        ("FAILURE", "killed", 5.0),
        ("FAILURE", "killed", 0.0),
    ]
    ends.memory.acknowledged.put(message)
    for _ in range(2):
        ends.cancelled("a")
        ends.aborted("a", "killed")
    (never_began,) = ended[2:]
    assert (never_began.state, never_began.cause) == ("LOST", "killed")
    assert never_began.runtime_s is None


def test_a_rejected_task_is_not_told_as_killed_too() -> None:
    """Celery's main process calls it failed, as one whose process was killed."""
    ended: list[Execution] = []
    ends = ends_into(ended, Settings())
    parts: Any = SimpleNamespace(worker=SimpleNamespace(ends=ends, threaded=False))
    receivers.connect(lambda _: parts, broken)
    ends.memory.acknowledged.put({"id": "a", "task": "proj.add", "retries": 0})
    for exception, told in ((Reject("no"), 0), (WorkerLostError("signal 9"), 1)):
        signals.task_failure.send(sender=SENDER, task_id="a", exception=exception)
        assert len(ended) == told
    assert health.take_counts() == {}


def test_only_a_retry_outside_of_its_run_tells_of_a_cancelled_one() -> None:
    ended: list[Execution] = []
    ends = ends_into(ended, Settings())
    parts: Any = SimpleNamespace(worker=SimpleNamespace(ends=ends, threaded=True))
    receivers.connect(lambda _: parts, broken)
    plan = ends.planner.plan("proj.add", {}, None)
    message = {"id": "other", "task": "proj.add"}
    run = new_execution(plan, message, worker="w", instance="i", started_at=NOW)
    ends.memory.notes.put(run.to_json().encode())
    request = Context(message)
    for of, told in ((request, []), (Context(), ["LOST"])):
        set_run(of, cast(Any, SimpleNamespace()))
        signals.task_retry.send(sender=SENDER, request=request)
        assert [end.state for end in ended] == told
    assert health.take_counts() == {}


def test_a_time_limit_that_strikes_after_the_task_is_celerys_to_handle() -> None:
    """In gevent it may, while the message is being acknowledged."""

    class Struck(BaseException):
        pass

    class Request:
        id, task = "a", SimpleNamespace(Strategy="celery.worker.strategy:default")

        def on_success(self, result: Any, **_: Any) -> None:
            raise Struck

        def on_timeout(self, soft: bool, timeout: float) -> str:
            return "acknowledged"

    request, ended = Request(), list[Execution]()
    ends_into(ended, Settings()).track_exit(request)
    succeed, time_out = request.on_success, request.on_timeout
    with pytest.raises(Struck):
        succeed((0, None, 0.1))
    assert time_out(False, 1.0) == "acknowledged"
    assert not vars(request)
    assert not ended


def test_connecting_again_adds_nothing_and_disconnecting_leaves_nothing() -> None:
    before = [len(signal.receivers or ()) for signal, _ in HOOKS]
    receivers.connect(broken, broken)
    receivers.connect(broken, broken)
    assert [len(signal.receivers or ()) for signal, _ in HOOKS] == [n + 1 for n in before]
    receivers.disconnect()
    assert [len(signal.receivers or ()) for signal, _ in HOOKS] == before
