"""What a worker notes of the tasks that it receives."""

from __future__ import annotations

import mmap
import uuid

import pytest

from rts.unfinished.received import BYTES, SIZE, Received, decode_marks, mark_of


def test_the_last_marks_are_read_back() -> None:
    memory = mmap.mmap(-1, BYTES + 64)
    received, reader = Received(memory, 64), Received(memory, 64)
    assert decode_marks(reader.encoded()) == []
    ids = [f"id-{n}" for n in range(SIZE + 40)]
    for number, task_id in enumerate(ids, 1):
        received.put(task_id)
        if number % 7 == 0:
            received.share()
        if number in (1, 40, SIZE, len(ids)):
            received.share()
            last = ids[max(0, number - SIZE) : number]
            assert sorted(decode_marks(reader.encoded())) == sorted(map(mark_of, last))
    assert memory[:64] == bytes(64)


def test_any_id_has_a_mark() -> None:
    marks = {mark_of(task_id) for task_id in ("", "x", "\ud800", "é" * 10_000)}
    assert len(marks) == 4
    assert all(0 <= mark < 1 << 32 for mark in marks)
    task_id = uuid.uuid4()  # of a producer that sends it as one
    assert mark_of(task_id) == mark_of(str(task_id))


@pytest.mark.parametrize("text", ["x", "no marks", "AAAA", "AAAAAA\n", "AAAA AA=="])
def test_text_without_marks_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  of two modules
        decode_marks(text)
