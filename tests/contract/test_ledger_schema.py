"""Collections and indexes of the ledger, beside those that others have created."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from rts.errors import StoreUnavailable
from rts.ledger.mongo import PREPARE_S, MongoLedger
from rts.settings import Settings
from tests.ledgers import entry, execution


@pytest.mark.parametrize("name", ["arrival_1", "mine"])
def test_a_foreign_time_to_live_is_replaced(rts_mongo_url: str, name: str) -> None:
    for ttl_s in (100.0, 0.0):
        ledger = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=ttl_s))
        tasks = ledger.database["tasks"]
        if ttl_s:
            tasks.create_index("arrival", name=name, expireAfterSeconds=60)
        ledger.prepare()
        (index,) = (
            i for i in tasks.index_information().values() if i["key"] == [("arrival", 1)]
        )
        assert index.get("expireAfterSeconds", 0) == ttl_s
        ledger.close()


def test_foreign_indexes_under_other_names_serve_as_well(rts_mongo_url: str) -> None:
    settings = Settings(mongo_url=rts_mongo_url, ledger_ttl=0)
    ledger = MongoLedger(settings)
    ledger.prepare()
    for name in ("tasks", "assignments"):
        collection = ledger.database[name]
        for own, index in collection.index_information().items():
            if own != "_id_":
                collection.drop_index(own)
                options = {k: index[k] for k in index.keys() - {"key", "v"}}
                collection.create_index(index["key"], name=f"mine_{own}", **options)
    ledger.close()
    again = MongoLedger(settings)
    again.write([entry(execution())])
    assert again.database["assignments"].count_documents({}) == 1
    again.close()


IN_THE_WAY: dict[str, Callable[[Any], object]] = {
    "has the same name": lambda database: database["assignments"].create_index(
        "x", name="misses"
    ),
    "tasks is a view": lambda database: database.command(
        "create", "tasks", viewOn="x", pipeline=[]
    ),
}


@pytest.mark.parametrize("reason", IN_THE_WAY)
def test_a_conflicting_collection_is_reported_and_no_record_refused(
    ledger: MongoLedger, reason: str
) -> None:
    IN_THE_WAY[reason](ledger.database)
    for work in (lambda: ledger.write([entry(execution())]), lambda: ledger.refuse(b"x")):
        with pytest.raises(StoreUnavailable, match=reason) as caught:
            work()
        assert ledger.database.name in str(caught.value)


@pytest.mark.parametrize("name", ["tasks", "assignments", "rollups"])
def test_the_documents_of_another_app_do_not_expire(rts_mongo_url: str, name: str) -> None:
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url))
    theirs = ledger.database[name]
    names = ("arrival", "completed_at", "start")
    theirs.insert_one(dict.fromkeys(names, datetime(2020, 1, 1, tzinfo=timezone.utc)))
    for each in names:
        theirs.create_index(each)
    before = theirs.index_information()
    with pytest.raises(StoreUnavailable, match=f"{name} holds documents that are not of rts"):
        ledger.write([entry(execution())])
    assert theirs.index_information() == before
    assert theirs.count_documents({}) == 1
    ledger.close()


def test_a_ledger_with_a_document_that_somebody_added_is_used(rts_mongo_url: str) -> None:
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url))
    ledger.prepare()
    ledger.database["tasks"].insert_one({"_id": "added"})
    again = MongoLedger(Settings(mongo_url=rts_mongo_url))
    again.write([entry(execution())])
    assert again.database["tasks"].count_documents({}) == 2
    again.close()
    ledger.close()


def test_a_foreign_unique_index_is_reported(ledger: MongoLedger) -> None:
    ledger.write([entry(execution())])
    ledger.database["tasks"].create_index("name", unique=True)
    with pytest.raises(OperationFailure, match="name_1"):
        ledger.write([entry(execution(task_id="other"))])


def test_indexes_and_time_to_live(rts_mongo_url: str) -> None:
    def ttl(seconds: float) -> dict[str, Any]:
        ledger = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=seconds))
        ledger.prepare()
        again = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=seconds))
        again.prepare()
        again.close()
        found = {
            name: ledger.database[name]
            .index_information()[f"{field}_1"]
            .get("expireAfterSeconds")
            for name, field in (("tasks", "arrival"), ("assignments", "completed_at"))
        }
        ledger.close()
        return found

    assert ttl(3600) == {"tasks": 3600, "assignments": 3600}
    assert ttl(7200.5) == {"tasks": 7200, "assignments": 7200}
    assert ttl(0) == {"tasks": None, "assignments": None}
    assert ttl(0.5) == {"tasks": 1, "assignments": 1}
    # MongoDB 4.4 takes no more than have passed since 1970.
    assert all(1e9 < longest < time.time() for longest in ttl(1e18).values())


def test_indexes_come_back_after_somebody_has_dropped_the_database(rts_mongo_url: str) -> None:
    now = [0.0]
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url), now=lambda: now[0])
    ledger.write([entry(execution(task_id="before"))])
    collections = ledger.database["tasks"], ledger.database["assignments"]
    made = [set(collection.index_information()) for collection in collections]
    ledger.database.client.drop_database(ledger.database.name)
    now[0] += PREPARE_S
    ledger.write([entry(execution(task_id="after"))])
    assert [set(collection.index_information()) for collection in collections] == made
    ledger.close()


def test_a_time_to_live_that_was_changed_since_stays(rts_mongo_url: str) -> None:
    """Two drains with other settings would change it back and forth."""
    now = [0.0]
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url), now=lambda: now[0])
    ledger.prepare()
    other = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=3600))
    other.prepare()
    other.close()
    now[0] += PREPARE_S
    ledger.prepare()
    index = ledger.database["tasks"].index_information()["arrival_1"]
    assert index["expireAfterSeconds"] == 3600
    ledger.close()
