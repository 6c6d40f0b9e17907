"""What a killed worker leaves: notes of runs, and the tasks that it acknowledged last."""

from __future__ import annotations

import datetime
import mmap
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from rts import health
from rts.clock import FleetClock
from rts.companion.instructions import Instructions
from rts.companion.postmortem import PostMortem, has_ended
from rts.load.sample import LoadSample
from rts.records import LOST, Plan, new_execution
from rts.settings import Settings
from rts.testing import wait_until
from rts.unfinished.acknowledged import BEGUN_S, ENTRY_BYTES, Acknowledged
from rts.unfinished.notes import is_alive
from rts.unfinished.received import SIZE, decode_marks, mark_of
from rts.unfinished.shared_memory import SharedMemory
from tests.clock import Clock
from tests.records import Kept

PLAN = Plan("mixed", "inferred", 10.0, 2.0, 100.0, 120.0)


@pytest.fixture
def memory() -> SharedMemory:
    return SharedMemory(4)


def postmortem(memory: SharedMemory) -> tuple[PostMortem, Kept]:
    instructions = Instructions(
        Settings(), "w@h", "w@h/1-a", os.getpid(), memory.fd, 4, None, 20
    )
    sink = Kept()
    return PostMortem(memory, sink, FleetClock(), instructions, list), sink


def attributes(task_id: str, **more: Any) -> dict[str, Any]:
    """Return what a worker knows of a message."""
    return {
        "id": task_id,
        "task": "proj.work",
        "retries": 0,
        "parent_id": None,
        "root_id": task_id,
        "delivery_info": {"exchange": "", "routing_key": "celery"},
        "argsrepr": "secret",
        "task_type": "mixed",
        "rts_type_source": "inferred",
        "rts_tau": 10.0,
        "rts_k": 2.0,
        "rts_arrival": 100.0,
        "rts_deadline": 120.0,
        "rts_arrival_source": "published",
        **more,
    }


def gone() -> int:
    """Return the id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def note(memory: SharedMemory, task_id: str, pid: int) -> None:
    run = new_execution(
        PLAN, attributes(task_id), worker="w@h", instance="w@h/1-a", pid=pid, started_at=105.0
    )
    assert memory.notes.put(run.to_json().encode()) is not None


def test_only_the_last_acknowledged_tasks_are_kept(memory: SharedMemory) -> None:
    ring = memory.acknowledged
    for number in range(20):
        ring.put(attributes(str(number)))
    assert {task["id"] for task in ring.tasks()} == {str(n) for n in range(12, 20)}
    assert all("argsrepr" not in task for task in ring.tasks())
    # Another process sees them through the same memory.
    other = SharedMemory(4, os.dup(memory.fd))
    assert len(list(other.acknowledged.tasks())) == 8
    taken = ring.take("15")
    assert (taken["id"], ring.take("15"), ring.take("11")) == ("15", None, None)
    assert len(list(other.acknowledged.tasks())) == 7
    ring.clear()
    assert not list(ring.tasks())


def test_the_entries_of_other_tasks_are_not_read_to_take_one(memory: SharedMemory) -> None:
    """There are thousands in gevent, where a thousand tasks may time out at once."""
    ring = memory.acknowledged
    for task_id in ("other", "wanted", "wanted"):
        ring.put(attributes(task_id))
    body = ring._starts[0] + 4
    ring._memory[body : body + 8] = b"?" * 8  # whoever reads it fails
    taken = ring.take("wanted")
    assert (taken["id"], ring.take("wanted")) == ("wanted", None)


def test_a_task_acknowledged_long_ago_has_begun() -> None:
    """The ledger may have forgotten it by now: it would be a new task, which was lost."""
    clock = Clock()
    ring = Acknowledged(mmap.mmap(-1, 4 * ENTRY_BYTES), 0, 4, clock)
    ring.put(attributes("old"))
    clock.at += BEGUN_S + 1
    ring.put(attributes("new"))
    assert [task["id"] for task in ring.tasks()] == ["new"]
    assert ring.take("old") is not None, "of one whose run was not noted, this is all there is"


@pytest.mark.parametrize("odd", [{"id": "x" * ENTRY_BYTES}, {"root_id": datetime.timezone.utc}])
def test_a_task_that_does_not_fit_is_left_out(
    memory: SharedMemory, odd: dict[str, Any]
) -> None:
    kept = [str(number) for number in range(8)]
    for task_id in kept:
        memory.acknowledged.put(attributes(task_id))
    memory.acknowledged.put(attributes("odd", **odd))
    assert [task["id"] for task in memory.acknowledged.tasks()] == kept


def test_no_part_of_the_memory_is_written_over_by_another(memory: SharedMemory) -> None:
    memory.clock_offset_s[0], memory.worker_slots[0] = 0.5, 4
    notes, acknowledged, received = ([f"{of}{n}" for n in range(1000)] for of in "nar")
    for task_id in notes[:4]:
        note(memory, task_id, os.getpid())
    for task_id in acknowledged:
        memory.acknowledged.put(attributes(task_id))
    for task_id in received:
        memory.received.put(task_id)
        memory.received.share()
    memory.load.write(LoadSample.of(0.5, 0.25, sampled_at=7.0))
    assert (memory.clock_offset_s[0], memory.worker_slots[0]) == (0.5, 4)
    assert {run.task_id for _, run in memory.notes.notes()} == {*notes[:4]}
    assert {task["id"] for task in memory.acknowledged.tasks()} == {*acknowledged[-8:]}
    marks = {*decode_marks(memory.received.encoded())}
    assert marks == {mark_of(task_id) for task_id in received[-SIZE:]}
    assert (load := memory.load.read())
    assert load.sampled_at == 7.0


def test_a_task_that_is_overwritten_while_it_is_read_is_left_out() -> None:
    class Memory(mmap.mmap):
        def __getitem__(self, where: Any) -> Any:
            ring.put(attributes("longer", task="of.another.thread"))
            return super().__getitem__(where)

    ring = Acknowledged(Memory(-1, ENTRY_BYTES), 0, 1)
    ring.put(attributes("a"))
    assert ring.take("a") is None
    assert [task["id"] for task in Acknowledged(ring._memory, 0, 1).tasks()] == ["longer"]


@pytest.mark.parametrize("odd", [{"id": 5}, {"id": [5]}, {"retries": "2"}, {"retries": [2]}])
def test_a_run_of_a_strangers_message_has_one_end(
    memory: SharedMemory, odd: dict[str, Any]
) -> None:
    message = attributes("", **odd)
    run = new_execution(PLAN, message, worker="w@h", instance="w@h/1-a", pid=gone())
    memory.notes.put(run.to_json().encode())
    memory.acknowledged.put(message)
    found, _ = postmortem(memory)
    assert found.write_ends() == 1


def test_every_task_that_is_not_redelivered_gets_a_verdict(memory: SharedMemory) -> None:
    note(memory, "ran", gone())
    note(memory, "goes on", os.getpid())
    for task_id, retries in (("ran", 0), ("goes on", None), ("accepted", 0)):
        memory.acknowledged.put(attributes(task_id, retries=retries))
    memory.acknowledged.put(attributes("no plan", rts_deadline=None))
    found, sink = postmortem(memory)
    assert found.write_ends() == 2
    ran, accepted = sink.ends
    assert (ran.task_id, ran.state, ran.cause, ran.ran) == ("ran", LOST, "lost", True)
    assert ran.started_at == 105.0
    assert ran.completed_at is not None
    assert accepted.completed_at is not None
    assert accepted.task_id == "accepted"
    assert (accepted.state, accepted.cause, accepted.ran) == (LOST, "lost", False)
    assert (accepted.deadline, accepted.queue, accepted.worker) == (120.0, "celery", "w@h")
    assert [left.task_id for _, left in memory.notes.notes()] == ["goes on"]
    assert found.write_ends() == 0
    assert health.take_counts() == {"runs_lost": 1}


def test_a_zombie_has_ended(memory: SharedMemory) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not has_ended(killed.pid)
    note(memory, "died with its worker", killed.pid)
    killed.send_signal(signal.SIGKILL)
    wait_until(lambda: has_ended(killed.pid))
    assert is_alive(killed.pid)  # its parent is this test
    found, sink = postmortem(memory)
    assert found.write_ends() == 1
    assert [(end.task_id, end.state) for end in sink.ends] == [("died with its worker", LOST)]
    assert not found.has_runs()
    killed.wait()
    assert has_ended(killed.pid)


def test_runs_that_go_on_are_given_up_only_on_demand(memory: SharedMemory) -> None:
    note(memory, "goes on", os.getpid())
    found, sink = postmortem(memory)
    assert found.write_ends() == 0
    assert found.has_runs()
    found.give_up()
    (end,) = sink.ends
    assert (end.task_id, end.state, end.cause, end.ran) == ("goes on", LOST, "lost", True)
    # Whoever comes later may know better.
    assert found.has_runs()
