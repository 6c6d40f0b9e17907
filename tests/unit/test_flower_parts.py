"""Parts of the Flower tab that need no Flower: cache, charts, timeline, templates."""

from __future__ import annotations

import asyncio
import math
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

import pytest

from rts import health
from rts.errors import StoreUnavailable
from rts.flower import cache as module
from rts.flower import charts, page_parts, source, templates, words
from rts.flower.cache import Answer, AnswerCache
from rts.flower.filters import BadFilter, Filters
from rts.flower.history import Moment
from rts.flower.page_parts import name_rows
from rts.flower.pages import REASONS, Pages
from rts.flower.templates import navbar, task_page
from rts.flower.timeline import MAX_RUNS, timeline
from rts.ledger.connection import connect
from rts.settings import Settings
from rts.unfinished.heartbeat import Heartbeat
from rts.views.fleet_state import Vitals
from rts.views.histogram import bucket
from rts.views.json_values import plain
from rts.views.problems import MAX_QUEUES, queue_problems
from rts.views.queue_state import QueueState
from rts.views.report import row_of
from rts.views.series import Point
from rts.views.status import RedisState, ServerState
from rts.views.tally import Tally
from tests.conftest import printed
from tests.records import run as record

T = TypeVar("T")

NOON = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


# --- cache --------------------------------------------------------------------------


def found_by(look: Callable[[AnswerCache], Awaitable[T]]) -> T:
    """Return what *look* finds with a cache of its own."""

    async def run() -> T:
        answers = AnswerCache()
        try:
            return await look(answers)
        finally:
            answers.close()

    return asyncio.run(run())


def test_many_viewers_cost_one_query() -> None:
    asked = []

    class Asks:
        def double(self, number: int) -> int:
            asked.append(number)
            return 2 * number

    asks = Asks()

    async def look(answers: AnswerCache) -> list[Answer]:
        return await asyncio.gather(*(answers.get(asks.double, n) for n in (21, 4, 21, 4, 21)))

    assert [answer.value for answer in found_by(look)] == [42, 8, 42, 8, 42]
    assert sorted(asked) == [4, 21]


def test_an_answer_is_made_again_once_it_is_not_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_FRESH_S", 0.0)
    monkeypatch.setattr(module, "FRESH_FACTOR", 0.0)
    monkeypatch.setattr(module, "STALE_PATIENCE_S", 60.0)
    query = iter(range(9)).__next__

    async def look(answers: AnswerCache) -> list[Answer]:
        return [await answers.get(query) for _ in range(3)]

    assert [answer.value for answer in found_by(look)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreUnavailable("Redis is away"), "Redis is away."),
        (KeyError("x"), "rts failed (KeyError)"),
    ],
)
def test_trouble_is_reported(error: Exception, told: str) -> None:
    def fail() -> None:
        raise error

    answer = found_by(lambda answers: answers.get(fail))
    assert answer.value is None
    assert told in str(answer.trouble)
    assert health.take_counts().get("hook_errors", 0) == isinstance(error, KeyError)


@pytest.fixture
def may_end() -> Iterator[threading.Event]:
    """Return what a slow query waits for; a test that fails does not wait for its threads."""
    event = threading.Event()
    yield event
    event.set()


async def answered_late(
    answers: AnswerCache, query: Callable[[], Any], may_end: threading.Event
) -> Answer:
    """Return the answer to *query* while it may not end yet; then let it end."""
    first = await answers.get(query)
    may_end.set()
    await asyncio.wait(list(answers._pending.values()))
    may_end.clear()
    return first


def test_a_slow_answer_is_there_the_next_time(
    monkeypatch: pytest.MonkeyPatch, may_end: threading.Event
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    monkeypatch.setattr(module, "MIN_FRESH_S", 0.0)
    monkeypatch.setattr(module, "FRESH_FACTOR", 0.0)
    results = iter(("new", "newer"))

    def query() -> str:
        may_end.wait(30)
        return next(results)

    async def look(answers: AnswerCache) -> list[Answer]:
        # While a newer one is being made, the old one is shown.
        return [await answered_late(answers, query, may_end), await answers.get(query)]

    first, second = found_by(look)
    assert (first.late, first.value) == (True, None)
    assert (second.late, second.value) == (False, "new")


def test_trouble_is_still_reported_while_a_hanging_server_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, may_end: threading.Event
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.0)

    def query() -> None:
        may_end.wait(30)
        raise StoreUnavailable("Redis hangs")

    async def look(answers: AnswerCache) -> list[Answer]:
        return [await answered_late(answers, query, may_end), await answers.get(query)]

    first, second = found_by(look)
    assert (first.late, first.trouble) == (True, None)
    assert (second.late, second.trouble) == (False, "Redis hangs.")


def test_answers_are_bounded() -> None:
    async def look(answers: AnswerCache) -> int:
        for number in range(module.KEPT + 10):
            await answers.get(str, number)
        await asyncio.sleep(0)
        return len(answers._kept)

    assert found_by(look) <= module.KEPT


def test_pending_queries_are_bounded(
    monkeypatch: pytest.MonkeyPatch, may_end: threading.Event
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)

    async def look(answers: AnswerCache) -> tuple[int, Answer]:
        numbers = range(10 * module.MAX_PENDING)
        await asyncio.gather(*(answers.get(may_end.wait, 30 + n) for n in numbers))
        return len(answers._pending), await answers.get(str)

    open_now, refused = found_by(look)
    assert open_now == module.MAX_PENDING
    assert refused.late


ENDING = """
import asyncio, time
from rts.flower import cache
cache.PATIENCE_S = 0.01
async def look():
    line = cache.AnswerCache()
    ask = lambda number: (print("asked", flush=True), time.sleep(0.5))
    await asyncio.gather(*(line.get(ask, number) for number in range(cache.MAX_PENDING)))
loop = asyncio.new_event_loop()
loop.run_until_complete(look())
"""


def test_the_backlog_is_dropped_when_flower_exits() -> None:
    assert 0 < printed(ENDING).count("asked") <= 3 * module.THREADS


def test_the_first_threads_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    another = threading.Event()

    def slow(*arguments: Any) -> Any:
        made.append(arguments)
        another.wait(0.5)  # nobody sets it: time for others to come
        return connect(*arguments)

    monkeypatch.setattr(source, "connect", slow)
    asks = source.Source(None, Settings())

    def ask() -> None:
        with asks._ledger():
            pass

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asks.close()
    assert len(made) == 1


def test_every_query_says_why_redis_is_not_usable() -> None:
    asks = source.Source(None, Settings(redis_url="redis://127.0.0.1:1/0"))
    told = set()
    for query in (asks.redis, asks.taus, asks.queues):
        with pytest.raises(StoreUnavailable) as caught:
            query()
        told.add(str(caught.value))
    asks.close()
    assert len(told) == 1
    assert "refused" in told.pop()


# --- charts and words ---------------------------------------------------------------


def test_lateness_counts_every_task_and_splits_at_the_deadline() -> None:
    values = [-4.0, -3.0, -0.5, 0.0, 0.5, 2.0, 900.0]
    drawn = charts.lateness({bucket(value): 1 for value in values})
    early, late = (one["values"] for one in drawn["series"])
    assert (sum(early), sum(late)) == (4, 3)
    assert all(x < 0 for x, n in zip(drawn["x"], early, strict=True) if n)
    assert charts.lateness({})["x"] == []
    early_only = charts.lateness({bucket(-100.0): 1, bucket(-90.0): 1})
    assert len(early_only["x"]) <= charts.BINS + 1, "the axis reaches to the deadline"


@pytest.mark.parametrize(("early", "late"), [(995, 5), (5, 995), (1000, 0), (0, 1000)])
def test_lateness_draws_a_rare_miss_as_late(early: int, late: int) -> None:
    buckets = {bucket(-2.0): early, bucket(30.0): late}
    drawn = charts.lateness({number: n for number, n in buckets.items() if n})
    assert [sum(one["values"]) for one in drawn["series"]] == [early, late]


def test_a_chart_of_one_key_and_of_all() -> None:
    points = [
        Moment.of(
            Point(
                at(600 * n),
                600,
                {"a": Tally(verdicts=4, on_time=n, good=n), "b": Tally(verdicts=4)},
            )
        )
        for n in range(3)
    ]
    lines = {s["label"]: s["values"] for s in charts.on_time(points, "a", 0.9)["series"]}
    assert lines["on time"] == [0.0, 0.25, 0.5]
    assert lines["objective"] == [0.9] * 3
    both = {s["label"]: s["values"] for s in charts.verdicts(points)["series"]}
    assert both == {"met": [0, 1, 2], "missed": [8, 7, 6]}
    runs = [{"tau": 2.0, "completed_at": at(601)}, {"tau": 4.0, "completed_at": at(650)}]
    taus = charts.runtimes(points, "a", runs)["series"][-1]["values"]
    assert taus == [None, 3.0, None]


def test_runtimes_and_delays_over_time_are_each_their_own_percentiles() -> None:
    counted = Tally(
        runtime=Counter({bucket(2.0): 9, bucket(60.0): 1}),
        queueing_delay=Counter({bucket(5.0): 9, bucket(30.0): 1}),
    )
    history = [Moment.of(Point(at(0), 600, {"a": counted}))]
    for drawn, expected in (
        (charts.runtimes(history, "a", ()), [2.0, 60.0]),
        (charts.delays(history, "a"), [5.0, 30.0]),
    ):
        found = [series["values"][0] for series in drawn["series"][:2]]
        assert found == pytest.approx(expected, rel=0.05)


def test_slowdowns_leave_out_unknown_values() -> None:
    run = {"runtime_s": 6.0, "tau": 3.0, "load_at_start": {"load": 0.5}, "sla_success": True}
    runs = [
        run,
        {**run, "load_at_start": None},
        {**run, "tau": None},
        {**run, "sla_success": None},
    ]
    drawn = charts.slowdowns(runs)
    assert (drawn["x"], drawn["series"][0]["values"]) == ([0.5], [2.0])
    busy = {**run, "load_at_start": {"load": 3.0}, "sla_success": False}
    bands = charts.bands([run, busy, {**busy, "runtime_s": 300.0}])
    assert [band["runs"] for band in bands] == [0, 0, 1, 0, 0, 2]
    assert bands[-1]["on_time_ratio"] == 0.0
    assert [band["slowdown_p50"] for band in bands] == [None, None, 2.0, None, None, 51.0]
    edges = [{**run, "load_at_start": {"load": load}} for load in (0.0, 0.2, 1.0)]
    assert [band["runs"] for band in charts.bands(edges)] == [1, 1, 0, 0, 0, 1]


def test_words_of_verdicts_and_values() -> None:
    assert words.verdict({"sla_success": None}) == "no verdict yet"
    assert words.verdict({"sla_success": True, "lateness_s": -2.0}) == "met, 2.00\u00a0s early"
    assert words.verdict({"sla_success": False, "cause": "killed"}) == "missed: killed"
    assert (
        words.verdict({"sla_success": False, "lateness_s": 0.25}) == "missed, 250\u00a0ms late"
    )
    assert words.value(None, "count") == words.NONE == words.clock(None)
    shown = [words.value(0.5, unit) for unit in ("ratio", "seconds", "factor")]
    assert shown == ["50.0\u00a0%", "500\u00a0ms", "0.50\u00a0×"]
    for unit in ("ratio", "seconds", "factor"):
        assert words.value(math.nan, unit) == words.value(math.inf, unit) == words.NONE
    assert words.clock(at(0.25), exact=True) == "2030-01-01 12:00:00.250"


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_stand_out_from_their_background(theme: int) -> None:
    style = (templates.FOLDER.parent / "static" / "rts.css").read_text()
    block = re.findall(r"\.rts-body \{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--rts-([a-z-]+): #([0-9a-f]{6});", block))

    def luminance(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    least = {"text": 4.5, "muted": 4.5, "link": 4.5, "bad": 4.5}
    least |= {"met": 3.0, "second": 3.0, "missed": 3.0, "tau": 3.0, "target": 3.0}
    for name, ratio in least.items():
        low, high = sorted((luminance(name), luminance("surface")))
        assert (high + 0.05) / (low + 0.05) >= ratio, name


# --- one task -----------------------------------------------------------------------


def test_a_task_on_its_timeline() -> None:
    task = {"arrival": at(0), "deadline": at(10), "completed_at": at(20), "sla_success": False}
    runs = [
        {**task, "started_at": at(2), "completed_at": at(5), "sla_success": None},
        {**task, "started_at": at(8)},
        {**task, "started_at": None},
        {**task, "started_at": at(8), "completed_at": at(9), "cause": "killed"},
    ]
    drawn = timeline(task, runs)
    assert drawn["span_s"] == 20
    first, second, killed = drawn["bars"]
    assert first["waits_at"] < first["starts_at"] < first["ends_at"] == second["waits_at"]
    assert (first["missed"], second["missed"], killed["missed"]) == (False, True, True)
    assert [mark["label"] for mark in drawn["marks"]] == ["arrival", "deadline"]
    # Of 94 %, between two margins.
    assert [mark["at"] for mark in drawn["marks"]] == [3.0, 50.0]
    assert second["ends_at"] == 97.0
    just = {**task, "started_at": at(8), "completed_at": at(10)}
    (in_time,) = timeline(None, [just])["bars"]  # type: ignore[index]  # it is drawn
    assert not in_time["missed"]
    without = timeline(None, [{**just, "deadline": None}])
    assert [mark["label"] for mark in without["marks"]] == ["arrival"]
    assert not without["bars"][0]["missed"]
    polls = [{**task, "started_at": at(n), "completed_at": at(n + 0.5)} for n in range(45)]
    many = timeline(task, polls)
    assert len(many["bars"]) == MAX_RUNS
    assert many["bars"][-1]["ends_at"] == 97.0, "the last run is among them"


@pytest.mark.parametrize(
    "task", [None, {}, {"arrival": at(0)}, {"arrival": at(0), "deadline": at(0)}]
)
def test_nothing_to_draw(task: Any) -> None:
    assert timeline(task, []) is None


# --- filters and templates ----------------------------------------------------------


def test_filters_are_read_and_written() -> None:
    given = {"since": " 90s ", "type": "a&b", "name": "x" * 5000}
    filters = Filters.of(given.get)
    assert (filters.duration, filters.task_type) == (timedelta(seconds=90), "a&b")
    assert len(str(filters.name)) == 1024
    assert filters.query(name=None) == "since=90s&type=a%26b"
    for wrong in ("", " ", "soon", "1s", "2030-01-01", "9" * 400 + "d"):
        if wrong.strip():
            with pytest.raises(BadFilter):
                Filters.of({"since": wrong}.get)


def test_flowers_templates_are_extended_only_where_they_are_recognized() -> None:
    assert navbar("<ul></ul>") is None
    assert task_page("nothing") is None
    assert task_page("{% end %}more") is None
    old = '<li>\n<a class="nav-link text-dark" href="{{ reverse_url(\'broker\') }}">B</a></li>'
    assert "text-dark" in str(navbar(old)).split("</li>")[1]


def test_an_unexpected_template_is_left_as_it_is(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "navbar.html").write_text("<ul></ul>")
    loader = templates.TabLoader(str(tmp_path))
    assert loader.load("navbar.html").generate() == b"<ul></ul>"
    assert "navbar.html of this Flower is not as expected" in caplog.text


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"trouble": ["MongoDB is away"]}, "MongoDB is away"),
        ({"counting": True}, "Not known yet"),
        ({}, "No verdict yet"),
    ],
)
def test_flowers_page_of_a_task_tells_what_is_not_known(
    facts: dict[str, Any], told: str
) -> None:
    page = templates.TabLoader("").load("rts/task_facts.html")
    handler = SimpleNamespace(settings={"rts_tab": SimpleNamespace(themed=True)})
    shown = page.generate(
        rts={"trouble": [], "counting": False, "task": None, "task_id": "x", **facts},
        handler=handler,
        reverse_url=lambda *_: "/rts/task/x",
    )
    assert told in shown.decode()


def test_the_tasks_that_miss_most_come_first() -> None:
    counted = {"a": (9, 0), "b": (5, 1), "c": (20, 3), "d": (12, 0), "e": (9, 0)}
    rows = [
        row_of(name, Tally(verdicts=n, misses=Counter(late=late) if late else Counter()))
        for name, (n, late) in counted.items()
    ]
    shown = name_rows(Filters(), rows, (), ())
    assert [(row["key"], row["missed"]) for row in shown] == [
        *(("c", 3), ("b", 1), ("d", 0), ("a", 0), ("e", 0))
    ]


@pytest.mark.parametrize(
    ("slo", "ran", "drawn"),
    [
        ({"*": 0.95}, [], 0.95),
        ({"mixed": 0.5, "*": 0.95}, [], None),
        ({"mixed": 0.5, "*": 0.95}, ["mixed"], 0.5),
        ({"mixed": 0.5, "*": 0.95}, ["mixed", "cpu-light"], None),
        ({"mixed": 0.5, "proj.x": 0.9}, [], 0.9),
    ],
)
def test_the_chart_of_a_task_has_its_objective_where_that_is_certain(
    slo: dict[str, float], ran: list[str], drawn: float | None
) -> None:
    settings = Settings.from_conf({"rts_slo": slo}, environ={})
    counted = source.Counted((NOON, at(600)), [], [Moment(0.0, 600, {})], {})
    runs = [{"task_type": task_type} for task_type in ran]
    found = page_parts.charts_of(settings, "name", "proj.x", counted, (), runs)[-1]["series"]
    lines = {line["label"]: line["values"] for line in found}
    assert lines.get("objective") == (None if drawn is None else [drawn])


def test_reasons_are_looked_for_of_the_types_that_miss_most() -> None:
    asked: list[tuple[str, ...]] = []

    class Source:
        settings = Settings()

        def reasons(self, since: timedelta, types: tuple[str, ...]) -> dict[str, Any]:
            asked.append(types)
            return {}

    rows = [row_of(f"t{n}", Tally(misses=Counter(late=n))) for n in range(1000)]

    told: Any = Source()  # all that is asked
    found_by(lambda answers: Pages(told, answers)._reasons(timedelta(1), rows))
    assert len(asked) == 1
    assert set(asked[0]) == {f"t{n}" for n in range(1000 - REASONS, 1000)}


def test_queues_are_not_known_before_the_broker_answers(
    monkeypatch: pytest.MonkeyPatch, may_end: threading.Event
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    slow: Any = SimpleNamespace(settings=Settings())
    slow.redis = slow.queues = may_end.wait
    slow.now = lambda: datetime.now(timezone.utc)

    document = found_by(lambda answers: Pages(slow, answers).of("queues", Filters()))
    assert document["counting"]
    assert document["ordered_by_us"] is None


def test_each_worker_has_the_median_of_its_own_runs() -> None:
    rows = [row_of(f"w{n}", Tally()) for n in range(3)]
    runs = [
        {"worker": f"w{n % 2}", "runtime_s": 2.0 * (1 + n % 2), "tau": 2.0} for n in range(10)
    ]
    found = page_parts.workers(None, rows, runs)
    assert [worker["slowdown_p50"] for worker in found] == [1.0, 2.0, None]


def test_the_report_of_a_worker_that_was_restarted_stands_beside_the_live_one() -> None:
    dead, live = (
        Heartbeat(f"w@h/{pid}", 100.0 - age_s, "w@h", {}, "h", pid, 2)
        for pid, age_s in ((1, 60.0), (2, 0.5))
    )
    redis = RedisState(ServerState("redis://r/0", True), Vitals(100.0, workers=(dead, live)))
    found = page_parts.workers(redis, [row_of("w@h", Tally(verdicts=3))], [])
    assert [(w["silent"], w["report"] is not None) for w in found] == [
        (False, True),
        (True, False),
    ]
    assert plain(found[1]["seen_at"]) == "1970-01-01T00:00:40.000Z"


def test_a_large_fleet_shows_its_silent_workers_first_of_all() -> None:
    rows = [{"worker": f"w{n}", "silent": n == 340} for n in range(350)]
    shown = words.foremost([*rows, {"worker": "gone"}], "silent")
    assert len(shown) == words.MAX_ROWS
    assert shown[-1] == rows[340]


def test_pages_name_the_longest_queues_that_nobody_takes_from() -> None:
    worker = Heartbeat("w@h/1", 0.0, "w@h", {}, "h", 1, 2, queues=("taken",))
    vitals = Vitals(1.0, 1, oldest_at=1.0 - 61.2, workers=(worker,))
    redis = RedisState(ServerState("redis://r/0", True), vitals)
    waiting = {"taken": 9, **{f"q{n}": n for n in range(8)}}
    queues = [
        source.QueueSummary(QueueState(name, 0, 0, n, None), 0, 0.0, [])
        for name, n in waiting.items()
    ]
    found = page_parts.problems(Settings(), redis, queues, ledger_up=False)
    assert found[:2] == [
        "The oldest record has been in the outbox for 61 s. It waits for MongoDB.",
        "7 messages in the queue q7, from which no worker with rts takes. Start one with "
        "-Q q7.",
    ]
    assert found[1 + MAX_QUEUES :] == [
        "Messages wait like this in 2 more queues: rts watch shows which."
    ]
    assert page_parts.problems(Settings(), None) == []


@pytest.mark.parametrize(
    ("workers", "scheduler", "hidden"),
    [
        ([False], "edf", True),
        ([True], None, False),
        ([False, True], None, False),
        ([None, False], "edf", True),
        ([None], "edf", False),
        ([None], None, True),
        ([], "edf", False),
        ([], None, True),
    ],
)
def test_messages_in_order_are_hidden_where_no_worker_of_their_queue_sees_the_order(
    workers: list[bool | None], scheduler: Literal["edf"] | None, hidden: bool
) -> None:
    states = [
        Heartbeat(
            *(f"w{n}@h/1", 0.0, f"w{n}@h", {}, "h", 1, 2), queues=("mail",), ordered=ordered
        )
        for n, ordered in enumerate(workers)
    ]
    redis = RedisState(ServerState("redis://r/0", True), Vitals(workers=states))
    queue = QueueState("mail", 1, 1, 0, 9.0)
    found = queue_problems([queue], redis, Settings(scheduler=scheduler))
    assert [problem[:28] for problem in found] == ["2 messages in deadline order"] * hidden


def test_what_is_overdue_is_told_as_by_status_though_no_worker_is_there_to_find_it() -> None:
    redis = RedisState(ServerState("redis://r/0", True), open_tasks=12, overdue_tasks=9)
    state = page_parts.state(Settings(), redis, [])
    assert (state["open"]["tasks"], state["overdue"]) == (12, 9)


def test_without_notes_of_open_tasks_those_that_wait_and_run_are_counted() -> None:
    late = record("late")._replace(deadline=1.0)
    vitals = Vitals(2.0, notes=4, running=[late])
    redis = RedisState(ServerState("redis://r/0", True), vitals)
    queues = [source.QueueSummary(QueueState("q", 5, 6, 7, None), 2, 0.0, [])]
    state = page_parts.state(Settings(open_max=0), redis, queues)
    assert state["open"] == {"tasks": 22, "waiting": 18, "running": 4}
    assert state["overdue"] == 9, "running late, demoted, hopeless"
