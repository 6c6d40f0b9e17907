"""A real ``celery flower`` on real servers, and a ledger with something in it."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rts.ledger.mongo import MongoLedger
from rts.records import Execution, OutboxEntry
from rts.settings import Settings
from rts.testing import wait_until
from rts.testing.processes import OwnedProcess
from tests.conftest import FULL, ROOT, Stage
from tests.rabbitmq import free_port
from tests.records import ended

#: A name that runs, where it is not shown as text.
EVIL = "<script>alert('rts')</script><img src=x onerror=alert(1)>\"'{{7*7}}"


class Answer(NamedTuple):
    """What an HTTP request gave."""

    status: int
    text: str
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Flower:
    """``celery -A APP flower`` in a process of its own."""

    def __init__(
        self,
        env: dict[str, str],
        folder: Path,
        *arguments: str,
        app: str = "tests.apps.basic",
        scheme: str = "http",
        prefix: str = "",
        basic_auth: str = "",
    ) -> None:
        self.port = free_port()
        self.log_path = folder / f"flower-{self.port}.log"
        self.base = f"{scheme}://127.0.0.1:{self.port}{'/' + prefix if prefix else ''}"
        self.basic_auth = basic_auth
        #: Any certificate will do: it is this test's own.
        self._tls = ssl._create_unverified_context() if scheme == "https" else None
        options = [f"--port={self.port}", "--address=127.0.0.1", f"--db={folder / 'flowerdb'}"]
        if prefix:
            options.append(f"--url-prefix={prefix}")
        if basic_auth:
            options.append(f"--basic-auth={basic_auth}")
        self.process = OwnedProcess(
            [sys.executable, "-m", "celery", "-A", app, "flower", *options, *arguments],
            self.log_path,
            env={**os.environ, **env},
            cwd=ROOT,
        )
        wait_until(lambda: self._listens() or not self.process.running, 60)
        assert self.process.running, self.log

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def get(self, path: str, *, auth: bool = True, method: str = "GET") -> Answer:
        """Ask for a path below the prefix."""
        request = urllib.request.Request(self.base + path, method=method)
        if self.basic_auth and auth:
            token = base64.b64encode(self.basic_auth.encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
                return Answer(answer.status, answer.read().decode(), answer.headers)
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, exc.read().decode(), exc.headers)

    def counted(self, path: str) -> Answer:
        """Ask for a document until nothing in it is still being counted."""
        found: list[Answer] = []

        def whole() -> bool:
            found.append(self.get(path))
            return found[-1].status != 200 or '"counting": true' not in found[-1].text

        wait_until(whole, 20)
        return found[-1]

    def stop(self) -> None:
        self.process.stop()


@pytest.fixture
def make_flower(tmp_path: Path) -> Iterator[Callable[..., Flower]]:
    """Start Flowers for a stage's app; they end with the test."""
    started: list[Flower] = []

    def make(stage: Stage, *arguments: str, env: Any = None, **options: Any) -> Flower:
        variables = {**stage.environment, "PYTHONPATH": FULL, **(env or {})}
        flower = Flower(variables, tmp_path, *arguments, **options)
        started.append(flower)
        return flower

    yield make
    for flower in started:
        flower.stop()


def some_runs() -> list[Execution]:
    """Return runs of four types: one is well, the others miss for each of the reasons."""
    runs = [ended(n, 10 + 30 * n) for n in range(40)]
    for n in range(20):
        at = time.time() - 20 - 60 * n
        waited = {"arrival": at - 30, "deadline": at - 24, "started_at": at - 3}
        long = {"arrival": at - 9, "deadline": at - 3, "started_at": at - 9, "runtime_s": 9.0}
        busy = {"load": 1.2, "cpu": 1.4, "memory": 1.0, "gpu": None}
        for kind, changes in (
            ("memory-heavy", waited),
            ("cpu-heavy", {**long, "load_at_start": busy}),
            ("mixed", long),
        ):
            number = 1000 + len(runs)
            runs.append(
                ended(
                    number, 0, task_type=kind, name=f"proj.{kind}", **changes, completed_at=at
                )
            )
    return runs


@pytest.fixture
def write(rts_mongo_url: str) -> Iterator[Callable[..., None]]:
    """Write runs into the ledger of this test."""
    ledger = MongoLedger(Settings(mongo_url=rts_mongo_url))

    def put(*runs: Execution) -> None:
        ledger.write([OutboxEntry(str(n), run) for n, run in enumerate(runs)])

    yield put
    ledger.close()
