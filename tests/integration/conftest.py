"""Settings, commands, and a Redis for what no other test, and nobody else, may come near."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import Connection

import rts as rts_of
from rts.cli import rts
from rts.link.link import Link
from rts.settings import Settings
from rts.testing import RedisServer
from tests.commands import Run
from tests.conftest import MakeApp, MakeStage, Stage
from tests.order import connect


@pytest.fixture
def url(server: RedisServer) -> str:
    """The Redis of the file's own, emptied, for queues whose names are always the same."""
    with redis.Redis.from_url(server.url) as client:
        client.flushdb()
    return server.url


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    """A client of that Redis."""
    client = redis.Redis.from_url(url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def channel(url: str) -> Iterator[Any]:
    """A channel of that Redis in deadline order."""
    with connect(url) as connection:
        yield connection.default_channel


@pytest.fixture
def plain(url: str) -> Iterator[Any]:
    """A channel of that Redis without the order."""
    with Connection(url) as connection:
        yield connection.default_channel


@pytest.fixture
def link(settings: Settings) -> Iterator[Link]:
    """A link to the session's Redis."""
    link = Link(settings)
    yield link
    link.close()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A Redis of the file's own, which its tests may stop, pause and empty."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def conf(
    rts_redis_url: str, rts_mongo_url: str, rts_key_prefix: str, tmp_path: Path
) -> dict[str, Any]:
    """The configuration of the app; tests may change it."""
    return {
        "rts_redis_url": rts_redis_url,
        "rts_mongo_url": rts_mongo_url,
        "rts_key_prefix": rts_key_prefix,
        "rts_spool_dir": str(tmp_path / "spool"),
    }


@pytest.fixture
def producer(make_stage: MakeStage, apps: MakeApp) -> tuple[Stage, Celery]:
    """A stage, and an app that publishes to its workers."""
    stage = make_stage()
    return stage, apps(stage)


@pytest.fixture
def cli(conf: dict[str, Any]) -> Run:
    """Run a command in this process."""

    def run(*arguments: str, charset: str = "utf-8", **options: Any) -> Result:
        app = Celery("cli", set_as_current=False)
        rts_of.install(app)
        app.conf.update(conf)
        context = CLIContext(app=app, no_color=True, workdir=None)
        result = CliRunner(charset).invoke(rts, arguments, obj=context, **options)
        rts_of.uninstall(app)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result

    return run
