"""URLs of servers: which of Redis are accepted at install, and how all are shown. Those of
MongoDB are checked in :mod:`rts.mongo_urls`.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import TypeGuard
from urllib.parse import parse_qs, quote, unquote, urlsplit

from rts.errors import ConfigurationError

#: How URLs begin that redis-py or kombu takes for Redis, other than kombu's sentinel://.
_REDIS = ("redis://", "rediss://", "unix://", "redis+socket://")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
#: How to write what would end a user name or password in a URL.
ESCAPED = "special characters of a user or password as %23, %2F, %3F, %40"
#: What is in the place of a port but is none: maybe a password without an @ after it.
_NO_PORT = re.compile(r":(?!\d{1,5}(?:[,/]|$))[^,/\]]+(?=[,/]|$)")


def plain_redis_url(url: str) -> str:
    """Return a kombu URL in the form that redis-py takes."""
    if url.startswith("redis+socket://"):
        url = "unix://" + url.removeprefix("redis+socket://").replace("virtual_host=", "db=")
    elif url.startswith(("redis:///", "rediss:///")):
        url = url.replace(":///", "://localhost/", 1)
    elif url in ("redis://", "rediss://"):
        url += "localhost"
    # Celery writes ssl_cert_reqs=CERT_NONE, redis-py reads ssl_cert_reqs=none.
    for value in ("NONE", "OPTIONAL", "REQUIRED"):
        url = url.replace(f"=CERT_{value}", f"={value.lower()}")
    return url


def with_tls(url: str, options: object) -> str:
    """Return *url*, of Redis, with the *options* of ``broker_use_ssl`` or
    ``redis_backend_use_ssl``. As in Celery, only a dict has a meaning, and it takes
    precedence over the URL's own options.

    >>> with_tls("redis://host:6379/0?ssl_cert_reqs=none", {"ssl_ca_certs": "/etc/ca.crt"})
    'rediss://host:6379/0?ssl_cert_reqs=none&ssl_ca_certs=/etc/ca.crt'
    >>> with_tls("rediss://host?ssl_cert_reqs=none&db=2", {"ssl_cert_reqs": ssl.CERT_REQUIRED})
    'rediss://host?db=2&ssl_cert_reqs=required'
    """
    scheme, _, rest = url.partition("://")
    if not isinstance(options, Mapping) or not options or scheme not in ("redis", "rediss"):
        return url
    place, _, query = rest.partition("?")
    kept = [each for each in query.split("&") if each and each.partition("=")[0] not in options]
    for name, value in options.items():
        if name == "ssl_cert_reqs":
            value = _verification(value)
        elif isinstance(value, list | tuple):
            value = _flags(value)
        elif isinstance(value, ssl.TLSVersion):
            value = int(value)  # as text, it is its name in Python 3.10
        if isinstance(value, str | int | float | os.PathLike):
            kept.append(f"{name}={quote(str(value), safe='/')}")
    return f"rediss://{place}?{'&'.join(kept)}"


def _verification(value: object) -> object:
    """Return ``ssl_cert_reqs`` as redis-py reads it in a URL. ``None`` is no verification."""
    if value is None:
        return "none"
    if isinstance(value, int) and value in list(ssl.VerifyMode):
        value = ssl.VerifyMode(value).name
    return value.removeprefix("CERT_").lower() if isinstance(value, str) else value


def _flags(values: Sequence[object]) -> str:
    """Return a list of verify flags, each of which may combine several, as redis-py reads it in
    a URL: by their names.
    """
    numbers = [value for value in values if isinstance(value, int)]
    known = ssl.VerifyFlags.__members__.items()
    return ",".join(n for n, flag in known if any(flag & x == flag != 0 for x in numbers))


def is_redis(url: object) -> TypeGuard[str]:
    """Return whether *url* is one of Redis."""
    return isinstance(url, str) and url.startswith(_REDIS)


def redis_url(key: str, value: object) -> str:
    """Return *value* as a URL that redis-py takes. Its options are not checked.

    Raises:
        ConfigurationError: it is not one; the message never shows a password.
    """
    allowed = "a URL that begins with redis://, rediss:// or unix://"
    if not is_redis(value):
        raise ConfigurationError(key, redacted(value), allowed)
    url = plain_redis_url(value)
    try:
        parts = urlsplit(url)
        # redis-py takes database 0 for a path that is no number, such as "/0;redis://other/0".
        database = unquote(parts.path).replace("/", "").strip() or "0"
        misplaced = "@" in parts.fragment or not database.isdecimal()
        readable = parts.port != 0 and (parts.scheme == "unix" or not misplaced)
    except ValueError:  # an invalid port, or a missing bracket
        readable = False
    if not readable:
        raise ConfigurationError(
            key,
            redacted(value),
            f"{allowed}, of one server, with a port from 1 to 65535, the number of a database "
            f"after it and {ESCAPED}",
        )
    return url


def place_of(url: str) -> str:
    """Return the server and database of *url*, of Redis, whatever its password and options.

    >>> place_of("redis://me:secret@host:6379/0?ssl_ca_certs=/etc/ca.crt")
    'redis://host:6379/0'
    >>> place_of("unix://:secret@/run/redis.sock?db=2")
    'unix:///run/redis.sock?db=2'
    """
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db")
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{place}?db={database[0]}" if database else place


def shown_url(url: str) -> str:
    """Return *url* without user name, password and options.

    Everything before the last @ is hidden, even if the password contains characters
    that should have been encoded: errors show such URLs.

    >>> shown_url("redis://:secret@host:6379/0?password=x")
    'redis://host:6379/0'
    >>> shown_url("mongodb://me:se/cr?et@host/rts")
    'mongodb://***'
    """
    scheme, _, rest = url.partition("://")
    credentials, _, place = rest.rpartition("@")
    if not {"?", "#"}.isdisjoint(credentials):
        return f"{scheme}://***"  # the @ may be in the options
    return f"{scheme}://{re.split('[?#]', place, maxsplit=1)[0]}"


def redacted_host(value: object) -> object:
    """Return what an error shows of *value*, which should have been a URL whose path may be
    as secret as a password: its scheme and host.

    >>> redacted_host("htps://me:hush@hooks.example.org/services/T0/KEY")
    'htps://***@hooks.example.org/***'
    """
    if not isinstance(value, str):
        return redacted(value)
    begin = _SCHEME.match(value)
    scheme = begin[0] if begin else ""
    host, *path = re.split(r"[/?#\s]", value.removeprefix(scheme), maxsplit=1)
    if path and "@" in path[0]:
        return f"{scheme}***"  # what precedes the @ may be a part of a password
    return f"{redacted(scheme + host)}{'/***' if path else ''}"


def redacted(value: object) -> object:
    """Return what an error shows of *value*, which should have been a URL and may contain a
    password anywhere.

    >>> redacted("http://me:secret@host/0?password=x")
    'http://***@host/0?***'
    >>> redacted("redis://:secret")
    'redis://:***'
    >>> redacted(["redis://:secret@host"])
    'a list'
    """
    if not isinstance(value, str):
        return value if isinstance(value, int | float) else f"a {type(value).__name__}"
    begin = _SCHEME.match(value)
    scheme = begin[0] if begin else ""
    credentials, at, place = value.removeprefix(scheme).rpartition("@")
    if not {"?", "#"}.isdisjoint(credentials):
        return f"{scheme}***"  # the @ may be in the options
    place, *options = re.split("[?#]", place, maxsplit=1)
    shown = scheme + ("***@" if at else "") + _NO_PORT.sub(":***", place)
    return shown + ("?***" if options else "")
