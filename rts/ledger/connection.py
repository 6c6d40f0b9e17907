"""Connects to the ledger's MongoDB, and tells what its errors mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timezone
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    InvalidURI,
    OperationFailure,
    PyMongoError,
    WTimeoutError,
)

from rts.errors import StoreUnavailable, short
from rts.urls import redacted

#: The ledger's database, of documents as dicts.
LedgerDatabase = Database[dict[str, Any]]

#: The database, if the URL names none.
DEFAULT_DATABASE = "rts"

#: Client options, in milliseconds where they are times, unless the URL sets them. A drain may
#: wait longer than a task ever would: it keeps its records meanwhile.
CLIENT_OPTIONS: Mapping[str, int] = {
    "serverSelectionTimeoutMS": 2000,
    "connectTimeoutMS": 2000,
    "socketTimeoutMS": 30000,
    "maxPoolSize": 8,
}
#: Options whose values are never shown, in lower case.
SECRET_OPTIONS = frozenset({"tlscertificatekeyfilepassword", "authmechanismproperties"})
#: A majority that does not acknowledge within this is unavailable.
WRITE_TIMEOUT_MS = 10000

#: Codes of server errors that are not the document's fault: try again later.
UNAVAILABLE = frozenset(
    [
        # Not the primary, shutting down, stepping down, interrupted by either.
        *(6, 7, 89, 91, 189, 9001, 10058, 10107, 11600, 11601, 11602, 13435, 13436),
        # No right to write (yet), writes blocked, disk full (of the storage engine: 8), quota,
        # memory, locks, time.
        *(8, 13, 18, 24, 46, 50, 64, 79, 100, 112, 146, 262, 317, 371, 8000, 12501, 14031),
        # No primary that mongos knows, no majority to read from yet, the database is being
        # dropped, authentication expired, overload (MongoDB 8).
        *(133, 134, 215, 391, 462),
    ]
)

#: What the driver raises without an answer of the server. ConfigurationError: a mongodb+srv
#: URL, which is resolved on first use, was not. InvalidOperation: the client was closed.
_NO_ANSWER = (
    ConnectionFailure,
    ConfigurationError,
    ExecutionTimeout,
    InvalidOperation,
    WTimeoutError,
)


def connect(url: str, client_options: Mapping[str, int] = CLIENT_OPTIONS) -> LedgerDatabase:
    """Return the database that *url* names, with a client of its own, which has
    *client_options* for those that the URL does not set.

    Nothing is sent before the first operation. Datetimes that are read are aware. Writes are
    acknowledged by a majority and journaled, because what was acknowledged is then deleted from
    the outbox.

    Raises:
        pymongo.errors.InvalidURI: the URL is invalid, or has options that are invalid,
            conflict, or name a file that cannot be read. The message shows no password.
    """
    query = url.partition("?")[2].replace(";", "&")
    given = {key.lower() for key, _ in parse_qsl(query, keep_blank_values=True)}
    options: dict[str, Any] = {
        key: value for key, value in client_options.items() if key.lower() not in given
    }
    if not given & {"w", "journal", "wtimeoutms"}:
        options |= {"w": "majority", "journal": True, "wTimeoutMS": WRITE_TIMEOUT_MS}
    if "appname" not in given:
        options["appname"] = "rts"
    try:
        client: MongoClient[dict[str, Any]] = MongoClient(
            url, connect=False, tz_aware=True, tzinfo=timezone.utc, **options
        )
        return client.get_default_database(DEFAULT_DATABASE)
    except (PyMongoError, ValueError, OSError) as exc:  # OSError: a file that an option names
        raise InvalidURI(f"{redacted(url)} is not valid ({_reason(exc, url)})") from None


def _reason(exc: Exception, url: str) -> str:
    """Return the driver's message, or its type alone if that might show a secret."""
    hidden = url.partition("://")[2].rpartition("@")[0].split(":", 1)
    for option in re.split("[&;]", url.partition("?")[2]):
        name, _, value = option.partition("=")
        if name.lower() in SECRET_OPTIONS:
            hidden.append(value)
    said = str(exc)
    hidden += [unquote_plus(part) for part in hidden]
    if any(part and part in said for part in hidden):
        return type(exc).__name__
    return said


@contextmanager
def translate_outages() -> Iterator[None]:
    """Turn driver errors that mean an unavailable server into :class:`StoreUnavailable`."""
    try:
        yield
    except _NO_ANSWER as exc:
        raise StoreUnavailable(f"MongoDB does not answer ({short(exc)})") from exc
    except BulkWriteError as exc:
        raise_if_unavailable(exc)
        raise
    except OperationFailure as exc:
        if exc.code not in UNAVAILABLE:
            raise
        raise StoreUnavailable(f"MongoDB refuses ({short(exc)}, code {exc.code})") from exc


def raise_if_unavailable(exc: BulkWriteError) -> None:
    """Raise :class:`StoreUnavailable` unless the documents alone are at fault: if the server
    refused some for a while, or no majority has confirmed them.
    """
    refused = [e for e in exc.details.get("writeErrors", ()) if e.get("code") in UNAVAILABLE]
    for error in (*exc.details.get("writeConcernErrors", ()), *refused):
        why = f"{str(error.get('errmsg'))[:200]}, code {error.get('code')}"
        raise StoreUnavailable(f"MongoDB did not take everything ({why})") from exc
