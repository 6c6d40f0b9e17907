"""Options of MongoDB URLs: those whose values are checked at install.

pymongo ignores an invalid value, with a warning that few see: with ``tls=True`` it would
talk in the clear, since only ``true`` is accepted. No process of the host app imports
pymongo; the checks here agree with it, except for ``w=0``, and options that are not listed
are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

#: Characters of a value that an error shows.
MAX_SHOWN = 32


class Kind(NamedTuple):
    """The allowed values of an option: in words, and as a check."""

    allowed: str
    fits: Callable[[str], bool]


def _within(
    read: Callable[[str], float], least: float, below: float = float("inf")
) -> Callable[[str], bool]:
    def fits(value: str) -> bool:
        try:
            return least <= read(value) < below
        except ValueError:
            return False

    return fits


def _or(word: str, fits: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda value: value == word or fits(value)


def _write_concern(value: str) -> bool:
    try:
        return int(value) >= 1  # an unacknowledged write may be lost silently
    except ValueError:
        return True  # majority, or a name defined in the replica set


_MODES = ("primary", "primaryPreferred", "secondary", "secondaryPreferred", "nearest")

#: Above 0, which the driver refuses as a float: from the smallest float on.
_POSITIVE = _within(float, 5e-324, 1e9)

_FLAG = Kind("true or false", ("true", "false").__contains__)
_NUMBER = Kind("a whole number, at least 0", _within(int, 0))
_TIMEOUT = Kind("milliseconds, at least 0", _or("0", _POSITIVE))
_WAIT = Kind("milliseconds, above 0", _POSITIVE)

#: By their names in lower case; pymongo ignores case.
KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "directconnection",
            "fsync",
            "journal",
            "loadbalanced",
            "retryreads",
            "retrywrites",
            "ssl",
            "tls",
            "tlsallowinvalidcertificates",
            "tlsallowinvalidhostnames",
            "tlsdisableocspendpointcheck",
            "tlsinsecure",
        ),
        _FLAG,
    ),
    **dict.fromkeys(("maxpoolsize", "minpoolsize", "srvmaxhosts", "wtimeoutms"), _NUMBER),
    **dict.fromkeys(
        (
            "connecttimeoutms",
            "localthresholdms",
            "serverselectiontimeoutms",
            "sockettimeoutms",
            "timeoutms",
        ),
        _TIMEOUT,
    ),
    **dict.fromkeys(("maxidletimems", "waitqueuetimeoutms"), _WAIT),
    "appname": Kind("at most 128 bytes", lambda value: len(value.encode()) <= 128),
    "heartbeatfrequencyms": Kind("milliseconds, at least 500", _within(float, 500, 1e9)),
    "maxconnecting": Kind("a whole number, at least 1", _within(int, 1)),
    "maxstalenessseconds": Kind(
        "a whole number of seconds, at least 1, or -1", _or("-1", _within(int, 1))
    ),
    "readpreference": Kind(", ".join(_MODES), _MODES.__contains__),
    "w": Kind("a whole number, at least 1, majority, or a name", _write_concern),
    "zlibcompressionlevel": Kind("a whole number from -1 to 9", _within(int, -1, 10)),
}


def refused_option(name: str, value: str) -> tuple[str, str] | None:
    """Return the value of an option as an error shows it, and what is allowed; ``None``
    where the value is valid, or the option not listed.

    >>> refused_option("retryWrites", "maybe")
    ('maybe', 'true or false')
    >>> refused_option("w", "majority")
    """
    kind = KINDS.get(name.lower())
    if kind is None or kind.fits(value):
        return None
    # It may hold a part of a password that should have been percent-encoded.
    harmless = len(value) <= MAX_SHOWN and "@" not in value and value.isprintable()
    return (value if harmless else "***"), kind.allowed
