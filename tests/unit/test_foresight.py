"""What is built when somebody first asks."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from celery import Celery

import rts
from rts.predictions import routing


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
