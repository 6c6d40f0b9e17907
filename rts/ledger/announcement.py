"""The wire form of the note of a published task: arguments of the script that notes it."""

from __future__ import annotations

import json
import math
from json.encoder import encode_basestring_ascii as quoted

from rts.ledger.storable import text
from rts.link.scripts import bulks
from rts.records import OpenTask

#: Arguments for each task: its id, its deadline, its queue, what is known of it, and
#: whether it takes the place of another one of its id.
ARGUMENTS = 5
_NEW, _AGAIN = "$0\r\n\r\n", "$1\r\n1\r\n"
#: Characters of a queue's name that are kept, and of all that is known of a task
#: before its texts are cut.
MAX_NAME, MAX_KNOWN = 256, 4096


def packed(task: OpenTask, again: bool) -> str:
    """Return the packed arguments of one task; each character stands for one byte."""
    return usual(task, again) or odd(task, again)


def usual(task: OpenTask, again: bool) -> str | None:
    """Return the packed arguments of a task as nearly all are, ``None`` of another one.

    In one go, as text: each task that is published pays for this.
    """
    (task_id, name, task_type, type_source, tau, k, arrival, deadline, arrival_source,
     queue, retries, parent, root) = task  # fmt: skip
    try:
        if not (
            type(tau) is type(k) is type(arrival) is type(deadline) is float
            and type(task_id) is type(queue) is str
        ):
            return None
        due = repr(deadline)
        known = (
            f"[{quoted(name)},{quoted(task_type)},{quoted(type_source)},"
            f"{tau!r},{k!r},{arrival!r},{due},{quoted(arrival_source)},"
            f"{quoted(queue)},{retries:d},"
            f"{'null' if parent is None else quoted(parent)},"
            f"{'null' if root is None else quoted(root)}]"
        )
        wire = (
            f"${len(task_id)}\r\n{task_id}\r\n${len(due)}\r\n{due}\r\n"
            f"${len(queue)}\r\n{queue}\r\n${len(known)}\r\n{known}\r\n"
            f"{_AGAIN if again else _NEW}"
        )
    except (TypeError, ValueError):
        return None
    fits = len(known) <= MAX_KNOWN and len(queue) <= MAX_NAME and wire.isascii()
    return wire if fits and -math.inf < tau + k + arrival + deadline < math.inf else None


def odd(task: OpenTask, again: bool) -> str:
    """Return the packed arguments of a task with any values."""
    queue = "" if task.queue is None else str(task.queue)[:MAX_NAME]
    known = _encode(task[1:])
    if len(known) > MAX_KNOWN:
        known = _encode([text(v) if isinstance(v, str) else v for v in task[1:]])
    arguments = (str(task.task_id), repr(float(task.deadline)), queue, known)
    wire = bulks(*(argument.encode("utf-8", "replace") for argument in arguments))
    return wire.decode("latin-1") + (_AGAIN if again else _NEW)


_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False, default=str).encode
