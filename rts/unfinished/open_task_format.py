"""The format of a published task's note: as arguments of the script that stores it, and as
stored.
"""

from __future__ import annotations

import json
import math
from json.encoder import encode_basestring_ascii as quoted

from rts.fields import MAX_TEXT, brief
from rts.link.scripts import bulks
from rts.records import OpenTask, encode, kind_as_json

#: Arguments per task: its id, its deadline, its queue, its fields after the id as JSON, and
#: whether it replaces another task with its id.
ARGUMENTS = 5
_NEW, _REPLACES = "$0\r\n\r\n", "$1\r\n1\r\n"
#: Characters kept of a queue's name, and of the fields as JSON before their texts are cut.
MAX_NAME, MAX_KNOWN = 256, 4096


def pack_task(task: OpenTask, replaces: bool) -> str:
    """Return the packed arguments of one task; each character stands for one byte."""
    return pack_usual(task, replaces) or pack_any(task, replaces)


def pack_usual(task: OpenTask, replaces: bool) -> str | None:
    """Return the packed arguments of a task with the usual values, ``None`` for any other.

    Formatted in one go, as text: every publish pays for this. Instants have 17 digits, which
    is exact, and quicker than finding the shortest exact form.
    """
    (task_id, name, task_type, type_source, tau, k, arrival, deadline, arrival_source,
     queue, retries, parent, root) = task  # fmt: skip
    try:
        if not (
            type(tau) is type(k) is type(arrival) is type(deadline) is float
            and type(task_id) is type(queue) is str
            and len(task_id) <= MAX_TEXT
        ):
            return None
        due = f"{deadline:.7f}"
        known = (
            f"[{kind_as_json(name, task_type, type_source, tau, k)},"
            f"{arrival:.7f},{due},{quoted(arrival_source)},"
            f"{quoted(queue)},{retries:d},"
            f"{'null' if parent is None else quoted(parent)},"
            f"{'null' if root is None else quoted(root)}]"
        )
        wire = (
            f"${len(task_id)}\r\n{task_id}\r\n${len(due)}\r\n{due}\r\n"
            f"${len(queue)}\r\n{queue}\r\n${len(known)}\r\n{known}\r\n"
            f"{_REPLACES if replaces else _NEW}"
        )
    except (TypeError, ValueError):
        return None
    fits = len(known) <= MAX_KNOWN and len(queue) <= MAX_NAME and wire.isascii()
    return wire if fits and -math.inf < tau + k + arrival + deadline < math.inf else None


def pack_any(task: OpenTask, replaces: bool) -> str:
    """Return the packed arguments of a task, whatever its values."""
    queue = task.queue if isinstance(task.queue, str) else ""
    known = encode(task[1:])
    if len(known) > MAX_KNOWN:
        known = encode([v if isinstance(v, int | float) else brief(v) for v in task[1:]])
    arguments = (str(brief(task.task_id)), repr(float(task.deadline)), queue[:MAX_NAME], known)
    wire = bulks(*(argument.encode("utf-8", "replace") for argument in arguments))
    return wire.decode("latin-1") + (_REPLACES if replaces else _NEW)


def task_of(task_id: bytes, info: bytes | None) -> OpenTask | None:
    """Return the task of an entry in the ``open:info`` hash, which is its queue, a newline and
    its other fields; ``None`` if it is invalid.
    """
    try:
        _, _, known = (info or b"").partition(b"\n")
        values = json.loads(known)
        if not isinstance(values, list):
            return None
        return OpenTask(
            task_id.decode("utf-8", "replace"), *values[: len(OpenTask._fields) - 1]
        )
    except (ValueError, TypeError, RecursionError):
        return None
