"""What publishing decides: type, tau, k, arrival, deadline."""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rts import health
from rts.deadlines import MAX_INSTANT
from rts.headers import read_plan, write_plan
from rts.lifecycle.planning import Planner
from rts.lifecycle.replacements import NESTING, OWED, due_at, replaces, succeeds
from rts.settings import Settings
from tests.planning import NOW, StoppedClock, Taus, planner

OUT = {"task_type", "rts_tau", "rts_k", "rts_arrival", "rts_deadline", "rts_type_source"}


class Recorded(Taus):
    """Records which fields it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def tau(self, task_type: str, name: str) -> float:
        self.asked.append(f"{task_type}/{name}")
        return super().tau(task_type, name)


def published(
    p: Planner, *, name: str = "app.task", current: Any = None, **headers: Any
) -> Any:
    message = {"id": "1", "task": name, "eta": None, "retries": 0, **headers}
    p.plan_message(name, message, headers.get("priority"), current)
    return message


def test_the_floor_binds_for_tiny_tasks() -> None:
    headers = published(planner(taus=Taus(tiny=0.01)), name="tiny")
    assert headers["rts_deadline"] == NOW + (0.01 + 1.0)
    headers = published(planner(taus=Taus(tiny=0.01), min_slack=0), name="tiny")
    assert headers["rts_deadline"] == NOW + 2.0 * 0.01


@pytest.mark.parametrize(
    ("resources", "task_type"),
    [
        ({"req_gpu": 3, "req_cpu": 5}, "gpu-training"),
        ({"req_gpu": 3, "req_cpu": 4}, "gpu-inference"),
        ({"req_gpu": 2, "req_cpu": 5}, "gpu-inference"),
        ({"req_memory": 8.1, "req_cpu": 8}, "memory-heavy"),
        ({"req_memory": 8, "req_cpu": 4.5}, "cpu-heavy"),
        ({"req_cpu": "0.5"}, "cpu-light"),
        ({"req_storage": 500}, "mixed"),
        ({}, "mixed"),
    ],
)
def test_a_type_is_inferred_from_resources(resources: dict[str, Any], task_type: str) -> None:
    headers = published(planner(), **resources)
    assert (headers["task_type"], headers["rts_type_source"]) == (task_type, "inferred")


def test_a_header_takes_precedence_over_the_tasks_settings() -> None:
    p = planner({"task_type": "cpu-heavy", "sla_multiplier": 1.6})
    headers = published(p)
    assert (headers["task_type"], headers["rts_type_source"]) == ("cpu-heavy", "task")
    assert headers["rts_k"] == 1.6
    headers = published(p, task_type="mixed", sla_multiplier=2.4)
    assert (headers["task_type"], headers["rts_type_source"]) == ("mixed", "explicit")
    assert headers["rts_k"] == 2.4
    assert published(p, sla_multiplier="1.75")["rts_k"] == 1.75


@pytest.mark.parametrize(
    ("options", "k", "count"),
    [({"a": 1, "b": 2, "sla_multiplier": 1.6}, 1.6, 2), ("mixed", 2.0, 1)],
)
def test_an_unknown_option_of_a_task_is_refused_alone(
    options: Any, k: float, count: int
) -> None:
    headers = published(planner(options))
    assert headers["rts_k"] == k
    assert health.take_counts() == {"refused_task_option": count}


def test_the_options_of_a_task_count_from_when_it_is_registered() -> None:
    known: dict[str, Any] = {}
    p = Planner(Settings(), Taus(), StoppedClock(), known.get)
    assert published(p)["task_type"] == "mixed"
    known["app.task"] = {"task_type": "cpu-heavy"}
    assert published(p)["task_type"] == "cpu-heavy"


class Kind(str, Enum):
    GPU = "gpu-inference"


@pytest.mark.parametrize("how", ["header", "option"])
def test_a_type_may_be_a_member_of_an_enum(how: str) -> None:
    asked = {"task_type": Kind.GPU}
    taus = Recorded()
    p = planner(asked if how == "option" else None, taus)
    headers = published(p, **(asked if how == "header" else {}))
    assert type(headers["task_type"]) is str
    assert taus.asked == ["gpu-inference/app.task"]


def test_resources_of_header_and_task_add_up() -> None:
    headers = published(planner({"req_gpu": 4}), req_cpu=8)
    assert headers["task_type"] == "gpu-training"
    headers = published(planner({"req_gpu": 4}), req_gpu=0, req_cpu=8)
    assert headers["task_type"] == "cpu-heavy", "the same one: the header's"


def test_an_unknown_type_is_inferred_over_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    health.take_counts()
    p = planner()
    for _ in range(3):
        headers = published(p, task_type="no-such-type-7", req_gpu=1)
        assert (headers["task_type"], headers["rts_type_source"]) == (
            "gpu-inference",
            "inferred",
        )
    assert health.take_counts() == {"refused_task_type": 3}
    (told,) = (message for message in caplog.messages if "no-such-type-7" in message)
    assert all(name in told for name in Settings().task_types), "it says which there are"


def test_the_name_of_a_task_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    name = "x\n[00:00:00: CRITICAL/MainProcess] forged \x1b[31m\u202e" + "y" * 1_000_000
    planner().plan(name, {"task_type": "none", "eta": "soon"}, None, "received")
    assert [message.isprintable() for message in caplog.messages] == [True, True]
    assert max(map(len, caplog.messages)) < 500


def test_refused_values_silence_no_other_warning(caplog: pytest.LogCaptureFixture) -> None:
    p = planner()
    for n in range(health.MAX_DISTINCT_WARNINGS + 10):
        published(p, sla_deadline=f"soon {n}")
    assert len(caplog.records) == health.MAX_DISTINCT_WARNINGS
    health.warn_once("lost", "a record is lost")
    assert caplog.messages[-1] == "a record is lost"


def test_k_by_call_task_priority_type_and_default() -> None:
    settings = {
        "sla_multiplier": 1.9,
        "priority_multipliers": {9: 1.5},
        "task_types": {"video": {"tau": 30, "sla_multiplier": 2.5}},
    }
    p = planner(**settings)
    assert published(p)["rts_k"] == 1.9
    assert published(p, task_type="video")["rts_k"] == 2.5
    assert published(p, task_type="video", priority=9)["rts_k"] == 1.5
    assert published(p, priority=9, sla_multiplier=1.7)["rts_k"] == 1.7
    assert published(planner({"sla_multiplier": 1.8}, **settings), priority=9)["rts_k"] == 1.8
    urgent = IntEnum("Priority", {"URGENT": 9}).URGENT
    assert published(p, priority=urgent)["rts_k"] == 1.5


@pytest.mark.parametrize("priority", [0, None])
def test_a_message_without_a_priority_is_sent_with_0(priority: int | None) -> None:
    p = planner(priority_multipliers={0: 2.5, 9: 1.5})
    assert published(p, priority=priority)["rts_k"] == 2.5


def test_an_eta_that_cannot_be_read_is_none() -> None:
    assert published(planner(), eta="soon")["rts_arrival"] == NOW


def test_a_message_with_an_eta_tells_when_it_was_published() -> None:
    p, eta = planner(), "2099-01-01T00:00:00+00:00"
    first = published(p, eta=eta)
    assert first["rts_published"] == NOW
    retry = published(p, current=first, eta=eta, retries=1)
    assert "rts_published" not in retry, "it was published before"
    copied = {**first, "id": "2", "eta": None, "rts_published": NOW - 9}
    assert "rts_published" not in published(p, current=first, **copied)


@pytest.mark.parametrize("given", [NOW + 7, str(NOW + 7), "2027-01-15T08:00:07Z"])
def test_a_requested_deadline_overrides_the_formula(given: Any) -> None:
    assert published(planner(), sla_deadline=given)["rts_deadline"] == NOW + 7
    p = planner({"sla_deadline": given})
    assert published(p)["rts_deadline"] == NOW + 7
    assert published(p, sla_deadline=NOW + 8)["rts_deadline"] == NOW + 8


def test_a_retry_keeps_its_plan_whatever_happened_to_the_headers() -> None:
    p = planner()
    first = published(p, task_type="cpu-light")
    for lost in ({}, {"headers": {"trace": "x"}}, {"task_type": "mixed"}):
        retry = published(p, current=first, retries=1, **lost)
        assert {k: retry[k] for k in OUT} == {k: first[k] for k in OUT}


def test_a_retry_that_is_published_outside_of_its_task_keeps_the_plan_in_its_headers() -> None:
    p = planner()
    first = {**published(p, task_type="cpu-light"), "rts_arrival": NOW - 50}
    for current in (None, {"id": "2"}):
        retry = published(p, current=current, **{**first, "retries": 1})
        assert {k: retry[k] for k in OUT} == {k: first[k] for k in OUT}


def test_a_task_that_replaces_itself_is_new() -> None:
    p = planner()
    first = published(p, task_type="cpu-light", sla_deadline=NOW - 5)
    again = published(p, current=first, replaced_task_nesting=1)
    assert (again["task_type"], again["rts_deadline"]) == ("mixed", again["rts_arrival"] + 20)
    assert due_at(again) is None, "its own deadline decides"
    # A retry of the replacement keeps its plan.
    retry = published(p, current=again, replaced_task_nesting=1, retries=1)
    assert {k: retry[k] for k in OUT} == {k: again[k] for k in OUT}


def test_a_replacement_and_a_child_are_new_work() -> None:
    p = planner()
    parent = {**published(p, task_type="cpu-light"), "rts_arrival": NOW - 50}
    replacement = published(p, name="other.task", current=parent)
    assert replacement["rts_arrival"] == NOW
    more = {"rts_arrival_source": "received", "rts_policy": "quantile"}
    child = published(p, current=parent, **{**parent, "id": "2", **more})
    assert child["rts_arrival"] == NOW
    assert child.keys().isdisjoint(more)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sla_multiplier", value) for value in (1.49, 2.51, "two")),
        *(("sla_deadline", value) for value in (0, "soon")),
        *(("req_gpu", value) for value in (-1, 1e10, "many")),
    ],
)
def test_a_value_that_is_refused_is_counted_and_changes_nothing(name: str, value: Any) -> None:
    usual = published(planner())
    headers = published(planner(), **{name: value})
    assert {k: headers[k] for k in OUT} == {k: usual[k] for k in OUT}
    assert health.take_counts() == {f"refused_{name}": 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("sla_multiplier", 1.5), ("sla_multiplier", 2.5)),
        *(("req_gpu", 0), ("sla_deadline", "9999-12-31T23:59:59Z")),
    ],
)
def test_a_value_at_the_end_of_its_range_is_taken(name: str, value: Any) -> None:
    published(planner(), **{name: value})
    assert not health.take_counts()


@pytest.mark.parametrize(
    "deadline",
    [
        *("2027-01-15T08:01:00", "2027-01-15T10:01:00+02:00", "2027-01-15T08:01:00Z"),
        datetime(2027, 1, 15, 8, 1),  # noqa: DTZ001  as apps pass it
        datetime(2027, 1, 15, 8, 1, tzinfo=timezone.utc),
    ],
)
def test_a_time_without_a_zone_is_utc_wherever_the_machine_is(
    monkeypatch: pytest.MonkeyPatch, deadline: object
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Elsewhere-9")
        time.tzset()
        headers = published(planner(), sla_deadline=deadline)
    time.tzset()
    assert headers["rts_deadline"] == NOW + 60


def test_a_value_that_is_refused_counts_once_if_an_inner_dict_repeats_it() -> None:
    health.take_counts()
    published(planner(), task_type="nope", headers={"task_type": "nope", "req_cpu": -1})
    assert health.take_counts() == {"refused_task_type": 1, "refused_req_cpu": 1}


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.text(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["x" * 1_000_000, "a\x00b", "a.b", "$where", "NaN", "1e999", "9" * 400]),
    st.sampled_from([10**400, -(10**400), math.nan, math.inf, 253402300800]),
)


HEADERS = (
    *("task_type", "req_cpu", "req_memory", "req_gpu", "req_storage", "sla_multiplier"),
    *("sla_deadline", "eta", "headers", "retries", "rts_deadline", "rts_tau", "rts_k"),
    *("rts_arrival", "rts_type_source", "rts_arrival_source"),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(HEADERS, HOSTILE)), HOSTILE)
@example({"eta": "9999-12-31T23:59:59+00:00"}, None)
def test_whatever_strangers_send_the_plan_is_valid(
    headers: dict[str, Any], priority: Any
) -> None:
    message = {"id": "1", "task": "app.task", **headers}
    p = planner({"task_type": headers.get("task_type")}, priority_multipliers={9: 1.5})
    p.plan_message("app.task", message, priority, None)
    plan = read_plan(message, Settings().task_types)
    assert plan.task_type in Settings().task_types
    assert 1.5 <= plan.k <= 2.5
    assert 0 < plan.deadline <= MAX_INSTANT
    assert all(len(str(message[name])) < 100 for name in OUT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("task_type", value) for value in ("no-such-type", None, 7)),
        *(("rts_tau", value) for value in (0.0, -1.0, 1e9, math.nan, "5", 5, None)),
        *(("rts_k", value) for value in (1.49, 2.51, math.nan, "2")),
        *(("rts_arrival", value) for value in (0.0, MAX_INSTANT + 1, math.nan, None)),
        *(("rts_deadline", value) for value in (0.0, MAX_INSTANT + 1, math.inf, "9e9")),
    ],
)
def test_a_plan_with_an_impossible_value_is_refused_whole(
    caplog: pytest.LogCaptureFixture, name: str, value: Any
) -> None:
    message = {**published(planner()), name: value}
    assert read_plan(message, Settings().task_types) is None
    assert health.take_counts() == {"refused_plan": 1}
    assert f"does not know ({message['task_type']!r})" in caplog.text


def test_a_message_without_a_plan_is_no_strange_one() -> None:
    assert read_plan({"task_type": "mixed"}, Settings().task_types) is None
    assert not health.take_counts()


def test_what_a_plan_may_hold_is_read() -> None:
    for k, policy in ((1.5, None), (2.5, None), (1.0, "quantile"), (50.0, "quantile")):
        most = {"rts_tau": 9e8, "rts_k": k, "rts_policy": policy, "rts_deadline": MAX_INSTANT}
        plan = read_plan(published(planner()) | most, Settings().task_types)
        assert (plan.tau, plan.k, plan.deadline) == (9e8, k, MAX_INSTANT)
        assert plan.arrival_source == "published"
    strange = {"rts_tau": 1e-6, "rts_type_source": ["x"], "rts_arrival_source": "received"}
    plan = read_plan(published(planner()) | strange, Settings().task_types)
    assert plan.tau == 1e-6
    assert (plan.type_source, plan.arrival_source) == ("inferred", "received")
    for k in (0.99, 50.1):
        learned = {"rts_k": k, "rts_policy": "quantile"}
        assert read_plan(published(planner()) | learned, Settings().task_types) is None


@given(
    st.dictionaries(st.sampled_from([*sorted(OUT), "rts_arrival_source"]), HOSTILE, min_size=1)
)
def test_a_forged_plan_is_sound_or_refused(forged: dict[str, Any]) -> None:
    plan = read_plan(published(planner()) | forged, Settings().task_types)
    if plan is not None:
        again: dict[str, Any] = {}
        write_plan(again, plan)
        assert read_plan(again, Settings().task_types) == plan


def canvas_message(id_: str, **embedded: Any) -> tuple[dict[str, Any], Any]:
    return {"id": id_}, ((), {}, {"chain": None, "chord": None, **embedded})


def in_turn(p: Planner, first: dict[str, Any], *ids: str, **headers: Any) -> dict[str, Any]:
    """Return the headers of the last member of a chain that replaced *first*."""
    current = first
    for n, task_id in enumerate(ids):
        own, body = canvas_message(task_id, chain=[{}] * (len(ids) - n - 1))
        own |= {"replaced_task_nesting": 1} | (headers if n == len(ids) - 1 else {})
        p.plan_message("member", own, None, current, body)
        current = own
    return current


def test_the_last_member_of_a_chain_that_replaces_a_task_is_due_when_the_task_was() -> None:
    p = planner()
    first = published(p, task_type="cpu-light", sla_deadline=NOW + 70)
    last = in_turn(p, first, "2", "3", "1")
    assert due_at(last) == NOW + 70
    # Its message has the deadline of the formula, as every message has.
    arrival = last["rts_arrival"]
    assert (last["rts_deadline"], last["task_type"]) == (arrival + 2 * 10, "mixed")
    assert arrival > first["rts_arrival"]
    # Its retry keeps all of it; what else it publishes is independent.
    retry = {"id": "1", "replaced_task_nesting": 1, "retries": 1}
    p.plan_message("member", retry, None, last)
    assert {k: retry[k] for k in (*OUT, OWED)} == {k: last[k] for k in (*OUT, OWED)}
    child, body = canvas_message("4", chain=[{}])
    p.plan_message("child", child, None, last, body)
    assert (child["rts_deadline"], OWED in child) == (NOW + 20, False)
    # A requested deadline takes precedence.
    own = in_turn(p, first, "2", "1", sla_deadline=NOW + 7)
    assert (own["rts_deadline"], due_at(own)) == (NOW + 7, None)
    assert due_at(in_turn(p, first, "2", "1", sla_deadline="soon")) == NOW + 70, "refused"


def test_a_message_that_nothing_follows_carries_nothing() -> None:
    p = planner()
    first = published(p)
    member, body = canvas_message("2", chord={"task": "body"})
    member["replaced_task_nesting"] = 1
    p.plan_message("member", member, None, first, body)
    assert member[OWED].endswith(" 1")
    child, body = canvas_message("3")
    p.plan_message("child", child, None, member, body)
    assert OWED not in child


@pytest.mark.parametrize(
    ("owed", "kept"),
    [
        ("1 1 1", True),
        *((invalid, False) for invalid in (None, 7, "", "1", "x y 1", "nan nan 1", ["1 1 1"])),
        *((invalid, False) for invalid in ("-1 -1 1", "1 1e300 1", "1 1 1\n" + "9" * 10_000)),
    ],
)
def test_an_invalid_header_of_replacements_is_ignored(owed: Any, kept: bool) -> None:
    message = {"id": "1"}
    planner().plan_message("member", message, None, {"id": "2", OWED: owed})
    assert (OWED in message) is kept
    assert message["rts_deadline"] == NOW + 20


@pytest.mark.parametrize("nesting", [None, "1", [1]])
def test_an_invalid_nesting_is_no_replacement(nesting: Any) -> None:
    retried = {"id": "1", NESTING: nesting}
    assert not replaces(retried, retried)


def test_nested_replacements() -> None:
    p = planner()
    outer = published(p, sla_deadline=NOW + 70)
    inner, body = canvas_message("2", chain=[{}])
    inner["replaced_task_nesting"] = 1
    p.plan_message("inner", inner, None, outer, body)
    # The inner one is replaced as well: its last member continues the outer chain.
    begins, body = canvas_message("3", chain=[{}, {}])
    begins["replaced_task_nesting"] = 2
    p.plan_message("member", begins, None, inner, body)
    ends, body = canvas_message("2", chain=[{}])
    ends["replaced_task_nesting"] = 2
    p.plan_message("member", ends, None, begins, body)
    assert due_at(ends) == inner["rts_deadline"]
    last, body = canvas_message("1")
    p.plan_message("last", last, None, ends, body)
    assert due_at(last) == NOW + 70
    assert succeeds(last)


def test_a_replacement_arrives_later_whatever_the_clocks_say() -> None:
    p = planner()
    first = published(p, eta="2099-01-01T00:00:00+00:00")
    again = published(p, current=first, replaced_task_nesting=1)
    assert again["rts_arrival"] > first["rts_arrival"] + 0.001
    last = in_turn(p, first, "2", "1")
    assert last["rts_arrival"] > first["rts_arrival"] + 0.001
