"""The ledger on a real MongoDB, and each of both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rts.ledger.mongo import MongoLedger
from rts.settings import Settings
from tests.ledgers import InMemory, OnMongo, Subject


@pytest.fixture
def ledger(rts_mongo_url: str) -> Iterator[MongoLedger]:
    made = MongoLedger(Settings(mongo_url=rts_mongo_url, ledger_ttl=0))
    yield made
    made.close()


@pytest.fixture
def on_mongo(rts_mongo_url: str) -> Iterator[OnMongo]:
    subject = OnMongo(rts_mongo_url)
    yield subject
    subject.ledger.close()


@pytest.fixture(params=["memory", "mongo"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return InMemory()
    found: Subject = request.getfixturevalue("on_mongo")
    return found
