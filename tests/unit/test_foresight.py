"""What is built when somebody first asks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from celery import Celery

import rts
from rts import foresight
from rts.predictions import routing
from rts.predictions.outlook import Pressure
from rts.records import Plan


def test_two_threads_that_route_first_share_what_they_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    meeting, made = threading.Barrier(2), []

    class Slow(routing.Risks):
        """Waits for another one to be made, too."""

        def __init__(self, *given: Any) -> None:
            made.append(self)
            try:
                meeting.wait(0.5)
            except threading.BrokenBarrierError:
                pass  # there is none
            super().__init__(*given)

    monkeypatch.setattr(routing, "Risks", Slow)
    nobody = "redis://127.0.0.1:1"
    app = Celery("routes", broker=nobody, set_as_current=False)
    app.conf.update(rts_redis_url=nobody, rts_routes={"mixed": ["a", "b"]})
    rts.install(app)
    threads = [threading.Thread(target=rts.route, args=("some.task",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rts.uninstall(app)
    app.close()
    assert len(made) == 1


class Roomy:
    """Stands for an outlook: each queue has a slot."""

    def pressures(self, queues: Sequence[str]) -> dict[str, Pressure]:
        return {queue: Pressure(0.0, 1, 0.5) for queue in queues}


# Python 3.12 warns of it; web servers do it all the same.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_routes_though_a_thread_of_its_parent_was_at_it() -> None:
    nobody = "redis://127.0.0.1:1"
    app = Celery("routes", broker=nobody, set_as_current=False)
    app.conf.update(rts_redis_url=nobody, rts_routes={"mixed": ["a", "b"]})
    rts.install(app)
    outlook: Any = Roomy()
    risks = routing.Risks(outlook, 5.0)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with foresight._lock, risks._lock:
            held.set()
            over.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        # The first thread of the child gets the number of the parent's, as if it had the lock.
        threading.Thread(target=over.wait, args=(60,), daemon=True).start()
        chosen = risks.choose(Plan("mixed", "inferred", 1.0, 2.0, 100.0, 102.0), ["a"], 100.0)
        os._exit(0 if chosen == "a" and rts.route("some.task") is None else 1)
    _, status = os.waitpid(child, 0)
    over.set()
    holder.join(30)
    rts.uninstall(app)
    app.close()
    assert os.waitstatus_to_exitcode(status) == 0
