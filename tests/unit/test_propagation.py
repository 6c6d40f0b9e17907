"""Propagated deadlines, deadlines as priorities, deadlines from learned ratios."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.backends.base import BaseBackend
from celery.signals import before_task_publish
from hypothesis import given
from hypothesis import strategies as st

from rts.deadlines import MAX_INSTANT, MAX_LEARNED, MIN_LEARNED
from rts.headers import read_plan
from rts.lifecycle.planning import Planner
from rts.scheduling.priority import level
from rts.settings import Settings
from rts.tau.cache import OWN_RUNS, POOL, POOL_RUNS, learned_ratios
from rts.tau.sketch import Sketch
from tests.conftest import MakeApp
from tests.planning import NOW, StoppedClock, Taus, planner

TYPES = Settings().task_types


def sent_chain(*names: str) -> tuple[dict[str, Any], Any]:
    """Return the headers and the body that Celery makes for the first task of a chain."""
    app = Celery(set_as_current=False, broker="memory://")
    caught: list[tuple[dict[str, Any], Any]] = []

    def catch(headers: Any = None, body: Any = None, **_: Any) -> None:
        caught.append((headers, body))

    def nothing() -> None: ...

    tasks = [app.task(nothing, name=name) for name in names]
    before_task_publish.connect(catch, weak=False, dispatch_uid="catch")
    try:
        chain(*(task.si() for task in tasks)).apply_async()
    finally:
        before_task_publish.disconnect(dispatch_uid="catch")
        app.close()
    return caught[0]


def signature(name: str, **options: Any) -> Any:
    return Celery(set_as_current=False).signature(name, **options)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat()


def test_a_chain_shares_one_deadline() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0, c=11.0))
    headers, body = sent_chain("a", "b", "c")
    first = p.plan_message("a", headers, None, None, body)
    assert first.deadline - NOW == pytest.approx(2 * (5 + 7 + 11))
    follow = {**body[2]["chain"][-1]["options"]}
    second_headers = {"id": follow["task_id"], "task": "b"}
    second_body = ((), {}, {"chain": body[2]["chain"][:-1]})
    second = p.plan_message("b", second_headers, None, headers, second_body)
    assert second.deadline == first.deadline
    # What else a member publishes has at most its time, but may be due earlier.
    assert p.plan_message("a", {"id": "x"}, None, headers).deadline == NOW + 10
    assert p.plan_message("z", {"id": "y"}, None, headers).deadline <= first.deadline


def test_groups_and_chords_in_a_chain_count_by_their_longest() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0, c=11.0))
    members = [dict(signature("b")), dict(signature("c"))]
    follow = {
        "task": "celery.chord",
        "kwargs": {
            "header": {"task": "celery.group", "kwargs": {"tasks": members}},
            "body": dict(signature("a")),
        },
        "options": {"task_id": "chord"},
    }
    headers = {"id": "1", "task": "a"}
    plan = p.plan_message("a", headers, None, None, ((), {}, {"chain": [follow]}))
    assert plan.deadline - NOW == pytest.approx(2 * (5 + 11 + 5))
    assert headers["rts_next"] == "chord"
    p.plan_message("a", headers, None, None, ((), {}, {"chain": []}))
    assert "rts_next" not in headers, "of another message"


def test_a_chain_within_the_group_that_is_next_shares_the_deadline() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0, c=11.0))
    member = dict(chain(signature("b"), signature("c")))
    follow = {
        "task": "celery.group",
        "kwargs": {"tasks": [member]},
        "options": {"task_id": "g"},
    }
    headers = {"id": "1", "task": "a"}
    plan = p.plan_message("a", headers, None, None, ((), {}, {"chain": [follow]}))
    last = dict(signature("c", task_id="3", group_id="g"))  # only this one names the group
    first = p.plan_message("b", {"id": "2"}, None, headers, ((), {}, {"chain": [last]}))
    assert first.deadline == plan.deadline == NOW + 2 * (5 + 7 + 11)


def test_a_chords_header_and_body_share_one_deadline() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0, c=11.0, d=13.0))
    body = dict(signature("c", task_id="c"))
    last = dict(signature("b", task_id="b", chord=body))
    for chord_body, first, due in (
        (body, "c", 5 + 11),
        ({**body, "options": {"task_id": "c", "chain": [signature("d")]}}, "c", 5 + 11 + 13),
        (chain(signature("c", task_id="c"), signature("d")), "c", 5 + 11 + 13),
        (chord([signature("b", task_id="b")], signature("d")), None, 5 + 7 + 13),
        ({**body, "options": {"task_id": "c", "chord": signature("d")}}, "c", 5 + 11 + 13),
    ):
        headers = {"id": "1", "task": "a"}
        message = ((), {}, {"chain": None, "chord": chord_body})
        plan = p.plan_message("a", headers, None, None, message)
        assert plan.deadline - NOW == pytest.approx(2 * due)
        assert headers.get("rts_next") == first
    # A chain in the header: its last member holds the body.
    headers = {"id": "1", "task": "a"}
    plan = p.plan_message("a", headers, None, None, ((), {}, {"chain": [last]}))
    assert plan.deadline - NOW == pytest.approx(2 * (5 + 7 + 11))
    second = {"id": "b", "task": "b"}
    plan = p.plan_message("b", second, None, headers, ((), {}, {"chord": body}))
    assert plan.deadline - NOW == pytest.approx(2 * (5 + 7 + 11))
    assert p.plan_message("c", {"id": "c"}, None, second).deadline == plan.deadline


def test_members_that_differ_in_arguments_only_are_planned_once() -> None:
    asked: list[str] = []

    class Counting(Taus):
        def tau(self, task_type: str, name: str) -> float:
            asked.append(name)
            return super().tau(task_type, name)

    settings = Settings.from_conf({"rts_propagate_deadline": True}, environ={})
    p = Planner(settings, Counting(a=5.0, b=7.0, c=11.0), StoppedClock(), lambda name: {})
    traced = {"traceparent": "x"}
    members = [dict(signature("b", args=(i,), headers=traced)) for i in range(50)]
    members += [dict(signature("c", args=(i,), priority=i % 2)) for i in range(50)]
    members += [dict(signature("b", headers={"sla_deadline": NOW + 90}))]
    body = {"task": "celery.group", "kwargs": {"tasks": members}}
    plan = p.plan_message("a", {"id": "1"}, None, None, ((), {}, {"chord": body}))
    assert plan.deadline == NOW + 90
    assert sorted(asked) == ["a", "b", "b", "c", "c"]


@pytest.mark.parametrize("of", ["the first", "what follows"])
def test_a_refused_sla_deadline_counts_as_none(of: str) -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0))
    first = {"id": "1", "task": "a"}
    follow = {"id": "2", "task": "b"}
    (first if of == "the first" else follow)["sla_deadline"] = "soon"
    chained = ((), {}, {"chain": [dict(signature("b", task_id="2"))]})
    assert p.plan_message("a", first, None, None, chained).deadline == NOW + 2 * (5 + 7)
    assert p.plan_message("b", follow, None, first).deadline == NOW + 2 * (5 + 7)


def test_a_message_is_due_at_its_own_sla_deadline_and_what_follows_as_if_sent_then() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0, c=11.0))
    asked = {"sla_deadline": NOW + 60}

    def due(name: str, following: Any, current: Any, **headers: Any) -> tuple[Any, float]:
        headers |= {"id": name, "task": name}
        plan = p.plan_message(name, headers, None, current, ((), {}, following))
        return headers, plan.deadline - NOW

    b, c = dict(signature("b", task_id="b")), dict(signature("c", task_id="c"))
    # A member of a chord's header.
    first, at = due("a", {"chord": b}, None, **asked)
    assert at == 60
    assert due("b", {}, first)[1] == 60 + 14
    assert due("b", {"chain": [c]}, first)[1] == 60 + 14 + 22
    assert due("b", {}, first, eta=iso(NOW + 100))[1] == 100 + 14
    assert due("b", {}, first, sla_deadline=NOW + 70)[1] == 70
    assert due("x", {}, first, sla_deadline=NOW + 70)[1] == 60, "not what follows"
    # The first of a chain, and one on the way.
    assert due("a", {"chain": [c, b]}, None, **asked)[1] == 60
    b["options"]["headers"] = asked
    first, at = due("a", {"chain": [c, b]}, None)
    assert at == 60 + 22
    second, at = due("b", {"chain": [c]}, first, **asked)
    assert at == 60
    assert due("c", {}, second)[1] == 60 + 22


class Counting(BaseBackend):  # type: ignore[misc]  # Celery has no type information
    """A result backend with chords of its own, as that of django-celery-results."""

    def apply_chord(self, *args: Any, **kwargs: Any) -> None:
        """Count what ends."""


@pytest.mark.parametrize(
    ("backend", "native"),
    [("cache+memory://", True), (f"{__name__}:Counting", True), ("file://{folder}", False)],
)
def test_a_header_shares_no_deadline_with_a_body_that_chord_unlock_publishes(
    make_app: MakeApp, backend: str, native: bool, tmp_path: Path
) -> None:
    backend = backend.format(folder=tmp_path)
    own = {"rts_redis_url": "redis://127.0.0.1:1", "rts_open_max": 0}
    app = make_app(backend=backend, rts_propagate_deadline=True, **own)
    sent: dict[str, float] = {}

    def catch(sender: Any = None, headers: Any = None, **_: Any) -> None:
        if "rts_deadline" in headers:
            sent[str(sender)] = headers["rts_deadline"] - headers["rts_arrival"]

    def nothing() -> None: ...

    first, last = (app.task(nothing, name=name, shared=False) for name in ("first", "last"))
    before_task_publish.connect(catch, weak=False, dispatch_uid="catch")
    try:
        chord([first.si(), first.si()], last.si(), app=app).apply_async()
    finally:
        before_task_publish.disconnect(dispatch_uid="catch")
    assert sent == {"first": pytest.approx(40 if native else 20)}


def test_countdowns_and_etas_within_a_chain_extend_its_deadline() -> None:
    p = planner(
        propagate_deadline=True,
        priority_multipliers={3: 1.5},
        taus=Taus(a=5.0, b=7.0, c=11.0),
    )

    def due(*follow: Any) -> float:
        body = ((), {}, {"chain": [dict(each) for each in reversed(follow)]})
        return p.plan_message("a", {"id": "1", "task": "a"}, None, None, body).deadline - NOW

    later = signature("b").set(countdown=60)
    assert due(later, signature("c")) == pytest.approx(10 + 60 + 14 + 22)
    assert due(signature("b").set(eta=iso(NOW + 3600))) == pytest.approx(3600 + 14)
    assert due(signature("b").set(eta=iso(NOW + 5))) == pytest.approx(10 + 14)
    assert due(signature("b").set(countdown=-60)) == pytest.approx(10 + 14)
    assert due(signature("b").set(countdown=1e300)) + NOW == MAX_INSTANT
    assert due(group(later, signature("c"))) == pytest.approx(10 + 60 + 14)
    assert due(signature("b").set(priority=3)) == pytest.approx(10 + 1.5 * 7)
    # An eta of a member is an instant; it does not add to the time of the others.
    asked = signature("b").set(headers={"sla_deadline": NOW + 15})
    assert due(asked) == pytest.approx(15)
    assert due(asked, signature("c")) == pytest.approx(15 + 22)
    never = signature("b").set(countdown=1e300)
    assert due(never, never) <= MAX_INSTANT - NOW


def test_a_task_that_runs_after_its_parents_deadline_has_its_own() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0))
    parent: dict[str, Any] = {"id": "p", "task": "a"}
    p.plan_message("a", parent, None, None)  # due after 10 s

    def due(eta: str | None) -> float:
        return p.plan_message("a", {"id": "c", "eta": eta}, None, parent).deadline - NOW

    assert due(iso(NOW + 60)) == 60 + 10
    assert due(iso(NOW + 4)) == 10
    assert due(None) == 10
    parent["rts_deadline"] = NOW - 3.0
    assert due(None) == -3, "of a parent that is late, too"


def test_children_are_bounded_by_their_parent_only_if_configured() -> None:
    parent: dict[str, Any] = {"id": "p", "task": "a"}
    planner(taus=Taus(a=5.0)).plan_message("a", parent, None, None)
    for propagate, due in ((False, 80.0), (True, 10.0)):
        p = planner(propagate_deadline=propagate, taus=Taus(child=40.0))
        plan = p.plan_message("child", {"id": "c"}, None, parent)
        assert plan.deadline == NOW + due
        assert plan.tau == 40.0


def test_a_parent_without_a_valid_plan_shares_no_deadline() -> None:
    parent = {"id": "p", "task": "a", "rts_next": "c", "rts_deadline": "soon"}
    p = planner(propagate_deadline=True, taus=Taus(child=40.0))
    assert p.plan_message("child", {"id": "c"}, None, parent).deadline == NOW + 80.0


_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "task",
                    "kwargs",
                    "options",
                    "tasks",
                    "header",
                    "body",
                    "chain",
                    "chord",
                    "headers",
                    "task_id",
                ]
            ),
            inner | st.sampled_from(["celery.chain", "celery.group", "celery.chord"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(body=st.tuples(_JSON, _JSON, _JSON) | _JSON)
def test_any_body_is_tolerated(body: Any) -> None:
    plan = planner(propagate_deadline=True).plan_message("a", {"id": "1"}, None, None, body)
    assert plan.deadline >= NOW


def test_members_that_are_no_signatures_add_no_time() -> None:
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0))
    among = [None, 5, dict(signature("b"))]
    for canvas in (
        {"task": "celery.group", "kwargs": {"tasks": among}},
        {"task": "celery.chain", "kwargs": {"tasks": among}},
        {"task": "celery.chord", "kwargs": {"header": among, "body": "x"}},
        {"task": "b", "kwargs": 5, "options": "x"},
    ):
        body = ((), {}, {"chain": [None, canvas, 5]})
        assert p.plan_message("a", {"id": "1"}, None, None, body).deadline == NOW + 10 + 14
    for tasks in ([], None, 5):
        body = ((), {}, {"chain": [{"task": "celery.group", "kwargs": {"tasks": tasks}}]})
        assert p.plan_message("a", {"id": "1"}, None, None, body).deadline == NOW + 10


def test_canvas_that_is_nested_too_deeply_adds_no_time() -> None:
    nested = dict(signature("b"))
    for _ in range(5000):
        nested = {"task": "celery.chain", "kwargs": {"tasks": [nested]}}
    p = planner(propagate_deadline=True, taus=Taus(a=5.0, b=7.0))
    plan = p.plan_message("a", {"id": "1"}, None, None, ((), {}, {"chain": [nested]}))
    assert plan.deadline == NOW + 10


@pytest.mark.parametrize(("asked", "sent"), [(None, 5), (3, 3)])
def test_a_requested_priority_is_left_as_it_is(
    make_app: MakeApp, asked: int | None, sent: int
) -> None:
    nobody = "redis://127.0.0.1:1"
    app = make_app(rts_scheduler="priority", rts_redis_url=nobody, rts_open_max=0)
    caught: list[Any] = []

    def catch(properties: Any = None, **_: Any) -> None:
        caught.append(properties["priority"])

    before_task_publish.connect(catch, weak=False, dispatch_uid="catch")
    try:
        app.send_task("a", priority=asked)
    finally:
        before_task_publish.disconnect(dispatch_uid="catch")
    assert caught == [sent]


@given(
    laxities=st.lists(st.floats(0, 1e9), min_size=2, max_size=2),
    inverted=st.booleans(),
    highest=st.integers(1, 255),
)
def test_less_laxity_is_never_less_urgent(
    laxities: list[float], inverted: bool, highest: int
) -> None:
    soon, late = (level(s, inverted=inverted, highest=highest) for s in sorted(laxities))
    assert soon <= late if inverted else soon >= late
    hopeless = level(-1.0, inverted=inverted, highest=highest)
    assert hopeless == (highest if inverted else 0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.lognormvariate(0, 0.3),
        lambda rng: rng.lognormvariate(0, 1.2),
        lambda rng: rng.choice([0.1, 0.1, 0.1, 3.0]) * rng.uniform(0.9, 1.1),
        lambda rng: rng.paretovariate(2.0),
    ],
    ids=["lognormal", "wide", "bimodal", "heavy"],
)
@pytest.mark.parametrize("q", [0.9, 0.95])
def test_the_learned_quantile_covers_the_share_that_was_set(draw: Any, q: float) -> None:
    rng = random.Random(5)
    sketch, tau, met, n = Sketch(), 10.0, 0, 20_000
    ratios: dict[str, float] = {}
    for number in range(n):
        x = draw(rng)
        if number % 20 == 0:
            ratios = learned_ratios(q, {"mixed": sketch})
        if number >= 100:
            met += x <= ratios["mixed"] * tau
        sketch.update(x / tau)
        tau = 0.2 * x + 0.8 * tau
    assert met / (n - 100) == pytest.approx(q, abs=0.01)


def test_types_with_few_runs_use_the_pooled_ratios() -> None:
    young, pool = Sketch(), Sketch()
    assert learned_ratios(0.95, {"mixed": young, POOL: pool}) == {}
    for _ in range(OWN_RUNS - 1):
        young.update(2.0)
    for _ in range(POOL_RUNS):
        pool.update(3.0)
    assert learned_ratios(0.95, {"mixed": young, POOL: pool}) == {
        POOL: pytest.approx(3.0, rel=0.05)
    }
    young.update(2.0)
    assert learned_ratios(0.95, {"mixed": young})["mixed"] == pytest.approx(2.0, rel=0.05)
    for _ in range(100):
        young.update(1e9)
    assert learned_ratios(0.95, {"mixed": young})["mixed"] == MAX_LEARNED
    for _ in range(10_000):
        young.update(0.0)
    assert learned_ratios(0.95, {"mixed": young})["mixed"] == MIN_LEARNED


def test_a_learned_k_is_sent_along_and_a_set_one_wins() -> None:
    p = planner(deadline_policy="quantile", taus=Taus(a=5.0, ratio=4.0))
    headers: dict[str, Any] = {"id": "1"}
    plan = p.plan_message("a", headers, None, None)
    assert plan.deadline == NOW + 20
    assert (headers["rts_k"], headers["rts_policy"]) == (4.0, "quantile")
    assert read_plan(headers, TYPES) == plan
    headers["rts_k"] = math.inf
    assert read_plan(headers, TYPES) is None
    by_hand = p.plan_message("a", {"id": "2", "sla_multiplier": 1.5}, None, None)
    assert by_hand.deadline == NOW + 7.5
    unknown = planner(deadline_policy="quantile", taus=Taus(a=5.0))
    assert unknown.plan_message("a", {"id": "3"}, None, None).deadline == NOW + 10
