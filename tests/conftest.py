"""Fixtures for all tests: real servers, and workers of the test apps on them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis
from celery import Celery
from coverage import Coverage
from hypothesis import settings as hypothesis_settings
from pymongo.database import Database

import rts
from rts import health
from rts.settings import OVERRIDING, Settings
from rts.testing import MongoServer, WorkerProcess

pytest_plugins = ("rts.testing.plugin",)

# A shell may have exported the broker of the demo, say, and no test is to publish there; a
# proxy, which does not lead to this machine's servers; the width of its window.
for variable in list(os.environ):
    if variable in (*OVERRIDING, "COLUMNS") or variable.lower().endswith("_proxy"):
        del os.environ[variable]

ROOT = Path(__file__).parent.parent

#: What processes of the tests import first: in LEAN stand-ins for what most of them do without.
FULL = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
LEAN = os.pathsep.join([str(ROOT / "tests" / "lean"), FULL])

#: ``celery`` with the test app.
CELERY = (sys.executable, "-m", "celery", "-A", "tests.apps.basic")

Ended = subprocess.CompletedProcess[str]

#: For remote control of the only worker there is. Without the limit Celery waits for further
#: replies until the timeout is over.
ONE_REPLY: dict[str, Any] = {"reply": True, "limit": 1, "timeout": 30}

# The same examples each time, so that a failure in CI can be repeated; the seed
# is shown with it.
hypothesis_settings.register_profile(
    "rts", derandomize=True, deadline=None, print_blob=True, max_examples=100
)
hypothesis_settings.load_profile("rts")

#: The seed of :mod:`random` at the start of each test; RTS_TEST_SEED changes it.
SEED = int(os.environ.get("RTS_TEST_SEED", "0"))


#: This environment without coverage: its trace makes the demo and the benchmarks a multiple
#: of themselves, and other tests run their lines.
UNTRACED = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}

#: The files that take longest, the longest first. Each file has one of the processes to
#: itself, so what begins last should be over soon.
LONGEST = (
    "test_demo.py",
    "test_benchmarks.py",
    "test_learned_k.py",
    "test_companion_beside_worker.py",
    "test_companion.py",
    "test_predictions.py",
    "test_order_broker.py",
    "test_outages.py",
    "test_cli.py",
    "test_tab.py",
    "test_browser.py",
    "test_forecast.py",
    "test_workers_tasks.py",
    "test_pools.py",
    "test_compose.py",
    "test_order.py",
    "test_prediction_callers.py",
    "test_install.py",
    "test_worker_process.py",
    "test_replacements.py",
    "test_exporter.py",
    "test_webhooks.py",
    "test_order_modes.py",
    "test_load_real.py",
    "test_servers.py",
    "test_order_worker.py",
    "test_replay.py",
    "test_routes.py",
    "test_signals.py",
    "test_lifecycle.py",
    "test_open_tasks.py",
    "test_overdue.py",
    "test_ledger.py",
    "test_embedded_worker.py",
    "test_check_watch.py",
    "test_series.py",
    "test_fleet.py",
    "test_prometheus.py",
    "test_metrics.py",
    "test_concurrency.py",
    "test_batches.py",
    "test_report.py",
    "test_ledger_order.py",
)


def python(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path = ROOT) -> Ended:
    """Run Python to its end; *env* is added to the environment."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def printed(script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Return what a Python script prints that ends well."""
    ended = python("-c", script, *arguments, env=env)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_report_header() -> str:
    """Show what makes a run repeatable."""
    return f"random seed: {SEED} (RTS_TEST_SEED); hypothesis: the same examples each time"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same random numbers in a test, alone or among others."""
    random.seed(SEED)


@pytest.fixture(autouse=True)
def fresh_health() -> None:
    """Forget what earlier tests counted and warned of."""
    health.take_counts()
    health._seen.clear()


def is_measured(request: pytest.FixtureRequest) -> bool:
    """Return whether a test is marked so."""
    return request.node.get_closest_marker("measured") is not None


@pytest.fixture(autouse=True)
def unmeasured_processes(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have coverage look away from the processes that a test starts, unless it is marked
    ``measured``: a worker takes half as long again under its trace, and a few tests run the
    lines of all.
    """
    if not is_measured(request):
        for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Have coverage look away from this test: what plays or asks many thousands of times
    takes up to three times as long under its trace, and runs no line but what shorter
    tests beside it run too.
    """
    measured = Coverage.current()
    if measured is not None:
        measured.stop()
    yield
    if measured is not None:
        measured.start()


@pytest.fixture(scope="session")
def rts_mongo_server() -> Iterator[MongoServer]:
    """The session's embedded MongoDB. It deletes nothing that is old: the records of many
    tests are of 1970, and it would look for such once a minute.
    """
    with MongoServer() as server:
        with pymongo.MongoClient[dict[str, Any]](server.url) as client:
            client.admin.command("setParameter", 1, ttlMonitorEnabled=False)
        yield server


@pytest.fixture
def settings(rts_redis_url: str, rts_key_prefix: str) -> Settings:
    """Settings for the session's Redis; no test is to fail for its timeout."""
    return Settings(redis_url=rts_redis_url, key_prefix=rts_key_prefix, timeout=5.0)


@pytest.fixture
def redis_client(rts_redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's Redis that speaks text."""
    client = redis.Redis.from_url(rts_redis_url, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def mongo(rts_mongo_url: str) -> Iterator[Database[dict[str, Any]]]:
    """The database of this test."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
        rts_mongo_url, tz_aware=True
    )
    yield client.get_default_database()
    client.close()


class Stage:
    """One test app on servers of its own choice, with workers in real processes."""

    def __init__(
        self,
        broker: str,
        redis_url: str,
        mongo_url: str,
        prefix: str,
        conf: dict[str, Any],
        folder: Path,
    ) -> None:
        self.broker = broker
        #: The session's Redis, which is also the broker unless a test says otherwise.
        self.redis_url = redis_url
        self.prefix = prefix
        self.folder = folder
        self.conf = {
            "rts_mongo_url": mongo_url,
            "rts_key_prefix": prefix,
            "rts_spool_dir": str(folder / "spool"),
            **conf,
        }
        self.backend: str | None = broker
        self.transport_options: dict[str, Any] = {}
        self.installed = True
        self._workers: list[WorkerProcess] = []

    @property
    def environment(self) -> dict[str, str]:
        """What configures the test app in a process."""
        environment = {
            "TEST_BROKER": self.broker,
            "TEST_CONF": json.dumps(self.conf),
            "TEST_TRANSPORT_OPTIONS": json.dumps(self.transport_options),
            "TEST_INSTALL": "1" if self.installed else "0",
            "PYTHONPATH": LEAN,
        }
        if self.backend:
            environment["TEST_BACKEND"] = self.backend
        return environment

    def worker(self, app: str = "tests.apps.basic", **options: Any) -> WorkerProcess:
        """Start a worker of the test app; it ends after the test. It does not ask for a
        second what its neighbours have revoked.
        """
        options.setdefault("hostname", f"w{len(self._workers)}@{self.prefix.strip(':')}")
        options["arguments"] = ("--without-mingle", *options.get("arguments", ()))
        # The temporary folders that one leaves behind when it is killed are pytest's to remove.
        env = {**self.environment, "TMPDIR": str(self.folder), **options.pop("env", {})}
        worker = WorkerProcess(app, env=env, cwd=ROOT, **options).start()
        self._workers.append(worker)
        return worker

    def celery(self, *arguments: str) -> Ended:
        """Run ``celery -A tests.apps.basic …`` to its end."""
        return python(*CELERY[1:], *arguments, env=self.environment)

    def stop(self) -> None:
        """Stop all workers: each waits seconds for its pool, so at the same time."""
        with ThreadPoolExecutor(max(1, len(self._workers))) as pool:
            for _ in pool.map(WorkerProcess.stop, self._workers):
                pass

    def kill(self) -> None:
        """Kill all workers that still run."""
        for worker in self._workers:
            worker.stop(0)


#: What :func:`make_stage` is, and what :func:`make_app` and :func:`apps` are.
MakeStage, MakeApp = Callable[..., Stage], Callable[..., Celery]


@pytest.fixture(scope="session")
def leaving() -> Iterator[Callable[[Stage], object]]:
    """Stop the workers of a measured test that is over while the next ones run."""
    left: list[Future[None]] = []
    with ThreadPoolExecutor(8) as pool:
        yield lambda stage: left.append(pool.submit(stage.stop))
    for stopped in left:
        stopped.result()


@pytest.fixture
def make_stage(
    rts_redis_url: str,
    rts_mongo_url: str,
    rts_key_prefix: str,
    tmp_path: Path,
    leaving: Callable[[Stage], object],
    request: pytest.FixtureRequest,
) -> Iterator[MakeStage]:
    """Make stages; their workers end with the test. A warm shutdown is a quarter of what a
    short-lived worker costs, so only those do it that have coverage's data to write.
    """
    stages: list[Stage] = []

    def make(broker: str = rts_redis_url, mongo_url: str = rts_mongo_url, **conf: Any) -> Stage:
        queue = rts_key_prefix.strip(":") + (f"-{len(stages)}" if stages else "")
        conf = {"task_default_queue": queue, **conf}
        stage = Stage(broker, rts_redis_url, mongo_url, rts_key_prefix, conf, tmp_path)
        stages.append(stage)
        return stage

    yield make
    end = leaving if is_measured(request) else Stage.kill
    for stage in stages:
        end(stage)


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Make apps with rts; closed at the end."""
    made: list[Celery] = []

    def make(
        broker: str | None = "memory://", backend: str | None = None, **conf: Any
    ) -> Celery:
        name = f"producer{len(made)}"
        app = Celery(name, broker=broker, backend=backend, set_as_current=False)
        made.append(app)
        app.conf.update(conf)
        rts.install(app)
        return app

    yield make
    for app in made:
        rts.uninstall(app)
        app.close()


@pytest.fixture
def apps(make_app: MakeApp) -> MakeApp:
    """Make apps that publish to a stage's workers; closed at the end."""

    def make(stage: Stage, **conf: Any) -> Celery:
        conf = {**stage.conf, "broker_transport_options": stage.transport_options, **conf}
        return make_app(stage.broker, stage.backend, **conf)

    return make
