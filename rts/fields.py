"""Values out of messages, as the fields of records hold them: a stranger's may be anything."""

from __future__ import annotations

import hashlib
import re
from typing import Any

#: Characters of a text that a record holds. Nothing has a longer name.
MAX_TEXT = 1024

#: What Celery puts before the routing key of a message that RabbitMQ holds until its eta
#: (native delayed delivery): the delay in seconds, 28 binary digits. With kombu < 5.7, each
#: retry puts another one before it.
_DELAYS = re.compile(r"(?:(?:[01]\.){28})+")
#: Characters of one such delay. Usual routing keys are shorter.
_DELAY_CHARS = 56


def text(value: object, limit: int = MAX_TEXT) -> str:
    """Return *value* as a string that BSON can hold, at most *limit* characters.

    One that is too long is cut and ends in a hash of the whole, so that different ids
    stay different.
    """
    string = value if isinstance(value, str) else repr(value)
    if not string.isascii():
        string = string.encode("utf-8", "replace").decode("utf-8")
    if len(string) <= limit:
        return string
    digest = hashlib.sha256(string.encode("utf-8")).hexdigest()[:32]
    return f"{string[: limit - 33]}~{digest}"


def brief(value: Any) -> Any:
    """Return an id or a name out of a message as records hold it: ``None`` and strings of usual
    length as they are, all else as :func:`text`. A stranger's may be of any size, and Redis
    keeps it for a week (``judged`` in :mod:`rts.keys`).
    """
    if value is None or (isinstance(value, str) and len(value) <= MAX_TEXT):
        return value
    return text(str(value))


def queue_of(routing_key: Any) -> Any:
    """Return what the ledger calls the queue of a message: its routing key, without the delays
    before it, each of which would make another queue.

    >>> queue_of("0." * 26 + "1.1.celery"), queue_of("0." * 56 + "celery")
    ('celery', 'celery')
    """
    if isinstance(routing_key, str) and len(routing_key) > _DELAY_CHARS:
        delays = _DELAYS.match(routing_key)
        return routing_key if delays is None else routing_key[delays.end() :]
    return routing_key


#: Returns a string, such as a member of an app's enum, as a plain one: ``str`` of the member,
#: and what is formatted with it, is another text.
plain = str.__str__


def priority_of(value: object) -> int:
    """Return the priority of a message; 0 where *value* is none that a broker has.

    >>> [priority_of(value) for value in (9, True, 256, None)]
    [9, 0, 0, 0]
    """
    if type(value) is not int:
        if not isinstance(value, int) or isinstance(value, bool):
            return 0
        value = int(value)  # a member of an enum
    return value if 0 <= value <= 255 else 0
