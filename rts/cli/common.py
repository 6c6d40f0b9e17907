"""What the commands have in common: settings, servers, progress, JSON."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import FrameType
from typing import Any, TypeVar

import click
from pymongo.errors import PyMongoError

from rts.cli.table import is_terminal
from rts.errors import BrokerUnavailable, StoreUnavailable, unusable
from rts.ledger.connection import LedgerDatabase, connect
from rts.link.link import Link
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.json_values import plain
from rts.views.windows import parse

T = TypeVar("T")

#: Seconds for Redis to accept a connection and to answer. No task waits here, so they are
#: longer than a worker's.
CONNECT_TIMEOUT_S, TIMEOUT_S = 2.0, 5.0

#: Celery's name for the app that it creates if none is given.
NO_APP = "default"


class Number(click.FloatRange):
    """A number within a range, which NaN never is, although click accepts it."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See :class:`click.FloatRange`."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings of the app that ``-A`` names; print a note if it names none.

    Raises:
        ConfigurationError: one of them is not valid.
    """
    if ctx.obj.app.main == NO_APP:
        click.echo(
            "Note: no app is given (celery -A proj rts …), so the settings are the defaults "
            "and those of celeryconfig.py, if there is one",
            err=True,
        )
    return Settings.from_conf(ctx.obj.app.conf)


def instant(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> timedelta | datetime | None:
    """Read an option: a duration, which is that long ago, or an instant."""
    try:
        return None if value is None else parse(value)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is neither a duration (90s, 15m, 24h, 7d, 2w) nor an instant "
            "(2030-01-31, 2030-01-31T12:00:00Z)"
        ) from None


def window(
    since: timedelta | datetime, until: timedelta | datetime | None, now: datetime
) -> tuple[datetime, datetime]:
    """Return start and end of the window between two options, for which durations count back
    from *now*.

    Raises:
        UsageError: the window is empty, or begins before the calendar does.
    """
    try:
        begin, end = (
            now - at if isinstance(at, timedelta) else at for at in (since, until or now)
        )
    except OverflowError:
        raise click.UsageError("the window begins before the year 1") from None
    if begin >= end:
        raise click.UsageError("--since must be before --until")
    return begin, end


@contextmanager
def link_to_redis(settings: Settings) -> Iterator[Link]:
    """Yield a link to Redis; an outage is reported with what to do about it."""
    link = Link.with_timeouts(settings, CONNECT_TIMEOUT_S, TIMEOUT_S)
    try:
        with outages_not_logged():
            yield link
    except BrokerUnavailable:
        raise
    except StoreUnavailable as exc:
        raise StoreUnavailable(f"{exc}. Check the server and rts_redis_url") from exc
    finally:
        link.close()


@contextmanager
def outages_not_logged() -> Iterator[None]:
    """Suppress what the link to Redis logs of an outage: that is meant for processes that run
    tasks, and a command reports the problem itself.
    """

    def not_of_link(record: logging.LogRecord) -> bool:
        return record.module != "link"

    logger = logging.getLogger("rts")
    logger.addFilter(not_of_link)
    try:
        yield
    finally:
        logger.removeFilter(not_of_link)


@contextmanager
def ledger_of(settings: Settings) -> Iterator[LedgerDatabase]:
    """Yield the database of the ledger; an outage is reported with what to do about it."""
    try:
        database = connect(settings.mongo_url)
        try:
            yield database
        finally:
            database.client.close()
    except (StoreUnavailable, PyMongoError) as exc:
        why = unusable(f"MongoDB at {shown_url(settings.mongo_url)}", exc)
        raise StoreUnavailable(f"{why}. Check the server and rts_mongo_url") from exc


@contextmanager
def set_on_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second one ends the process at once."""
    stop = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # In a thread: the handler may have interrupted the one that holds the event's lock.
        threading.Thread(target=stop.set).start()

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error, if a terminal; call the result with the steps done."""
    if not is_terminal(sys.stderr):
        yield lambda steps: None
        return
    steps = max(1, length // 100)
    with click.progressbar(
        length=length, label=label, file=sys.stderr, update_min_steps=steps
    ) as bar:
        yield bar.update
        bar.finish()
        bar.render_progress()


def with_progress(items: Iterable[T], progress: Callable[[int], None]) -> Iterator[T]:
    """Yield *items*; *progress* is called with 1 for each."""
    for item in items:
        progress(1)
        yield item


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document. NaN and infinity become null."""
    click.echo(json.dumps(plain(document), indent=2, allow_nan=False))
