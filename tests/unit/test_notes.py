"""Notes of running runs, in memory that processes share."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from rts import health
from rts.ledger.notes import SLOT_BYTES, NoteBoard
from rts.records import Execution
from tests.records import run


@pytest.fixture
def board() -> Iterator[NoteBoard]:
    board = NoteBoard(8)
    yield board
    board.close()


def here(task_id: str) -> Execution:
    return run(task_id)._replace(pid=os.getpid(), load_at_start={"load": 0.5, "gpu": None})


def task_ids(board: NoteBoard) -> list[str]:
    return sorted(note.task_id for _, note in board.notes())


def test_a_note_is_read_by_whoever_has_the_memory(board: NoteBoard) -> None:
    slot = board.put(here("a"))
    assert slot is not None
    other = NoteBoard(board.slots, os.dup(board.fd))
    assert [note for _, note in other.notes()] == [here("a")]
    board.clear(slot)
    assert list(other.notes()) == []
    other.close()


def test_a_slot_is_used_again(board: NoteBoard) -> None:
    for n in range(100):
        slot = board.put(here(str(n)))
        assert slot == 0
        board.clear(slot)


def test_the_note_of_a_killed_process_stays_and_is_taken_once(board: NoteBoard) -> None:
    child = os.fork()
    if child == 0:
        board.put(here("killed"))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    board.put(here("mine"))
    assert task_ids(board) == ["killed", "mine"]
    note = board.take("killed")
    assert note is not None
    assert (note.task_id, note.pid) == ("killed", child)
    assert board.take("killed") is None
    assert task_ids(board) == ["mine"]


def test_of_two_runs_of_a_task_the_dead_one_is_taken_first(board: NoteBoard) -> None:
    board.put(here("same"))
    child = os.fork()
    if child == 0:
        board.put(here("same"))
        os._exit(0)
    os.waitpid(child, 0)
    note = board.take("same")
    assert note is not None
    assert note.pid == child


def test_slots_of_processes_that_are_gone_are_free_again(board: NoteBoard) -> None:
    for _ in range(3 * board.slots):
        child = os.fork()
        if child == 0:
            slot = board.put(here("x"))
            if slot is not None:
                board.clear(slot)
            os._exit(0 if slot is not None else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_without_room_a_run_goes_on_unnoted(board: NoteBoard) -> None:
    slots = [board.put(here(str(n))) for n in range(board.slots)]
    assert None not in slots
    assert board.put(here("one too many")) is None
    assert board.put(here("x" * SLOT_BYTES)) is None
    odd = here("odd")._replace(queue=object())  # type: ignore[arg-type]
    assert board.put(odd) is None
    assert health.take_counts() == {"starts_unnoted": 3}


def test_threads_share_the_slots(board: NoteBoard) -> None:
    def work(name: str) -> None:
        for n in range(200):
            slot = board.put(here(f"{name}-{n}"))
            assert slot is not None
            board.clear(slot)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert task_ids(board) == []
    assert "starts_unnoted" not in health.take_counts()


def test_a_torn_note_is_no_note(board: NoteBoard) -> None:
    board.put(here("a"))
    position = bytes(board._map).index(b"run-a")
    board._map[position : position + 5] = b"xxxxx"
    assert list(board.notes()) == []


def test_the_clocks_offset_is_shared(board: NoteBoard) -> None:
    other = NoteBoard(board.slots, os.dup(board.fd))
    board.clock_offset_s = -12.5
    assert other.clock_offset_s == -12.5
    other.close()
