"""Tables and windows of the command line."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts.cli import common, rts, show, status, table
from rts.cli.table import Column, cut, cut_apart, percent, printable, render, seconds
from rts.views import windows
from rts.views.json_values import plain
from tests.conftest import printed

COLUMNS = (
    Column("name", number=False),
    Column("p50", group="runtime s"),
    Column("p95", group="runtime s"),
    Column("note", number=False),
)


def test_names_are_aligned_left_and_numbers_right() -> None:
    text = render(COLUMNS, [("a", "1.5", "20", ""), ("long.name", "0.25", "3", "set")])
    assert text.splitlines() == [
        "           runtime s",
        "name        p50  p95  note",
        "a           1.5   20",
        "long.name  0.25    3  set",
    ]


def test_without_rows_there_is_a_header() -> None:
    assert render(COLUMNS[:1], []) == "name"


def test_names_are_cut_to_the_width_and_numbers_never() -> None:
    text = render(COLUMNS, [("tasks." + "x" * 90, "123456", "7", "")], width=40)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[-1].startswith("tasks.xxx")
    assert "…" in lines[-1]
    assert "123456" in lines[-1]


def test_names_that_a_cut_would_make_the_same_can_be_told_apart() -> None:
    workers = [f"celery@shop-worker-{pod}.eu-west-1.internal" for pod in ("mail-9q", "web-xk")]
    rows = [(name, "1", "2", "") for name in (*workers, "beat", workers[0])]
    text = render(COLUMNS, rows, width=26)
    names = [line.split()[0] for line in text.splitlines()[2:]]
    assert names == ["…mail-9q.eu…", "…web-xk.eu-…", "beat", "…mail-9q.eu…"]
    ends = cut_apart(["a" * 30 + end for end in "bbc"], 12)
    assert ends == ["aaaaaaaaaa…b", "aaaaaaaaaa…b", "aaaaaaaaaa…c"]
    nodes = [f"{queue}@ip-10-0-1-{n}" for queue in ("high", "low") for n in (23, 24)]
    assert cut_apart(nodes, 11) == ["high@ip-…23", "high@ip-…24", "low@ip-1…23", "low@ip-1…24"]


@given(st.sampled_from("ab.日"), st.lists(st.text("ab.日", max_size=9), unique=True))
def test_names_with_one_beginning_stay_different(of: str, ends: list[str]) -> None:
    shown = cut_apart([of * 30 + "-" + end for end in ends], 12)
    assert len(set(shown)) == len(ends)
    assert all(table._width(text) <= 12 for text in shown)


def test_an_instant_is_never_cut() -> None:
    columns = (Column("at", number=False, whole=True), Column("name", number=False))
    line = render(columns, [("2030-01-01T00:00:00.000Z", "x" * 90)], width=40).splitlines()[-1]
    assert line == "2030-01-01T00:00:00.000Z  " + "x" * 13 + "…"


def test_columns_move_together_before_a_table_is_wider_than_the_terminal() -> None:
    columns = [
        Column("name", number=False),
        *(Column(f"p{n}", group="delay s") for n in "1234"),
    ]
    rows = [("proj.tasks.resize", *["-0.0935"] * 4), ("total", *["0.1"] * 4)]
    assert render(columns, rows, width=44).splitlines() == [
        "                                     delay s",
        "name              p1      p2      p3      p4",
        "proj.tasks.… -0.0935 -0.0935 -0.0935 -0.0935",
        "total            0.1     0.1     0.1     0.1",
    ]
    assert "-0.0935  -0.0935" in render(columns, rows, width=48)


def test_a_width_too_small_keeps_something_of_the_name() -> None:
    line = render(COLUMNS, [("x" * 90, "1", "2", "")], width=5).splitlines()[-1]
    assert line.startswith("x" * 11 + "…")


@given(st.lists(st.text(), min_size=1, max_size=4), st.integers(20, 60))
def test_nothing_controls_the_terminal(names: list[str], width: int) -> None:
    text = render((Column("name", number=False), Column("n")), [(n, "1") for n in names], width)
    lines = text.split("\n")
    assert len(lines) == 1 + len(names)
    assert all(line.isprintable() for line in lines)
    assert all(table._width(line) <= width for line in lines)


def test_wide_characters_take_two_columns() -> None:
    text = render((Column("name", number=False), Column("n")), [("日本", "1"), ("abcd", "2")])
    assert text.splitlines() == ["name  n", "日本  1", "abcd  2"]
    assert cut("日本語", 5) == "日本…"
    assert printable("\u202eabc\x00") == "\\u202eabc\\x00"


def test_numbers_show_the_digits_that_matter() -> None:
    assert seconds(-0.25) == "-0.250"
    assert seconds(0.0) == "0.0000"
    assert percent(0.0) == "0.0"
    assert percent(0.9995) == "99.95"
    assert percent(0.99999) == "99.999"


def test_a_table_is_cut_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table.terminal_width() is None
    monkeypatch.setenv("COLUMNS", "72")
    assert table.terminal_width() == 72


def test_a_wrong_clock_is_reported() -> None:
    assert status._clock(0.001, 0.0) == "this host and Redis agree"
    assert "host is 12.0 s behind Redis" in status._clock(12.0, 0.01)
    assert "host is 0.500 s behind Redis" in status._clock(0.5, 0.01)
    assert "host is 0.500 s ahead of Redis" in status._clock(-0.5, 0.01)
    assert status._clock(-0.5, 0.6) == "this host and Redis agree", "as far as one can tell"


def test_plain_values_for_json() -> None:
    value = {"a": (1, float("nan")), "at": NOW, "b": True, "odd": {1}}
    assert plain(value) == {
        "a": [1, None],
        "at": "2030-01-10T12:00:00.000Z",
        "b": True,
        "odd": "{1}",
    }


UTC = timezone.utc
NOW = datetime(2030, 1, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", timedelta(minutes=15)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("2030-01-01", datetime(2030, 1, 1, tzinfo=UTC)),
        ("2030-01-01T01:00:00Z", datetime(2030, 1, 1, 1, tzinfo=UTC)),
        ("2030-01-01T01:00:00+02:00", datetime(2029, 12, 31, 23, tzinfo=UTC)),
    ],
)
def test_an_instant_is_so_long_ago_or_iso_8601(text: str, expected: object) -> None:
    assert windows.parse(text) == expected


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1y", "tomorrow", "1e9d", "٣d"])
def test_an_invalid_instant_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither a duration"):
        common.instant(click.Context(rts), click.Option(["--since"]), text)


def test_a_window_begins_before_it_ends() -> None:
    day, hour = timedelta(days=1), timedelta(hours=1)
    assert common.window(day, None, NOW) == (NOW - day, NOW)
    assert common.window(NOW - day, hour, NOW) == (NOW - day, NOW - hour)
    with pytest.raises(click.UsageError, match="before --until"):
        common.window(hour, day, NOW)
    with pytest.raises(click.UsageError, match="year 1"):
        common.window(timedelta(weeks=999999), None, NOW)


def test_celery_does_not_load_the_drivers_for_it() -> None:
    code = "import sys, rts.cli; print([m for m in ('pymongo', 'redis') if m in sys.modules])"
    assert printed(code) == "[]\n"


def test_a_learned_k_is_shown_with_as_many_digits_as_tell_something() -> None:
    shown = show.fields_text({"tau": 0.19, "k": 2.0628665744649357, "retries": 0})
    assert [line.split(maxsplit=1)[1] for line in shown.splitlines()] == [
        "0.190 s",
        "2.06",
        "0",
    ]
