"""The two ways in which the note of a published task is packed give the same bytes."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from rts.ledger.announcement import MAX_KNOWN, MAX_NAME, pack_any, pack_task, pack_usual
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
def test_the_fast_path_packs_the_same_bytes(task: OpenTask, again: bool) -> None:
    quick = pack_usual(task, again)
    assert quick is None or quick == pack_any(task, again)


def test_a_usual_task_takes_the_fast_path() -> None:
    assert pack_usual(USUAL, False) == pack_any(USUAL, False)
    assert pack_usual(USUAL._replace(parent_id="b"), True) == pack_any(
        USUAL._replace(parent_id="b"), True
    )


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
        ),
    ]
    for change in changes:
        assert pack_usual(USUAL._replace(**change), False) is None, change
        assert pack_task(USUAL._replace(**change), False).startswith("$")
