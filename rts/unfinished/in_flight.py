"""The notes of current runs in Redis: companions publish them, everybody reads them."""

from __future__ import annotations

import os
import secrets

from rts.link.link import Link
from rts.link.scripts import pack
from rts.settings import Settings
from rts.unfinished.notes import NoteBoard

#: A note that Redis has is sent again in one of so many steps: somebody may have wiped it, or a
#: janitor ended the run, as this worker was suspended. (Not in each: with a thousand greenlets
#: that would be half a megabyte a second.)
REPEAT_STEPS = 10


class InFlightRuns:
    """Publishes a worker's notes in Redis, for predictions, and for other companions should the
    worker die together with its own.

    Only runs that last a while get there: most end before the next step.
    """

    def __init__(self, link: Link, settings: Settings, board: NoteBoard, instance: str) -> None:
        self._link = link
        self._running = settings.keys.running
        self._board = board
        self._instance = instance
        #: The fields of this worker's runs in the hash, and their values (empty: unknown), as
        #: far as is known on the link's present connection.
        self._published: dict[bytes, bytes] = {}
        self._connections = -1
        self._steps = 0

    def step(self) -> None:
        """Bring the ``running`` hash up to date."""
        if self._link.connections != self._connections:
            # A new connection may lead to a server that has lost our last writes, as after a
            # failover. And an earlier companion of this worker may have left some fields.
            (fields,) = self._link.call(pack("HKEYS", self._running))
            self._connections = self._link.connections
            own = (field for field in fields if instance_of(field) == self._instance)
            self._published = dict.fromkeys(own, b"")
        self._steps += 1
        notes: dict[bytes, bytes] = {}
        due: list[bytes] = []
        for slot, note in self._board.notes():
            name = running_field(note.task_id, note.retries, note.instance, note.pid)
            field, text = name.encode("utf-8", "replace"), note.to_json().encode()
            notes[field] = text
            if self._published.get(field) != text or (slot + self._steps) % REPEAT_STEPS == 0:
                due += (field, text)
        commands = []
        if ended := self._published.keys() - notes.keys():
            commands.append(pack("HDEL", self._running, *ended))
        if due:
            commands.append(pack("HSET", self._running, *due))
        if commands:
            self._link.call(*commands)
        self._published = notes

    def publish(self) -> None:
        """Publish all runs now, since nobody will do so again; what Redis should have of them
        does not count: it may be away, and come back without its data.
        """
        self._connections = -1
        self.step()


def new_instance(worker: str) -> str:
    """Return an identity for one life of this process as the main process of *worker*, a node
    name: unique in the fleet, and without the separator of a :func:`running_field`.
    """
    return f"{worker.replace('|', '_')}/{os.getpid()}-{secrets.token_hex(4)}"


def running_field(task_id: str, retries: int, instance: str, pid: int | None) -> str:
    """Return the field of the ``running`` hash for one run.

    It includes the process id, since a task whose process was killed may be delivered
    again, with the same id and retries, to another process of the same worker.
    """
    return f"{task_id}|{retries}|{instance}|{pid}"


def task_id_of(field: bytes) -> bytes:
    """Return the task id in a field of the ``running`` hash.

    >>> task_id_of(b"any|thing|0|celery@host/12-ab12cd34|17")
    b'any|thing'
    """
    return field.rsplit(b"|", 3)[0]


def instance_of(field: bytes) -> str:
    """Return the worker instance in a field of the ``running`` hash.

    >>> instance_of(b"any|thing|0|celery@host/12-ab12cd34|17")
    'celery@host/12-ab12cd34'
    """
    return field.rpartition(b"|")[0].rpartition(b"|")[2].decode("utf-8", "replace")
