"""The two ways in which the note of a published task is packed give the same note."""

from __future__ import annotations

import json
import math
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rts.records import OpenTask
from rts.unfinished.open_task_format import (
    MAX_KNOWN,
    MAX_NAME,
    pack_any,
    pack_task,
    pack_usual,
    task_of,
)

TEXTS = st.text(max_size=300)
NUMBERS = st.floats() | st.integers() | st.just("1.0")
TASKS = st.builds(
    OpenTask,
    *(
        TEXTS | st.integers() | st.lists(TEXTS),
        TEXTS,
        TEXTS,
        st.sampled_from(["explicit", "task", "inferred"]),
    ),
    *(NUMBERS, NUMBERS, NUMBERS, st.floats()),
    *(st.sampled_from(["published", "received"]), TEXTS | st.none()),
    *(st.integers(), TEXTS | st.none(), TEXTS | st.none()),
)
USUAL = OpenTask(
    *("7a5c", "proj.add", "mixed", "inferred", 5.0, 2.0, 1.7e9, 1.7e9 + 10),
    *("published", "celery", 0, None, "7a5c"),
)


def unpacked(wire: str) -> list[Any]:
    """Return the arguments in *wire*, numbers and the JSON decoded."""
    data, arguments = wire.encode("latin-1"), []
    while data:
        length, _, data = data[1:].partition(b"\r\n")
        arguments.append(data[: int(length)])
        data = data[int(length) + 2 :]
    task_id, deadline, queue, known, again = arguments
    return [task_id, float(deadline), queue, again, *json.loads(known)]


def nearly(wire: str) -> list[Any]:
    """Return :func:`unpacked` with instants that match those with seven decimal places."""
    arguments = unpacked(wire)
    for place in (1, 4 + 5, 4 + 6):  # the deadline, in the JSON the arrival and the deadline
        if isinstance(arguments[place], float):
            arguments[place] = pytest.approx(arguments[place], rel=1e-15, abs=1e-7)
    return arguments


@given(task=TASKS, replaces=st.booleans())
@example(task=USUAL, replaces=True)
@example(task=USUAL._replace(name='quoted "name"', queue="a\r\nb"), replaces=False)
def test_the_fast_path_packs_the_same_note(task: OpenTask, replaces: bool) -> None:
    quick = pack_usual(task, replaces)
    assert quick is None or unpacked(quick) == nearly(pack_any(task, replaces))


@given(parent_id=TEXTS, deadline=st.floats(1e9, 1e10))
def test_a_usual_task_takes_the_fast_path_exactly(parent_id: str, deadline: float) -> None:
    task = USUAL._replace(parent_id=parent_id, deadline=deadline)
    quick = pack_usual(task, True)
    assert unpacked(quick) == unpacked(pack_any(task, True))


def test_an_unusual_task_is_packed_too() -> None:
    changes: list[dict[str, Any]] = [
        *({"deadline": math.inf}, {"tau": math.nan}, {"k": 2}, {"retries": "3"}),
        *({"queue": None}, {"queue": "q" * (MAX_NAME + 1)}, {"name": "n" * MAX_KNOWN}),
        *(
            {"task_id": 7},
            {"task_id": ["a"]},
            {"task_id": "é"},
            {"task_id": "\ud800"},
            {"parent_id": 7},
            {"parent_id": UUID(int=1)},
        ),
    ]
    for change in changes:
        assert pack_usual(USUAL._replace(**change), False) is None, change
        assert pack_task(USUAL._replace(**change), False).startswith("$")


class Queues(str, Enum):
    HIGH = "high"


def test_a_queue_that_a_member_of_an_enum_names_has_its_name() -> None:
    assert "$4\r\nhigh\r\n" in pack_task(USUAL._replace(queue=Queues.HIGH), False)


def test_of_long_texts_only_their_beginning_is_kept() -> None:
    long = "n" * 1_000_000
    packed = pack_any(USUAL._replace(name=long, queue=long, parent_id=long), False)
    assert len(packed) < MAX_KNOWN


def test_a_note_is_read_though_a_newer_version_has_written_more() -> None:
    known = json.dumps([*USUAL[1:], "and more"])
    assert task_of(str(USUAL.task_id).encode(), f"celery\n{known}".encode()) == USUAL
