"""Whoever looks from a host whose clock is wrong sees what all others see."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from rts.cli.watch_data import Gatherer
from rts.flower.source import Source
from rts.link.link import Link
from rts.settings import Settings
from rts.testing import RedisServer, wait_until
from rts.views.fleet_time import FleetTime
from rts.views.metrics import RtsCollector
from tests.commands import NO_REDIS, Run, document, write_verdicts
from tests.relay import AHEAD_S, Ahead, relay

#: The tasks that were late a minute ago there.
LATE = 20


@pytest.fixture
def conf(rts_mongo_url: str, rts_key_prefix: str, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The configuration of a host that is behind."""
    with RedisServer() as server, relay(server, Ahead) as address:
        conf = {
            "rts_redis_url": f"redis://127.0.0.1:{address.port}",
            "rts_mongo_url": rts_mongo_url,
            "rts_key_prefix": rts_key_prefix,
            "rts_spool_dir": str(tmp_path / "spool"),
            "broker_url": server.url,
        }
        write_verdicts(conf, ("cpu-light", 60 - AHEAD_S, 0, LATE))
        yield conf


def test_reports_and_checks_end_now_by_the_clock_of_redis(cli: Run) -> None:
    assert document(cli("report", "--since", "5m", "--json"))["total"]["tasks"] == LATE
    result = cli("check", "--slo")
    assert result.exit_code == 2, result.output
    assert f"0.0 % of {LATE} tasks on time" in result.output
    (row,) = document(cli("replay", "--since", "5m", "--slots", "1", "--json"))["rows"]
    assert row["tasks"] == LATE


def test_so_do_watch_metrics_and_flower(conf: dict[str, Any]) -> None:
    settings = Settings.from_conf(conf)
    snapshot = Gatherer(Celery(broker="memory://", set_as_current=False), settings).gather()
    assert snapshot.types["now"]["cpu-light"].tasks == LATE
    collector = RtsCollector(settings, patience_s=30.0)
    found = {family.name: family for family in collector.collect()}
    collector.close()
    burn = {s.labels["window"]: s.value for s in found["rts_slo_burn_rate"].samples}
    assert burn["5m"] == pytest.approx(20.0)
    source = Source(None, settings)
    assert sum(row.tasks for row in source.counted(timedelta(minutes=5), "type").rows) == LATE
    (objective,) = source.objectives()
    assert objective.windows["5m"].valid == LATE
    assert source.now().timestamp() - time.time() == pytest.approx(AHEAD_S, abs=60.0)
    source.close()


def test_without_redis_it_is_this_hosts_time() -> None:
    link = Link(Settings(redis_url=NO_REDIS))
    assert FleetTime(link, 10.0).measured().timestamp() == pytest.approx(time.time(), abs=60.0)
    link.close()


class Hanging(Link):
    """A link to a server that is ahead, and hangs at first."""

    def __init__(self) -> None:
        super().__init__(Settings())
        self.resumed, self.answered = threading.Event(), threading.Event()

    def call(self, *commands: bytes) -> list[Any]:
        self.resumed.wait(5)
        self.answered.set()
        return [[str(int(time.time() + AHEAD_S)).encode(), b"0"]]


def test_a_redis_that_hangs_holds_up_nothing_else() -> None:
    link = Hanging()
    fleet = FleetTime(link, 0.0)
    fleet.measured()
    assert not link.answered.is_set()
    link.resumed.set()
    wait_until(lambda: fleet.now().timestamp() - time.time() > AHEAD_S - 60)
