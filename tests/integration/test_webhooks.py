"""Webhooks: receivers in trouble, leaders that die, and the content of messages."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import rts
from rts import health
from rts.alerting.alert import RESOLVED, Alert, Condition, body_of, slack_document
from rts.alerting.conditions import MAX_GROUPS, overdue_conditions
from rts.alerting.delivery import MAX_BACKOFF_S, WebhookDelivery
from rts.alerting.leader import LEASE_S, OBJECTIVES_S, PAUSE_FACTOR, QUIET_S, Leader
from rts.alerting.post import NotDelivered, post
from rts.alerting.store import MAX_WAITING, UNLED_S, AlertStore, firing
from rts.clock import FleetClock
from rts.link.link import Link
from rts.listener import group_of
from rts.notices import TaskOverdue
from rts.records import OpenTask
from rts.settings import Settings
from rts.testing import wait_until
from rts.views.slo import standings
from rts.webhooks import GIVE_UP_S, SLO_BURNING, Webhook, read_webhooks
from tests.clock import Clock
from tests.commands import write_verdicts
from tests.conftest import MakeApp, MakeStage
from tests.programs import certificate_in
from tests.receiver import Receiver
from tests.told import Told

SECRET = "a-very-secret-key"
KIND = "task_overdue"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.down()


class Fleet:
    """Settings, and the parts of companions that have them."""

    def __init__(self, conf: dict[str, Any], mongo: Any, stack: ExitStack) -> None:
        self._conf, self._mongo, self._stack = conf, mongo, stack

    def settings(self, *hooks: dict[str, Any], **more: Any) -> Settings:
        conf = {**self._conf, "rts_webhooks": list(hooks), **more}
        return Settings.from_conf(conf, environ={})

    def link(self, settings: Settings, kind: Callable[[Settings], Any] = Link) -> Any:
        made = kind(dataclasses.replace(settings, timeout=5.0))
        self._stack.callback(made.close)
        return made

    def store(
        self,
        settings: Settings,
        clock: FleetClock | None = None,
        link: Link | None = None,
        **more: Any,
    ) -> AlertStore:
        link, clock = link or self.link(settings), clock or FleetClock()
        return AlertStore(link, settings, clock, **{"quiet_s": {}, **more})

    def delivery(
        self,
        settings: Settings,
        clock: FleetClock | None = None,
        leads: Callable[[], bool] = lambda: True,
        number: int = 0,
    ) -> WebhookDelivery:
        hook, link = settings.webhooks[number], self.link(settings)
        clock = clock or FleetClock()
        return WebhookDelivery(hook, link, settings.keys, clock, leads, jitter=lambda: 1.0)

    def leader(
        self, settings: Settings, clock: FleetClock | None = None, name: str = "a", **more: Any
    ) -> Leader:
        clock = clock or FleetClock()
        leader = Leader(self.link(settings), settings, clock, name, self._mongo, **more)
        self._stack.callback(leader.leave)
        return leader

    def firing(self, settings: Settings) -> list[Alert]:
        return firing(self.link(settings), settings)


@pytest.fixture
def fleet(
    conf: dict[str, Any],
    mongo: Any,
    receiver: Receiver,  # which outlives whoever sends to it
) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(conf, mongo, stack)


def overdue(*tasks: tuple[str, str | None, float]) -> list[Condition]:
    """Return the conditions of tasks that are overdue at the instant 100."""
    open_tasks = [
        OpenTask(str(i), "proj.add", *(task_type, "task", 5.0, 2.0, 1.0, deadline, "", queue))
        for i, (task_type, queue, deadline) in enumerate(
            tasks or [("cpu-light", "celery", 90.0)]
        )
    ]
    return overdue_conditions(open_tasks, 100.0)


def make_overdue(redis_client: Any, settings: Settings, task_id: str, queue: str) -> None:
    """Write a task of *queue* to Redis that is overdue."""
    task = OpenTask(task_id, "t", *("mixed", "inferred", 5.0, 2.0, 1.0, 11.0, "", queue))
    redis_client.hset(settings.keys.open_info, task_id, f"{task_id}\n{json.dumps(task[1:])}")
    redis_client.zadd(settings.keys.overdue, {task_id: 12.0})


def test_an_alert_starts_once_and_ends_once(fleet: Fleet, receiver: Receiver) -> None:
    settings = fleet.settings({"url": receiver.url + "/hook?x=1", "secret": SECRET})
    store, other = fleet.store(settings), fleet.store(settings)
    assert store.update((KIND,), overdue()) == 1
    # It goes on, with other numbers, seen by another companion too.
    more = overdue(("cpu-light", "celery", 50.0), ("cpu-light", "celery", 60.0))
    assert store.update((KIND,), more) == other.update((KIND,), more) == 0
    assert other.update(("slo_burning",), []) == 0  # says nothing of overdue tasks
    (alert,) = fleet.firing(settings)
    assert (alert.key, alert.state) == ("task_overdue/cpu-light/celery", "firing")
    assert other.update((KIND,), []) == 1
    assert store.update((KIND,), []) == 0
    assert fleet.firing(settings) == []
    delivery = fleet.delivery(settings)
    delivery.step()
    delivery.step()
    assert delivery.step() > 0
    begun, ended = receiver.taken
    assert begun.path == "/hook?x=1"
    assert begun.document == {
        "version": 1,
        "id": alert.id,
        "key": "task_overdue/cpu-light/celery",
        "kind": KIND,
        "state": "firing",
        "severity": "ticket",
        "summary": "1 task is overdue: type cpu-light, queue celery, the oldest by 10 s",
        "labels": {"task_type": "cpu-light", "queue": "celery"},
        "values": {"tasks": 1, "oldest_s": 10.0},
        "started_at": begun.document["started_at"],
        "ended_at": None,
        "links": {},
    }
    assert ended.document["state"] == RESOLVED
    assert ended.document["id"] == alert.id
    times = [datetime.fromisoformat(ended.document[k][:-1]) for k in ("started_at", "ended_at")]
    assert times[0] <= times[1]
    for message in (begun, ended):
        timestamp = message.headers["X-Rts-Timestamp"]
        assert abs(int(timestamp) - time.time()) < 60
        signed = hmac.new(SECRET.encode(), timestamp.encode() + b"." + message.body, "sha256")
        assert message.headers["X-Rts-Signature"] == f"sha256={signed.hexdigest()}"
        assert message.headers["X-Rts-Id"] == alert.id


class Overtaken(Link):
    """A link on which another leader acts before a reply is read."""

    meanwhile: Callable[[], object] | None = None

    def call(self, *commands: bytes) -> list[Any]:
        replies = super().call(*commands)
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()
        return replies


def test_two_leaders_at_the_same_moment_send_one_message(
    fleet: Fleet, redis_client: Any
) -> None:
    settings = fleet.settings({"url": "https://a"})
    link = fleet.link(settings, Overtaken)
    store, other = fleet.store(settings, link=link), fleet.store(settings)
    for conditions in (overdue(), []):
        link.meanwhile = lambda now=conditions: other.update((KIND,), now)
        assert store.update((KIND,), conditions) == 0
    assert redis_client.llen(settings.keys.webhook(settings.webhooks[0].id)) == 2


def test_an_alert_that_cannot_be_read_starts_again(fleet: Fleet, redis_client: Any) -> None:
    """As one of another version."""
    settings = fleet.settings()
    store, key = fleet.store(settings), settings.keys.alerts
    names = [str(number) for number in range(8)]
    for name in names:
        alert = dataclasses.replace(Alert.of(overdue()[0], name, float(name)), key=name)
        redis_client.hset(key, name, alert.to_json())
    redis_client.hset(key, "odd", "{}")
    odd = dataclasses.replace(alert, kind="slo_burning", labels={})
    assert [alert.id for alert in fleet.firing(settings)] == names
    redis_client.hset(key, "of another kind", odd.to_json())
    assert store.update(("slo_burning",), ()) == 0
    assert sorted(redis_client.hkeys(key)) == names


def test_overdue_tasks_are_told_by_type_and_queue() -> None:
    found = overdue(
        ("mixed", "q", 101.0),  # by another clock
        *(("cpu-light", None, deadline) for deadline in (95.0, 40.0)),
    )
    assert [condition.summary for condition in found] == [
        "2 tasks are overdue: type cpu-light, queue unknown, the oldest by 60 s",
        "1 task is overdue: type mixed, queue q, the oldest by 0 s",
    ]
    assert found[0].values == {"tasks": 2, "oldest_s": 60.0}


def test_a_list_of_another_type_costs_only_its_webhook_the_message(
    fleet: Fleet, redis_client: Any
) -> None:
    settings = fleet.settings({"url": "https://a"}, {"url": "https://b"})
    first, second = (settings.keys.webhook(hook.id) for hook in settings.webhooks)
    redis_client.set(first, "mine")
    assert fleet.store(settings).update((KIND,), overdue()) == 1
    assert redis_client.llen(second) == 1


def test_a_flapping_condition_alerts_once(fleet: Fleet) -> None:
    clock = Clock()
    store = fleet.store(fleet.settings(), quiet_s={KIND: 30.0}, now=clock)
    changes = []
    for there in (True, False, False, True, False, False, False):
        clock.at += 20
        changes.append(store.update((KIND,), overdue() if there else []))
    assert changes == [1, 0, 0, 0, 0, 0, 1]


def test_a_burn_rate_around_its_threshold_alerts_once(fleet: Fleet) -> None:
    clock = Clock()
    store = fleet.store(fleet.settings({"url": "https://a"}), quiet_s=QUIET_S, now=clock)
    labels = {"objective": "*", "window": "1h"}
    values = dict.fromkeys(("target", "burn_rate", "budget_left_ratio"), 0.5)
    page = Condition("p", SLO_BURNING, "page", "", labels, values)
    ticket = Condition("t", SLO_BURNING, "ticket", "", labels, values, covered_by="p")
    changes = []
    for burns in (True, False, True, False, False, False, False, False):
        clock.at += OBJECTIVES_S * 2
        changes.append(store.update((SLO_BURNING,), [ticket, page] if burns else [ticket]))
    assert changes == [1, 0, 0, 0, 0, 0, 0, 1]
    assert store.update((SLO_BURNING,), [ticket]) == 1


def test_an_alert_without_a_webhook_does_not_fire_for_ever(
    fleet: Fleet, receiver: Receiver, redis_client: Any
) -> None:
    hook = {"url": receiver.url}
    before, now = fleet.settings(hook), fleet.settings({**hook, "events": ["slo_burning"]})
    fleet.store(before).update((KIND,), overdue())
    fleet.store(before).update((), ())
    # Where there is no webhook at all, nobody leads.
    assert 0 < redis_client.ttl(now.keys.alerts) <= UNLED_S
    make_overdue(redis_client, now, "one", "celery")
    leader = fleet.leader(now, quiet_s={})
    assert leader.lead()
    assert leader.evaluate_overdue() == 1
    assert fleet.firing(now) == []


def test_no_alert_ends_while_more_tasks_are_overdue_than_are_looked_at(
    fleet: Fleet,
    receiver: Receiver,
    redis_client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = fleet.settings({"url": receiver.url})
    for queue in "ab":
        make_overdue(redis_client, settings, queue, queue)
    leader = fleet.leader(settings, quiet_s={})
    assert leader.lead()
    assert leader.evaluate_overdue() == 2
    with monkeypatch.context() as patch:
        patch.setattr("rts.alerting.conditions.MAX_OVERDUE", 1)
        assert leader.evaluate_overdue() == 0
    redis_client.zrem(settings.keys.overdue, "a")
    assert leader.evaluate_overdue() == 1
    assert [alert.key for alert in fleet.firing(settings)] == ["task_overdue/mixed/b"]
    redis_client.zrem(settings.keys.overdue, "b")
    assert leader.evaluate_overdue() == 1
    assert fleet.firing(settings) == []


def test_no_alert_ends_because_there_are_too_many_others(
    fleet: Fleet, receiver: Receiver, redis_client: Any
) -> None:
    settings = fleet.settings({"url": receiver.url})
    make_overdue(redis_client, settings, "one", "small")
    redis_client.zadd(settings.keys.overdue, {"of which no more is known": 12.0})
    # On a slow machine what follows takes longer than the lease lasts.
    leader = fleet.leader(settings, quiet_s={}, now=Clock())
    assert leader.evaluate_overdue() == 0, "it does not lead"
    assert leader.lead()
    assert leader.evaluate_overdue() == 1
    for n in range(2 * MAX_GROUPS + 2):
        make_overdue(redis_client, settings, str(n), f"large-{n // 2}")
    assert leader.evaluate_overdue() == MAX_GROUPS
    assert "task_overdue/mixed/small" in [alert.key for alert in fleet.firing(settings)]
    redis_client.zrem(settings.keys.overdue, "one")
    assert leader.evaluate_overdue() == 1, "it has no tasks, so it was not left out"
    redis_client.zrem(settings.keys.overdue, "0", "1")
    assert leader.evaluate_overdue() == 2, "one has no tasks, the one left out takes its place"
    assert len(fleet.firing(settings)) == MAX_GROUPS


def test_who_leads_no_more_sends_nothing(fleet: Fleet, receiver: Receiver) -> None:
    settings = fleet.settings({"url": receiver.url})
    leads = [False]
    fleet.store(settings).update((KIND,), overdue())
    delivery = fleet.delivery(settings, leads=lambda: leads[0])
    delivery.step()
    assert not receiver.taken
    leads[0] = True
    delivery.step()
    assert len(receiver.taken) == 1


def test_a_lone_surrogate_in_a_queue_hides_no_other(fleet: Fleet, receiver: Receiver) -> None:
    settings = fleet.settings({"url": receiver.url})
    conditions = overdue(("mixed", "\ud800", 90.0), ("mixed", "q", 90.0))
    assert fleet.store(settings).update((KIND,), conditions) == 2


@pytest.mark.parametrize("trouble", ["down", "500", "slow", "redirect"])
def test_a_receiver_in_trouble_gets_the_message_once_it_is_back(
    fleet: Fleet,
    receiver: Receiver,
    trouble: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("rts.alerting.post.TIMEOUT_S", 0.3)
    settings = fleet.settings({"url": receiver.url.replace("//", "//u:hush@") + "/hidden"})
    fleet.store(settings).update((KIND,), overdue())
    delivery = fleet.delivery(settings)
    if trouble == "down":
        receiver.down()
    receiver.status = {"500": 500, "slow": None, "redirect": 302}.get(trouble, 200)
    receiver.location = f"{receiver.url}/elsewhere" if trouble == "redirect" else None
    waits = [delivery.step() for _ in range(3)]
    assert waits == [1.0, 2.0, 4.0]  # before jitter
    assert not receiver.taken
    assert "/elsewhere" not in [message.path for message in receiver.messages]
    if trouble == "down":
        receiver.up()
    receiver.status = 200
    # The next companion delivers it, if this one dies.
    delivery = fleet.delivery(settings)
    assert delivery.step() == 1.0  # min_interval
    delivery.step()
    (message,) = receiver.taken
    assert message.headers["Authorization"] == "Basic dTpodXNo"
    assert "hush" not in caplog.text
    assert "hidden" not in caplog.text
    # A leader of an earlier test may still be at its message, to a receiver that is gone.
    assert caplog.text.count(f"{receiver.url} does not accept a message") == 1


def test_the_back_off_starts_anew_once_a_message_was_received(
    fleet: Fleet, receiver: Receiver
) -> None:
    settings = fleet.settings({"url": receiver.url, "min_interval": 0})
    store, delivery = fleet.store(settings), fleet.delivery(settings)
    for conditions in (overdue(), []):  # it starts and ends
        store.update((KIND,), conditions)
    waits = []
    for status in (500, 500, 200, 500):
        receiver.status = status
        waits.append(delivery.step())
    assert waits == [1.0, 2.0, 0.0, 1.0]


def test_a_redis_that_refuses_does_not_end_a_delivery(
    fleet: Fleet, receiver: Receiver, redis_client: Any
) -> None:
    settings = fleet.settings({"url": receiver.url}, rts_breaker_period=0.2)
    waiting = settings.keys.webhook(settings.webhooks[0].id)

    def refused() -> int:
        return int(redis_client.info("commandstats")["cmdstat_lindex"]["failed_calls"])

    redis_client.rpush(waiting, "x")
    redis_client.lindex(waiting, 0)
    redis_client.set(waiting, "of another type")
    before, threads = refused(), {*threading.enumerate()}
    delivery = fleet.delivery(settings)
    delivery.start()
    (thread,) = (t for t in {*threading.enumerate()} - threads if t.name == "rts-webhook")
    wait_until(lambda: refused() > before)
    redis_client.delete(waiting)
    fleet.store(settings).update((KIND,), overdue())
    wait_until(lambda: receiver.taken)
    delivery.stop()
    wait_until(lambda: not thread.is_alive())
    assert "webhook_errors" not in health.take_counts()


def test_the_longest_back_off_and_giving_up(
    fleet: Fleet, receiver: Receiver, redis_client: Any
) -> None:
    settings = fleet.settings({"url": receiver.url})
    clock = FleetClock()
    fleet.store(settings, clock).update((KIND,), overdue())
    receiver.down()
    delivery = fleet.delivery(settings, clock)
    delivery._failures = 500
    assert delivery.step() == MAX_BACKOFF_S
    clock.offset_s = GIVE_UP_S + 60
    receiver.up()
    assert delivery.step() == 0.0
    assert receiver.messages == []
    assert redis_client.llen(settings.keys.webhook(settings.webhooks[0].id)) == 0


def test_waiting_messages_are_bounded_and_broken_ones_dropped(
    fleet: Fleet,
    receiver: Receiver,
    redis_client: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = fleet.settings({"url": receiver.url, "min_interval": 0})
    (hook,) = settings.webhooks
    waiting = settings.keys.webhook(hook.id)
    redis_client.rpush(waiting, *["not JSON"] * MAX_WAITING)
    fleet.store(settings).update((KIND,), overdue())
    assert redis_client.llen(waiting) == MAX_WAITING
    assert redis_client.hget(settings.keys.counters, "webhook_dropped") == "1"
    assert redis_client.ttl(waiting) > 0
    redis_client.ltrim(waiting, -2, -1)
    odd: list[dict[str, Any]] = [{"labels": 5}, {"values": ["a"]}, {"summary": None}]
    odd.append({"at": None})
    for changes in odd:
        alert = Alert.of(overdue()[0], "a", time.time())
        redis_client.lpush(waiting, dataclasses.replace(alert, **changes).to_json())
    delivery = fleet.delivery(settings)
    for _ in range(6):
        delivery.step()
    assert [message.document["kind"] for message in receiver.taken] == [KIND]
    assert "it is not an alert" in caplog.text


def test_receivers_get_what_they_want_in_their_format(fleet: Fleet, receiver: Receiver) -> None:
    link_to = "https://flower.internal/rts"
    settings = fleet.settings(
        {"url": receiver.url + "/a", "format": "slack", "link": link_to, "events": [KIND]},
        {"url": receiver.url + "/b", "events": ["slo_burning"]},
    )
    evil = "<!channel>\n& <http://evil|click>\x1b[31m\u202e"
    fleet.store(settings).update((KIND,), overdue(("cpu-light", evil, 90.0)))
    for number in range(2):
        fleet.delivery(settings, number=number).step()
    (message,) = receiver.taken
    assert message.path == "/a"
    assert message.document == {
        "text": ":red_circle: *firing* (ticket): 1 task is overdue: type cpu-light, queue "
        "&lt;!channel&gt; &amp; &lt;http://evil|click&gt; [31m , the oldest by 10 s "
        f"<{link_to}|Details>"
    }


def test_slack_does_not_tell_what_is_over_as_if_it_were_not() -> None:
    alert = Alert("1", "k", KIND, RESOLVED, "page", 'queue "a": 3 tasks are overdue')
    assert slack_document(alert, None) == {
        "text": ':white_check_mark: *resolved* (page), was: queue "a": 3 tasks are overdue'
    }


def test_a_slow_receiver_delays_neither_others_nor_the_leader(
    fleet: Fleet, receiver: Receiver
) -> None:
    receiver.status = None
    other = Receiver()
    try:
        settings = fleet.settings({"url": receiver.url}, {"url": other.url})
        leader = fleet.leader(settings)
        assert leader.lead()
        fleet.store(settings).update((KIND,), overdue())
        wait_until(lambda: other.taken)
        wait_until(lambda: receiver.messages)
        assert leader.lead()
        leader.leave()
    finally:
        other.down()


def test_one_companion_leads_and_another_takes_over(
    fleet: Fleet, receiver: Receiver, redis_client: Any
) -> None:
    settings = fleet.settings({"url": receiver.url, "min_interval": 0})
    now, clock = Clock(), FleetClock()
    clock.offset_s = 7200  # this host's clock is wrong by two hours
    one, two = (fleet.leader(settings, clock, name, now=now) for name in ("one", "two"))
    before = threading.enumerate()
    assert one.lead()
    assert one.lead()
    new = [thread.name for thread in threading.enumerate() if thread not in before]
    assert new.count("rts-webhook") == 1, "each would send each message"
    assert not two.lead()
    assert (one.leads(), two.leads()) == (True, False)
    now.at += LEASE_S  # it was stopped for so long: it may not send any more
    assert not one.leads()
    assert redis_client.pttl(settings.keys.alerting) <= LEASE_S * 1000
    redis_client.delete(settings.keys.alerting)
    assert two.lead()
    assert not one.lead()
    fleet.store(settings, clock).update((KIND,), overdue())
    (message,) = wait_until(lambda: receiver.taken)
    assert abs(int(message.headers["X-Rts-Timestamp"]) - 7200 - time.time()) < 60
    two.leave()
    assert one.lead()
    one.leave()
    assert not fleet.leader(fleet.settings()).lead(), "there is nobody to tell"


def test_a_lease_counts_from_when_it_was_asked_for(
    fleet: Fleet,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis may have granted it long before its answer is read."""
    settings = fleet.settings({"url": receiver.url})
    now = Clock()
    leader = fleet.leader(settings, now=now)
    acquire = leader._lease.acquire

    def slow() -> bool:
        granted = acquire()
        now.at += LEASE_S
        return granted

    monkeypatch.setattr(leader._lease, "acquire", slow)
    assert leader.lead()
    assert not leader.leads()


def test_a_slow_ledger_is_asked_for_the_objectives_a_small_part_of_the_time(
    fleet: Fleet,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, clock, asked = fleet.settings({"url": receiver.url}), Clock(), []
    leader = fleet.leader(settings, now=clock)

    def slow(*_: Any) -> list[Any]:
        asked.append(clock.at)
        clock.at += 0.5
        return []

    monkeypatch.setattr("rts.alerting.leader.standings", slow)
    leader.evaluate_objectives()
    assert not asked, "it does not lead"
    others = fleet.settings({"url": receiver.url, "events": [KIND]})
    untold = fleet.leader(others, now=clock)
    assert untold.lead()
    untold.evaluate_objectives()
    assert not asked, "nobody is told"
    untold.leave()
    for _ in range(60):
        assert leader.lead()
        leader.evaluate_objectives()
        clock.at += 0.5
    assert [b - a for a, b in pairwise(asked)] == [0.5 + PAUSE_FACTOR * 0.5] * 5


def test_an_alert_tells_what_is_left_of_the_whole_budget(
    fleet: Fleet, receiver: Receiver
) -> None:
    settings = fleet.settings({"url": receiver.url}, rts_slo={"*": 0.9})
    conf = {"rts_mongo_url": settings.mongo_url}
    write_verdicts(conf, ("mixed", 60, 0, 20), ("mixed", 5 * 86400, 980, 0))
    leader = fleet.leader(settings)
    assert leader.lead()
    assert leader.evaluate_objectives() == 1
    (alert,) = fleet.firing(settings)
    assert alert.values["budget_left_ratio"] == pytest.approx(0.8)


def test_an_evaluation_that_outlasts_the_lease_decides_nothing(
    fleet: Fleet, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another companion may have told by then that the objective is met again."""
    settings, clock = fleet.settings({"url": receiver.url}, rts_slo={"*": 0.9}), Clock()
    write_verdicts({"rts_mongo_url": settings.mongo_url}, ("mixed", 60, 0, 20))
    leader = fleet.leader(settings, now=clock)

    def suspended(*asked: Any) -> Any:
        clock.at += LEASE_S
        return standings(*asked)

    assert leader.lead()
    monkeypatch.setattr("rts.alerting.leader.standings", suspended)
    assert leader.evaluate_objectives() == 0
    assert not fleet.firing(settings)


def test_a_receiver_that_never_answers_is_told_to_time_out(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.alerting.post.TIMEOUT_S", 0.5)
    receiver.status = None
    with pytest.raises(NotDelivered, match=r"does not answer \(TimeoutError\)"):
        post(Webhook(receiver.url), b"{}", {})


def test_certificates_are_verified(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificate_in(tmp_path)
    receiver.down()
    receiver.up(tls=(certificate, key))
    here = Webhook(f"https://localhost:{receiver.port}")
    with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
        post(here, b"{}", {})
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with pytest.raises(NotDelivered, match="SSLCertVerificationError"):
        post(Webhook(f"https://127.0.0.1:{receiver.port}"), b"{}", {})
    assert receiver.messages == []
    post(here, b"{}", {})
    assert [message.body for message in receiver.taken] == [b"{}"]


def test_secrets_appear_nowhere(fleet: Fleet) -> None:
    hook = {"url": "https://u:hush@hooks.slack.com/services/T0/B0/token", "secret": SECRET}
    settings = fleet.settings(hook)
    for text in (repr(settings), repr(settings.webhooks), settings.webhooks[0].shown):
        for secret in ("hush", "token", SECRET):
            assert secret not in text
    assert settings.webhooks[0].shown == "https://hooks.slack.com"
    assert Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    alert = Alert.of(overdue()[0], "1", 100.0)
    digest = hashlib.sha256(f"json {hook['url']}".encode()).hexdigest()
    assert settings.webhooks[0].id == digest[:16]
    assert b"hush" not in body_of(alert, "json", None)


#: What is wrong beside a good URL, or in its place.
WRONG: list[dict[str, Any]] = [
    *(
        {"url": url}
        for url in ("ftp://a", "file:///etc/passwd", "https:///path", "https://a:0/")
    ),
    *({"url": url} for url in ("https://a:99999/", f"https://a/{2039 * 'x'}", "https://a/ b")),
    *({"url": url} for url in ("https://a/ä", "https://a/\nb")),
    *({"secret": secret} for secret in ("hush123", 12345678, 8 * "\udcff")),
    *({"events": events} for events in ([], ["lunch"], "slo_burning", {"slo_burning": True})),
    # Messages older than a day are not sent.
    *({"min_interval": every} for every in (-1, float("nan"), True, "1", 86401)),
    *({"format": "xml"}, {"link": "javascript:alert(1)"}, {"token": "hush"}),
]
BAD: list[Any] = [
    *("https://a", 5, [5], [{}], ["https://a"]),
    *([{"url": "https://a", **wrong}] for wrong in WRONG),
    *([{"url": "https://a"}] * 2, [{"url": f"https://a/{i}"} for i in range(21)]),
]


def test_webhooks_may_go_to_their_limits() -> None:
    hook = {"url": f"https://a/{2038 * 'x'}", "secret": "hush1234", "min_interval": 86400}
    others = [{"url": f"https://a/{i}", "min_interval": 0} for i in range(19)]
    hooks = read_webhooks("rts_webhooks", [hook, *others])
    assert len(hooks) == 20
    assert (hooks[0].secret, hooks[0].min_interval_s) == ("hush1234", 86400.0)
    assert (hooks[1].secret, hooks[1].min_interval_s) == (None, 0.0)


@pytest.mark.parametrize("value", BAD)
def test_a_bad_webhook_fails_at_install_and_shows_no_secret(value: Any) -> None:
    app = Celery("bad", set_as_current=False)
    app.conf.rts_webhooks = value
    with pytest.raises(rts.ConfigurationError, match=r"^rts_webhooks.*allowed: ") as caught:
        rts.install(app)
    for secret in ("hush", "12345678", "passwd"):
        assert secret not in str(caught.value)
    app.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("hooks.example.org/services/T0/hush", "'hooks.example.org/***'"),
        (
            "htps://me:hush@hooks.example.org/services?key=hush",
            "'htps://***@hooks.example.org/***'",
        ),
        ("https://hooks.example.org:99999/hush", "'https://hooks.example.org:99999/***'"),
        ("https://hooks.example.org:hush/", "'https://hooks.example.org:***/***'"),
        ("https://hooks.example.org /hush", "'https://hooks.example.org/***'"),
        ("https://me:hu/sh@hooks.example.org/hu@sh\n", "'https://***'"),
        ({"url": "hush"}, "'a dict'"),
        (None, "'a NoneType'"),
    ],
)
def test_a_bad_webhook_is_named_by_its_host(url: Any, shown: str) -> None:
    for key, hook in (("url", {"url": url}), ("link", {"url": "https://a", "link": url})):
        if hook.get(key) is not None or key == "url":
            with pytest.raises(rts.ConfigurationError) as caught:
                read_webhooks("rts_webhooks", [hook])
            told = str(caught.value)
            assert told.startswith(f"rts_webhooks[0]['{key}'] = {shown} is not valid; ")


def test_a_burning_objective_alerts_once_in_the_fleet_despite_deaths(
    make_stage: MakeStage,
    apps: MakeApp,
    tmp_path: Any,
    receiver: Receiver,
    redis_client: Any,
) -> None:
    """Two workers, a receiver that is down, a companion that is killed, then all is well."""
    hook = {"url": receiver.url + "/secret-path", "secret": SECRET, "min_interval": 0}
    stage = make_stage(rts_webhooks=[hook], rts_slo={"*": 0.95}, rts_slo_min_events=5)
    told = [Told(tmp_path / name) for name in ("one", "two")]
    workers = [
        stage.worker("tests.apps.told", concurrency=1, env={"TEST_TOLD": str(each.path)})
        for each in told
    ]
    receiver.down()
    app = apps(stage, task_ignore_result=True)
    for _ in range(10):
        app.send_task("tests.apps.basic.ok", headers={"sla_deadline": 1_000_000})
    # Nobody takes tasks from there: these are overdue, both in one alert.
    nobody = f"{stage.prefix}<nobody>"
    lost = [
        app.send_task("lost", queue=nobody, headers={"sla_deadline": time.time() + 1}).id
        for _ in range(2)
    ]
    keys = Settings(key_prefix=stage.prefix).keys
    waiting = keys.webhook(Webhook(hook["url"]).id)
    wait_until(lambda: redis_client.llen(waiting) >= 1, 60)
    # Once in the fleet, in one worker's main process.
    pids = [worker.pid for worker in workers]

    def heard(kind: str, **having: Any) -> list[dict[str, Any]]:
        return [line for each in told for line in each.lines(kind, **having)]

    wait_until(lambda: heard("burning"))
    for task_id in lost:
        wait_until(lambda task_id=task_id: heard("overdue", task_id=task_id))
    leader = redis_client.get(keys.alerting)
    for worker in workers:
        for companion in worker.companions():
            if f"-{companion.pid}-" in leader:
                companion.kill()
    wait_until(lambda: redis_client.get(keys.alerting) not in (None, leader), LEASE_S + 30)
    assert redis_client.llen(waiting) >= 2
    receiver.up()
    wait_until(lambda: redis_client.llen(waiting) == 0, 60)
    alerts = [message.document for message in receiver.taken]
    # The ticket for the same objective is covered by the page.
    (burning,) = [alert for alert in alerts if alert["kind"] == "slo_burning"]
    assert (burning["state"], burning["severity"]) == ("firing", "page")
    assert burning["labels"]["objective"] == "*"
    assert burning["values"]["burn_rate"] >= 14.4
    (late,) = [alert for alert in alerts if alert["labels"].get("queue") == nobody]
    assert (late["kind"], late["state"]) == (KIND, "firing")
    assert late["values"]["tasks"] >= 1
    (line,) = heard("burning")
    assert (line["sender"], line["state"], line["objective"]) == ("*", "firing", "*")
    assert line["pid"] in pids
    for task_id in lost:
        (line,) = heard("overdue", task_id=task_id)
        assert (line["sender"], line["queue"], line["worker"]) == ("lost", nobody, None)
        assert line["pid"] in pids
    for worker in workers:
        worker.stop()
        for secret in (SECRET, "secret-path"):
            assert secret not in worker.log


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_events_are_delivered_in_other_pools_while_a_task_runs(
    make_stage: MakeStage, tmp_path: Any, redis_client: Any, pool: str
) -> None:
    stage, told = make_stage(), Told(tmp_path / "told")
    env = {"TEST_TOLD": str(told.path)}
    worker = stage.worker("tests.apps.told", pool=pool, concurrency=1, env=env)
    keys = Settings(key_prefix=stage.prefix).keys
    wait_until(lambda: len(redis_client.xinfo_groups(keys.events)) == 2)
    app = Celery("pools", broker=stage.broker, set_as_current=False)
    app.conf.update(stage.conf, task_ignore_result=True)
    app.send_task("tests.apps.basic.ok", (3600,))
    notice = TaskOverdue("an-id", "proj.x", "mixed", None, None, 1.0, 2.0, 3.0)
    redis_client.xadd(keys.events, {"e": "not JSON"})
    redis_client.xadd(keys.events, {"e": json.dumps(dataclasses.asdict(notice))})
    (line,) = wait_until(lambda: told.lines("overdue"))
    assert (line["task_id"], line["sender"], line["pid"]) == ("an-id", "proj.x", worker.pid)
    # What was handled is not handed out again.
    group = group_of("task_overdue")
    wait_until(lambda: redis_client.xpending(keys.events, group)["pending"] == 0)
    worker.kill()
    app.close()
