"""What the setting rts_scheduler is refused for, warned of, and does to priorities."""

from __future__ import annotations

import time
from typing import Any

import pytest
from kombu import Queue

import rts
from rts.installation import parts_of
from rts.records import Plan
from rts.scheduling.activation import turn_on
from rts.settings import Settings
from tests.conftest import MakeApp

NOWHERE = "redis://127.0.0.1:1"


def test_edf_is_refused_if_the_broker_is_not_redis(make_app: MakeApp) -> None:
    with pytest.raises(rts.ConfigurationError, match=r"edf.*priority.*amqp"):
        make_app("amqp://localhost", rts_scheduler="edf")


def test_edf_is_refused_if_no_broker_is_ever_configured(make_app: MakeApp) -> None:
    app = make_app(None, rts_scheduler="edf")  # a broker may still be configured
    with pytest.raises(rts.ConfigurationError, match=r"edf.*priority.*amqp"):
        turn_on(app, Settings.from_conf(app.conf))


@pytest.mark.parametrize(
    "url", ["sqs://", "SQS://", "filesystem://", "sqla+sqlite:///b.db", "redis://;sqs://"]
)
def test_a_broker_without_priorities_has_no_order(
    url: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(rts.ConfigurationError, match="None if the broker has no message prio"):
        make_app(url, rts_scheduler="edf")
    make_app(url, rts_scheduler="priority")
    assert "'priority' changes no order: the broker has no message prio" in caplog.text


@pytest.mark.parametrize(
    ("url", "direction"),
    [
        *(("redis://", 1), ("rediss://", 1), ("redis+socket:///r.sock", 1), ("sentinel://", 1)),
        *(("amqp://", -1), ("redis", -1), ("mongodb://", -1), ("memory://", -1)),
    ],
)
def test_priorities_have_the_direction_of_the_broker(
    url: str, direction: int, make_app: MakeApp
) -> None:
    parts = parts_of(make_app(url, rts_scheduler="priority", rts_redis_url=NOWHERE))
    now = parts.clock.now()
    plan = Plan("mixed", "inferred", 1.0, 2.0, now, now + 3)
    soon, late = (
        parts.prioritise(plan._replace(deadline=now + s), None, False) for s in (3, 900)
    )
    assert (late - soon) * direction > 0


@pytest.mark.parametrize(
    ("conf", "warned"),
    [
        ({}, True),
        ({"task_queue_max_priority": 10}, False),
        ({"task_queues": [Queue("a"), Queue("b", max_priority=10)]}, False),
        ({"task_queues": [Queue("a", queue_arguments={"x-max-priority": 10})]}, False),
        ({"task_default_queue_type": "quorum"}, False),
    ],
)
def test_priorities_that_no_queue_of_rabbitmq_keeps_to_are_warned_of(
    conf: dict[str, Any], warned: bool, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app("amqp://localhost", rts_scheduler="priority", rts_redis_url=NOWHERE, **conf)
    parts_of(app)  # as its first message does
    assert ("changes no order in queues without x-max-priority" in caplog.text) is warned


def test_the_default_priority_of_an_app_gives_way_to_the_deadlines(make_app: MakeApp) -> None:
    app = make_app(
        rts_scheduler="priority",
        rts_redis_url=NOWHERE,
        task_default_priority=5,
        task_default_queue="gives-way",
    )

    @app.task(name="gives.way")
    def work() -> None: ...

    late = {"sla_deadline": time.time() + 1e6}
    work.apply_async(headers=late)
    work.apply_async(headers=late, priority=6)
    work.apply_async(headers=late, retries=1)  # keeps what it was published with
    with app.connection() as connection:
        channel = connection.default_channel
        got = [channel.basic_get("gives-way").properties["priority"] for _ in range(3)]
    assert got == [0, 6, 5]
