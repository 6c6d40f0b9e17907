"""What stands on the wire: every message that is published carries its deadline."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.beat import Scheduler
from celery.schedules import schedule

import rts

FLOOR = 1.0


class Wire:
    """An app that publishes to a queue that nobody reads."""

    def __init__(self, app: Celery, client: redis.Redis) -> None:
        self.app = app
        self._client = client
        self.add = app.tasks["wire.add"]

    def messages(self) -> list[dict[str, Any]]:
        """Return all messages, oldest first, as they were sent; empty the queues."""
        queue = self.app.conf.task_default_queue
        found = []
        for key in (queue, *(f"{queue}\x06\x16{priority}" for priority in range(10))):
            while (text := self._client.rpop(key)) is not None:
                found.append(json.loads(text))
        return found

    def headers(self) -> dict[str, Any]:
        """Return the headers of the one message that was sent."""
        (message,) = self.messages()
        return dict(message["headers"])


@pytest.fixture
def wire(rts_redis_url: str, rts_key_prefix: str, redis_client: redis.Redis) -> Iterator[Wire]:
    # A backend without connections: results that are dropped late look for theirs.
    app = Celery("wire", broker=rts_redis_url, backend="cache+memory://")
    app.conf.update(
        task_default_queue=rts_key_prefix.strip(":"),
        rts_key_prefix=rts_key_prefix,
        rts_priority_multipliers={9: 1.5},
        task_annotations={"wire.annotated": {"rts": {"task_type": "memory-heavy"}}},
    )

    def add(x: int = 1, y: int = 1) -> int:
        return x + y

    for name in ("wire.add", "wire.annotated"):
        app.task(name=name, shared=False)(add)
    rts.install(app)
    yield Wire(app, redis_client)
    rts.uninstall(app)
    app.close()


def check(headers: dict[str, Any], published_at: float, delay: float = 0.0) -> None:
    """Check the deadline of a message against the formula and against the clock."""
    tau, k, arrival = (headers[f"rts_{name}"] for name in ("tau", "k", "arrival"))
    assert headers["rts_deadline"] == arrival + max(k * tau, tau + FLOOR)
    assert 1.5 <= k <= 2.5
    assert arrival == pytest.approx(published_at + delay, abs=5.0)


def test_a_plain_call_carries_its_plan(wire: Wire) -> None:
    now = time.time()
    wire.add.delay()
    headers = wire.headers()
    check(headers, now)
    assert (headers["task_type"], headers["rts_tau"], headers["rts_k"]) == ("mixed", 10.0, 2.0)
    assert headers["rts_type_source"] == "inferred"


@pytest.mark.parametrize("when", ["countdown", "eta", "eta elsewhere"])
def test_a_delayed_task_arrives_when_it_may_run(wire: Wire, when: str) -> None:
    now = datetime.now(timezone.utc)
    later = now + timedelta(seconds=100)
    elsewhere = later.astimezone(timezone(timedelta(hours=5)))
    options: dict[str, dict[str, Any]] = {
        "countdown": {"countdown": 100},
        "eta": {"eta": later},
        "eta elsewhere": {"eta": elsewhere},
    }
    wire.add.apply_async(**options[when])
    headers = wire.headers()
    eta = datetime.fromisoformat(headers["eta"]).timestamp()
    assert headers["rts_arrival"] == pytest.approx(eta, abs=0.01)
    assert headers["rts_arrival"] == pytest.approx(later.timestamp(), abs=5.0)
    check(headers, now.timestamp(), 100)


def test_an_eta_that_is_over_does_not_arrive_before_it_was_published(wire: Wire) -> None:
    now = time.time()
    wire.add.apply_async(eta=datetime.now(timezone.utc) - timedelta(hours=1))
    check(wire.headers(), now)


def test_send_task_of_a_name_that_nobody_here_knows(wire: Wire) -> None:
    now = time.time()
    wire.app.send_task("elsewhere.task", headers={"task_type": "gpu-training"})
    headers = wire.headers()
    check(headers, now)
    assert (headers["task_type"], headers["rts_tau"]) == ("gpu-training", 60.0)


@pytest.mark.parametrize(
    ("options", "k"),
    [
        ({"priority": 9}, 1.5),
        ({"priority": 9, "headers": {"sla_multiplier": 2.25}}, 2.25),
        ({"priority": 3}, 2.0),
    ],
)
def test_k_by_call_and_by_priority(wire: Wire, options: dict[str, Any], k: float) -> None:
    now = time.time()
    wire.add.apply_async(**options)
    headers = wire.headers()
    check(headers, now)
    assert headers["rts_k"] == k


def test_annotations_name_the_type_and_a_header_wins(wire: Wire) -> None:
    annotated = wire.app.tasks["wire.annotated"]
    annotated.delay()
    headers = wire.headers()
    assert (headers["task_type"], headers["rts_type_source"]) == ("memory-heavy", "task")
    annotated.apply_async(headers={"task_type": "cpu-light"})
    headers = wire.headers()
    assert (headers["task_type"], headers["rts_type_source"]) == ("cpu-light", "explicit")


@pytest.mark.parametrize("where", ["outer", "inner", "both"])
def test_headers_within_headers_as_sentry_has_them(wire: Wire, where: str) -> None:
    """Sentry's integration passes on all headers once more in an inner dict."""
    own = {"task_type": "cpu-heavy", "sla_multiplier": 2.5}
    trace = {"sentry-trace": "abc"}
    headers = {
        "outer": {**own, "headers": trace},
        "inner": {"headers": {**trace, **own}},
        "both": {**own, "headers": {**trace, "task_type": "mixed", "sla_multiplier": 2.0}},
    }[where]
    now = time.time()
    wire.add.apply_async(headers=headers)
    sent = wire.headers()
    check(sent, now)
    assert sent["headers"]["sentry-trace"] == "abc"
    assert (sent["task_type"], sent["rts_k"]) == ("cpu-heavy", 2.5)


def test_an_apps_own_headers_are_left_alone(wire: Wire) -> None:
    wire.add.apply_async(headers={"tenant": "a", "nested": {"x": [1]}})
    headers = wire.headers()
    assert (headers["tenant"], headers["nested"]) == ("a", {"x": [1]})


def test_every_member_of_a_canvas(wire: Wire) -> None:
    now = time.time()
    s = wire.add.si
    group(s(), s(), s()).apply_async()
    chain(s(), s()).apply_async()
    chord([s(), s()], s()).apply_async()
    sent = [message["headers"] for message in wire.messages()]
    assert len(sent) == 3 + 1 + 2
    for headers in sent:
        check(headers, now)


def test_beat_publishes_like_everybody(wire: Wire) -> None:
    wire.app.conf.beat_schedule = {
        "now": {
            "task": "wire.add",
            "schedule": schedule(timedelta(seconds=0)),
            "options": {"headers": {"task_type": "cpu-light"}},
        }
    }
    beat = Scheduler(wire.app)
    now = time.time()
    beat.tick()
    headers = wire.headers()
    check(headers, now)
    assert headers["task_type"] == "cpu-light"


def test_what_rts_adds_is_small(wire: Wire) -> None:
    wire.add.apply_async(headers={"task_type": "gpu-inference"})
    headers = wire.headers()
    added = {k: v for k, v in headers.items() if k.startswith("rts_") or k == "task_type"}
    assert len(json.dumps(added)) < 1024
    assert all(isinstance(value, str | float) for value in added.values())
