"""What the commands have in common: settings, servers, JSON."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import click
from pymongo.database import Database
from pymongo.errors import PyMongoError

from rts.errors import BrokerUnavailable, StoreUnavailable, short
from rts.ledger.connection import connect, database_of
from rts.link.link import Link
from rts.settings import Settings
from rts.urls import shown_url
from rts.views.plain import plain
from rts.views.windows import parse

#: Seconds for Redis to take a connection and to answer. No task waits here, so they
#: are longer than a worker's.
CONNECT_TIMEOUT_S, TIMEOUT_S = 2.0, 5.0
#: Seconds without a new attempt after a failure: a command just asks again.
BREAKER_S = 1e-3

#: What Celery calls the app that it makes where none is given.
NO_APP = "default"


class Number(click.FloatRange):
    """A number within a range; NaN is within none, whatever click says."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """See :class:`click.FloatRange`."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def settings_of(ctx: click.Context) -> Settings:
    """Return the settings of the app that ``-A`` names; say so where it names none.

    Raises:
        ConfigurationError: one of them is not valid.
    """
    if ctx.obj.app.main == NO_APP:
        note = (
            "no app is given (celery -A proj rts …): these are the settings of celeryconfig.py"
        )
        click.echo(f"Note: {note}, where there is one, and the defaults", err=True)
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


def patient_link(settings: Settings, connect_timeout_s: float, timeout_s: float) -> Link:
    """Return a way to Redis with these timeouts, which asks again at once after a failure."""
    return Link.with_timeouts(settings, connect_timeout_s, timeout_s, BREAKER_S)


@contextmanager
def link_to_redis(settings: Settings) -> Iterator[Link]:
    """Give a way to Redis; an outage is told with what to do about it."""
    link = patient_link(settings, CONNECT_TIMEOUT_S, TIMEOUT_S)
    try:
        with outages_not_logged():
            yield link
    except BrokerUnavailable:
        raise
    except StoreUnavailable as exc:
        raise StoreUnavailable(
            f"Redis at {shown_url(settings.redis_url)} is not usable "
            f"({short(exc.__cause__ or exc)}). Check the server and rts_redis_url"
        ) from exc
    finally:
        link.close()


@contextmanager
def outages_not_logged() -> Iterator[None]:
    """Keep back what the way to Redis logs of an outage: it is meant for processes
    that run tasks, and a short command says itself what is wrong.
    """
    logger = logging.getLogger("rts")
    logger.addFilter(_not_of_link)
    try:
        yield
    finally:
        logger.removeFilter(_not_of_link)


def _not_of_link(record: logging.LogRecord) -> bool:
    return record.module != "link"


@contextmanager
def ledger_of(settings: Settings) -> Iterator[Database[dict[str, Any]]]:
    """Give the database of the ledger; an outage is told with what to do about it."""
    url = shown_url(settings.mongo_url)
    try:
        client = connect(settings.mongo_url)
        try:
            yield database_of(client)
        finally:
            client.close()
    except (StoreUnavailable, PyMongoError) as exc:
        raise StoreUnavailable(
            f"MongoDB at {url} is not usable ({short(exc.__cause__ or exc)}). Check the "
            "server and rts_mongo_url"
        ) from exc


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document. Without what is no number in JSON: it becomes null."""
    click.echo(json.dumps(plain(document), indent=2, allow_nan=False))
