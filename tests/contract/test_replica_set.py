"""The ledger on a replica set whose secondary lags behind, read from the secondary."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from pymongo import MongoClient

from rts.errors import StoreUnavailable
from rts.ledger.connection import connect
from rts.ledger.mongo import MongoLedger
from rts.ports import TauEntry
from rts.records import OutboxEntry
from rts.settings import Settings
from rts.testing.servers import MongoServer
from rts.testing.waiting import wait_until
from rts.views import intervals
from rts.views.intervals import Interval
from rts.views.report import report
from rts.views.rollups import sum_up
from tests.records import success

HOUR = (
    datetime(1970, 1, 1, 0, tzinfo=timezone.utc),
    datetime(1970, 1, 1, 1, tzinfo=timezone.utc),
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A replica set whose secondary applies nothing more, and is no part of a majority."""
    arguments = ("--replSet", "rs", "--setParameter", "enableTestCommands=1")
    with MongoServer(arguments=arguments) as first, MongoServer(arguments=arguments) as second:
        hosts = [f"127.0.0.1:{server.port}" for server in (first, second)]
        members = [
            {"_id": 0, "host": hosts[0]},
            {"_id": 1, "host": hosts[1], "priority": 0, "votes": 0},
        ]
        config = {"_id": "rs", "members": members, "settings": {"electionTimeoutMillis": 500}}
        client: MongoClient[dict[str, object]]
        with MongoClient(hosts[0], directConnection=True) as client:
            client.admin.command("replSetInitiate", config)
            wait_until(lambda: client.admin.command("hello")["isWritablePrimary"], 60)
        with MongoClient(hosts[1], directConnection=True) as client:
            wait_until(lambda: client.admin.command("hello")["secondary"], 60)
            client.admin.command("configureFailPoint", "rsSyncApplyStop", mode="alwaysOn")
            yield f"mongodb://{','.join(hosts)}/rts?replicaSet=rs&readPreference=secondary"
            client.admin.command("configureFailPoint", "rsSyncApplyStop", mode="off")


def test_records_are_merged_with_what_the_primary_holds(url: str) -> None:
    ended = success("t")
    lost = ended._replace(state="LOST", cause="lost", runtime_s=None)
    ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))
    for run in (lost, ended):
        ledger.write([OutboxEntry("1-0", run)])
    assert [task["state"] for task in ledger.database.tasks.find()] == ["SUCCESS"]
    ledger.close()


def test_sums_are_those_of_the_primary(url: str) -> None:
    """They would be kept after the secondary has caught up."""
    ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))
    ledger.write([OutboxEntry("1-0", success("t"))])
    ledger.close()
    database = connect(url)
    with database.client:
        assert report(database, *HOUR).rows == [], "the secondary knows nothing yet"
        assert sum_up(database, Interval("tasks", 3600, 0), "type")["cpu-light"].verdicts == 1


def test_a_report_waits_for_no_other_member(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A majority may be away for long, and a busy report stores many sums."""
    monkeypatch.setattr(intervals, "DIRECT", 0)
    url = url.replace("readPreference=secondary", "readPreference=primary")
    ledger = MongoLedger(Settings(mongo_url=url, ledger_ttl=0))
    ledger.write([OutboxEntry("1-0", success("t"))])
    rollups = ledger.database.rollups
    rollups.delete_many({})

    def in_vain() -> int:
        """Return how many writes have waited for other members in vain."""
        status = ledger.database.command("serverStatus")
        return int(status["metrics"]["getLastError"]["wtimeouts"])

    before = in_vain()
    database = connect(f"{url}&w=2&wTimeoutMS=100")
    with database.client:
        for _ in range(2):
            (row,) = report(database, *HOUR).rows
            assert row.tasks == 1
    assert rollups.count_documents({"tallies.type.seal": {"$exists": True}})
    assert in_vain() == before
    ledger.close()


def test_writes_that_no_majority_confirms_are_an_outage(url: str) -> None:
    url = url.replace("readPreference=secondary", "w=2&wTimeoutMS=100")
    ledger = MongoLedger(Settings(mongo_url=url), now=lambda: 0.0)
    ledger._prepared_at = 0.0  # or creating the indexes would fail
    for write in (
        lambda: ledger.save_taus({"mixed": TauEntry(1.0, 1, 1.0)}),
        lambda: ledger.write([OutboxEntry("1-0", success("t"))]),
    ):
        with pytest.raises(StoreUnavailable, match="waiting for replication timed out"):
            write()
    ledger.close()
