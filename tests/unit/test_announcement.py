"""The two ways in which the note of a published task is packed give the same bytes."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from rts.ledger.announcement import MAX_KNOWN, MAX_NAME, odd, packed, usual
from rts.records import OpenTask

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


@given(task=TASKS, again=st.booleans())
@example(task=USUAL, again=True)
@example(task=USUAL._replace(name='quoted "name"', queue="a\r\nb"), again=False)
def test_what_is_packed_quickly_is_packed_alike(task: OpenTask, again: bool) -> None:
    quick = usual(task, again)
    assert quick is None or quick == odd(task, again)


def test_a_task_as_nearly_all_are_is_packed_quickly() -> None:
    assert usual(USUAL, False) == odd(USUAL, False)
    assert usual(USUAL._replace(parent_id="b"), True) == odd(
        USUAL._replace(parent_id="b"), True
    )


def test_what_is_unusual_is_packed_too() -> None:
    changes: list[dict[str, Any]] = [
        *({"deadline": math.inf}, {"tau": math.nan}, {"k": 2}, {"retries": "3"}),
        *({"queue": None}, {"queue": "q" * (MAX_NAME + 1)}, {"name": "n" * MAX_KNOWN}),
        *(
            {"task_id": 7},
            {"task_id": ["a"]},
            {"task_id": "é"},
            {"task_id": "\ud800"},
            {"parent_id": 7},
        ),
    ]
    for change in changes:
        assert usual(USUAL._replace(**change), False) is None, change
        assert packed(USUAL._replace(**change), False).startswith("$")
