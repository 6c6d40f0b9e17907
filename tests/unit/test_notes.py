"""Memory that processes share, and the notes of running runs in it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from rts import health
from rts.records import Execution
from rts.unfinished.notes import SLOT_BYTES, NoteBoard
from rts.unfinished.shared_memory import SharedMemory
from tests.forked import in_child
from tests.records import run


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(8)


@pytest.fixture
def board(memory: SharedMemory) -> NoteBoard:
    return memory.notes


def mapped_again(memory: SharedMemory) -> SharedMemory:
    """Return the same memory as another process has it."""
    return SharedMemory(memory.notes.slots, os.dup(memory.fd))


def here(task_id: str) -> Execution:
    return run(task_id)._replace(pid=os.getpid(), load_at_start={"load": 0.5, "gpu": None})


def noted(board: NoteBoard, note: Execution) -> int | None:
    return board.put(note.to_json().encode())


def task_ids(board: NoteBoard) -> list[str]:
    return sorted(note.task_id for _, note in board.notes())


def test_a_note_is_read_through_another_mapping_of_the_memory(memory: SharedMemory) -> None:
    slot = noted(memory.notes, here("a"))
    other = mapped_again(memory).notes
    assert [note for _, note in other.notes()] == [here("a")]
    memory.notes.clear(slot)
    assert list(other.notes()) == []


def test_memory_without_a_name_may_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    memory = SharedMemory(8)
    noted(memory.notes, here("a"))
    assert task_ids(mapped_again(memory).notes) == ["a"]
    # Its space is reserved: a page that the disk cannot hold would kill who writes to it.
    assert os.fstat(memory.fd).st_blocks * 512 >= os.fstat(memory.fd).st_size


def test_a_memory_leaves_nothing_open() -> None:
    memory = SharedMemory(1)
    descriptor = f"/proc/self/fd/{memory.fd}"
    child = os.fork()
    if child == 0:
        del memory  # by now the number may be another file's
        os._exit(0 if os.path.lexists(descriptor) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.path.lexists(descriptor)
    del memory
    assert not os.path.lexists(descriptor)


def test_a_slot_is_used_again(board: NoteBoard) -> None:
    for n in range(100):
        slot = noted(board, here(str(n)))
        assert slot == 0
        board.clear(slot)


def test_a_process_may_run_more_tasks_than_32_bits_count(board: NoteBoard) -> None:
    board._number = 0xFFFFFFFE
    for n in range(3):
        slot = noted(board, here(str(n)))
        assert task_ids(board) == [str(n)]
        board.clear(slot)


def test_the_note_of_a_killed_process_stays_and_is_taken_once(board: NoteBoard) -> None:
    def act() -> None:
        noted(board, here("killed"))
        os.kill(os.getpid(), signal.SIGKILL)

    child, _ = in_child(act)
    noted(board, here("mine"))
    assert task_ids(board) == ["killed", "mine"]
    note = board.take("killed")
    assert (note.task_id, note.pid) == ("killed", child)
    assert board.take("killed") is None
    assert task_ids(board) == ["mine"]


def test_the_slot_of_a_thread_whose_note_was_taken_is_used_again(board: NoteBoard) -> None:
    for _ in range(2 * board.slots):
        assert noted(board, here("timed out")) is not None
        assert board.take("timed out") is not None


def test_a_note_that_is_no_longer_there_takes_no_other_with_it(board: NoteBoard) -> None:
    slot = noted(board, here("a"))
    ((_, read),) = board.notes()
    board.clear(slot)
    assert not board.release(slot, read), "the run has ended itself since"
    assert noted(board, here("b")) == slot
    assert not board.release(slot, read)
    assert task_ids(board) == ["b"]


def test_of_two_runs_of_a_task_the_dead_one_is_taken_first(board: NoteBoard) -> None:
    noted(board, here("same"))
    child, _ = in_child(lambda: noted(board, here("same")))
    note = board.take("same")
    assert note.pid == child


def test_a_process_that_survives_the_removal_of_its_note_keeps_its_slot(
    board: NoteBoard,
) -> None:
    """As where its task is revoked with a signal that does not end it."""
    (noted_out, noted_in), (taken_out, taken_in) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            slot = noted(board, here("revoked"))
            os.write(noted_in, b".")
            os.read(taken_out, 1)
            board.clear(slot)
            noted(board, here("next"))
        finally:
            os._exit(0)
    os.read(noted_out, 1)
    assert board.take("revoked") is not None
    noted(board, here("another's"))
    os.write(taken_in, b".")
    os.waitpid(child, 0)
    for fd in (noted_out, noted_in, taken_out, taken_in):
        os.close(fd)
    assert task_ids(board) == ["another's", "next"]


def test_slots_of_processes_that_are_gone_are_free_again(board: NoteBoard) -> None:
    own = noted(board, here("own"))
    board.clear(own)  # it stays this process's, which lives

    def act() -> bool:
        slot = noted(board, here("x"))
        if slot is not None:
            board.clear(slot)
        return slot not in (None, own)

    for _ in range(3 * board.slots):
        assert in_child(act)[1] == 0


def test_without_room_a_run_is_not_noted(board: NoteBoard) -> None:
    slots = [noted(board, here(str(n))) for n in range(board.slots)]
    assert None not in slots
    assert noted(board, here("one too many")) is None
    assert noted(board, here("x" * SLOT_BYTES)) is None
    assert health.take_counts() == {"starts_unnoted": 2}


def test_threads_share_the_slots(board: NoteBoard) -> None:
    def work(name: str) -> None:
        for n in range(200):
            slot = noted(board, here(f"{name}-{n}"))
            board.clear(slot)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert task_ids(board) == []
    assert "starts_unnoted" not in health.take_counts()


def test_a_torn_note_is_no_note(board: NoteBoard) -> None:
    noted(board, here("a"))
    position = bytes(board._map).rindex(b"]")
    board._map[position] = 0
    assert list(board.notes()) == []


def test_a_process_that_dies_while_it_writes_its_note_has_none(board: NoteBoard) -> None:
    def act() -> None:
        board.clear(noted(board, here("before")) or 0)
        board._map = DyingMap(board._map)
        noted(board, here("never whole"))

    assert in_child(act)[1] == -signal.SIGKILL
    assert list(board.notes()) == []


class DyingMap:
    """Memory whose process is killed in the middle of writing to it."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def __setitem__(self, where: slice, what: bytes) -> None:
        half = len(what) // 2
        self._memory[where.start : where.start + half] = what[:half]
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_clock_offset_is_shared(memory: SharedMemory) -> None:
    memory.clock_offset_s[0] = -12.5
    assert mapped_again(memory).clock_offset_s[0] == -12.5
