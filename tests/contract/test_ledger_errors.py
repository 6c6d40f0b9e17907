"""What MongoDB refuses, or does not answer: which record, if any, is at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import InvalidURI, OperationFailure

from rts.errors import StoreUnavailable
from rts.ledger.connection import connect
from rts.ledger.mongo import MongoLedger
from rts.settings import Settings
from rts.testing.servers import MongoServer
from tests.ledgers import OnMongo, entry, execution, lost


def test_no_call_to_an_unavailable_server_shows_the_password() -> None:
    url = "mongodb://user:secret@127.0.0.1:9/rts?serverSelectionTimeoutMS=50"
    ledger = MongoLedger(Settings(mongo_url=url))
    calls: list[Callable[[], object]] = [
        lambda: ledger.write([entry(execution())]),
        lambda: ledger.refuse(b"x"),
        lambda: ledger.save_taus({}),
        ledger.load_taus,
        ledger.prepare,
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable) as caught:
            call()
        assert caught.value.__cause__ is not None
        assert "secret" not in str(caught.value)
    ledger.close()
    with pytest.raises(StoreUnavailable):
        ledger.load_taus()


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(InvalidURI) as caught:
        connect("mongodb://user:secret@host:port/rts")
    assert "secret" not in str(caught.value)


def test_options_in_the_url_take_precedence(rts_mongo_url: str) -> None:
    client = connect(rts_mongo_url + "?w=1&serverSelectionTimeoutMS=123").client
    assert client.write_concern.document == {"w": 1}
    assert client.options.server_selection_timeout == 0.123
    client.close()
    client = connect("mongodb://localhost:9/?wTimeoutMS=5&appName=mine").client
    assert client.write_concern.document == {"wtimeout": 5}
    assert client.options.pool_options.appname == "mine"
    client.close()
    client = connect("mongodb://localhost:9").client
    concern = client.write_concern.document
    assert (concern["w"], concern["j"]) == ("majority", True)
    assert client.options.pool_options.appname == "rts"
    client.close()


def test_a_document_error_surfaces(rts_mongo_url: str) -> None:
    """A validator of the operators' own refuses one record; the others are stored."""
    subject = OnMongo(rts_mongo_url)
    ledger = subject.ledger
    ledger.prepare()
    ledger.database.command("collMod", "assignments", validator={"pid": {"$lt": 1000}})
    good, bad = entry(execution(task_id="g")), entry(execution(task_id="b", pid=1000))
    with pytest.raises(OperationFailure):
        ledger.write([bad, good])
    ledger.write([good])
    assert [t["_id"] for t in subject.documents()[0]] == ["g"]
    ledger.close()


@pytest.mark.parametrize("code", [8, 14031, 10107, 11600, 13, 133, 134, 215, 462])
def test_errors_that_are_not_about_a_record(faulty: FaultyServer, code: int) -> None:
    """The server itself fails, by its own fail points: disk full, not primary, …"""
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(execution())])
    faulty.fails({"failCommands": ["insert", "update"], "errorCode": code})
    for run in (execution(task_id="u"), lost()):
        with pytest.raises(StoreUnavailable, match=r"Failing command|did not"):
            subject.ledger.write([entry(run)])
    faulty.works()
    subject.ledger.close()
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(execution(task_id="u"))])
    assert len(subject.documents()[0]) == 2
    subject.ledger.close()


@pytest.mark.parametrize("command", ["insert", "update"])
def test_a_majority_that_does_not_answer(faulty: FaultyServer, command: str) -> None:
    subject = OnMongo(faulty.url)
    subject.ledger.write([entry(lost())])
    concern = {"code": 64, "errmsg": "waiting for replication timed out"}
    faulty.fails({"failCommands": [command], "writeConcernError": concern})
    with pytest.raises(StoreUnavailable):
        subject.ledger.write([entry(execution())])
    faulty.works()
    subject.ledger.write([entry(execution())])
    assert subject.documents()[0][0]["state"] == "SUCCESS"
    subject.ledger.close()


class FaultyServer:
    """A server whose fail points are set over a connection of their own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: MongoClient[dict[str, Any]] = MongoClient(url)

    def fails(self, fault: dict[str, Any]) -> None:
        self.client.admin.command(
            "configureFailPoint", "failCommand", mode="alwaysOn", data=fault
        )

    def works(self) -> None:
        self.client.admin.command("configureFailPoint", "failCommand", mode="off")


@pytest.fixture(scope="session")
def faulty_session() -> Iterator[FaultyServer]:
    arguments = ("--setParameter", "enableTestCommands=1")
    with MongoServer(database="faulty", arguments=arguments) as server:
        made = FaultyServer(server.url)
        yield made
        made.client.close()


@pytest.fixture
def faulty(faulty_session: FaultyServer) -> Iterator[FaultyServer]:
    """The faulty server, empty and without a fault before and after."""
    yield faulty_session
    faulty_session.works()
    faulty_session.client.drop_database("faulty")
