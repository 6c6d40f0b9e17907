"""URLs of MongoDB: which are accepted at install, with which options.

They are parsed here the way pymongo does, since no process of the host app is to import it.
What it accepts without a warning is never refused, except for ``w=0``; whether options are
compatible, and files that they name exist, is left to the companion process.

An option with an invalid value is refused. pymongo ignores it, with a warning that few see:
given ``tls=True`` it would talk in the clear, as it takes only ``true`` and ``false``. Options
that are not listed are accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_plus

from rts.errors import ConfigurationError
from rts.urls import ESCAPED, redacted

_SCHEMES = ("mongodb://", "mongodb+srv://")
#: What MongoDB takes as the name of a database; characters that it must not have.
_DATABASE = 'a database without / \\ " $ or a space in its name, which has at most 63 bytes'
_NOT_IN_DATABASE = re.compile(r'[/\\ "$\0]')

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

#: Above 0: from the smallest float on, as the driver refuses 0.
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


def mongo_url(key: str, value: object) -> str:
    """Return *value* if it is a URL that pymongo takes, as far as is checked here.

    Raises:
        ConfigurationError: it is not one, or an option has an invalid value; the message
            never shows a password.
    """
    allowed = "a URL such as mongodb://host:27017/database (the path names the database)"
    if not (isinstance(value, str) and value.startswith(_SCHEMES)):
        raise ConfigurationError(key, redacted(value), allowed)
    scheme, _, rest = value.partition("://")
    before, _, options = rest.partition("?")
    place, _, database = before.partition("/")
    user, at, hosts = place.rpartition("@")
    wrong = (
        (at and not _is_user(user) and ESCAPED)
        or _wrong_hosts(hosts, srv=scheme == "mongodb+srv")
        or (_wrong_database(database) and _DATABASE)
        or (not _are_options(options) and "options as ?name=value&name=value")
    )
    if wrong:
        raise ConfigurationError(key, redacted(value), f"{allowed}, with {wrong}")
    for option in filter(None, re.split("[&;]", options)):
        name, _, given = option.partition("=")
        refusal = refused_option(name, unquote_plus(given))
        if refusal is not None:
            raise ConfigurationError(f"{key}, option {name}", *refusal)
    return value


def _is_user(text: str) -> bool:
    """Return whether *text* is a user name, or one with a password, percent-encoded."""
    bare = any(
        text[i] == "%" and unquote_plus(text[i : i + 3]) == text[i : i + 3]
        for i in range(len(text))
    )
    return not (bare or "@" in text or text.count(":") > 1 or text[:1] in ("", ":"))


def _wrong_hosts(text: str, *, srv: bool) -> str | None:
    """Return what the hosts should be instead of *text*; ``None`` if they are valid."""
    hosts = text.split(",")
    if "" in hosts:
        return "a host, or some with commas between them"
    if srv and (len(hosts) > 1 or ":" in text):
        return "one host and no port after mongodb+srv://"
    for host in hosts:
        if host.endswith(".sock"):
            continue  # the path of a socket, which has no port
        _, separator, port = host.partition("]:" if host.startswith("[") else ":")
        if host.startswith("[") and "]" not in host:
            return "IPv6 addresses as [::1]"
        if separator and not _is_port(port):
            return f"a port from 1 to 65535 after each host and {ESCAPED}"
    return None


def _is_port(text: str) -> bool:
    digits = text.lstrip("0")
    return text.isdecimal() and 0 < len(digits) <= 5 and int(digits) <= 65535


def _wrong_database(text: str) -> bool:
    name, _, _ = unquote_plus(text).partition(".")
    return len(name.encode(errors="replace")) > 63 or bool(_NOT_IN_DATABASE.search(name))


def _are_options(text: str) -> bool:
    if "&" in text and ";" in text:
        return False
    separator = "&" if "&" in text else ";" if ";" in text else None
    return not text or (
        "=" in text and all(option.count("=") == 1 for option in text.split(separator))
    )
