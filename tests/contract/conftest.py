"""The ledger on a real MongoDB, and each of both."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient
from pymongo.database import Database

from rts.keys import REFUSED
from rts.ledger.mongo import MongoLedger
from rts.settings import Settings
from tests.ledgers import InMemory, OnMongo, Subject


@pytest.fixture(scope="session")
def indexed(rts_mongo_session_url: str) -> Iterator[Database[dict[str, Any]]]:
    """A database that keeps its indexes: to make them takes longer than most tests.

    No test changes its collections or their indexes.
    """
    name = f"rts_test_{secrets.token_hex(6)}"
    with MongoClient[dict[str, Any]](rts_mongo_session_url) as client:
        yield client[name]
        client.drop_database(name)


@pytest.fixture
def emptied_url(rts_mongo_session_url: str, indexed: Database[dict[str, Any]]) -> Iterator[str]:
    """URL of that database, which is emptied afterwards."""
    yield urlsplit(rts_mongo_session_url)._replace(path=f"/{indexed.name}").geturl()
    for name in indexed.list_collection_names():
        if name != REFUSED:
            indexed[name].delete_many({})
        elif indexed[name].find_one():
            indexed[name].drop()  # capped: nothing can be deleted before MongoDB 5


@pytest.fixture
def ledger(rts_mongo_url: str) -> Iterator[MongoLedger]:
    made = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=0))
    yield made
    made.close()


@pytest.fixture
def on_mongo(emptied_url: str) -> Iterator[OnMongo]:
    subject = OnMongo(emptied_url)
    yield subject
    subject.ledger.close()


@pytest.fixture(params=["memory", "mongo"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return InMemory()
    found: Subject = request.getfixturevalue("on_mongo")
    return found
