"""A worker in a thread of the test process, as ``celery.contrib.pytest`` starts it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import redis
from celery import Celery, chain
from celery.contrib.testing.worker import start_worker

import rts
from rts.installation import parts_of
from rts.testing import wait_until
from rts.unfinished.open_tasks import OpenTasks


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Undo how a worker sets up the logging of its process."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def app(
    rts_redis_url: str, rts_mongo_url: str, rts_key_prefix: str, tmp_path: Any
) -> Iterator[Celery]:
    app = Celery("embedded", broker=rts_redis_url, backend="cache+memory://")
    app.conf.update(
        task_default_queue=rts_key_prefix.strip(":"),
        rts_mongo_url=rts_mongo_url,
        rts_key_prefix=rts_key_prefix,
        rts_spool_dir=str(tmp_path / "spool"),
    )
    rts.install(app)

    @app.task(name="embedded.work", shared=False)
    def work(seconds: float) -> float | None:
        time.sleep(seconds)
        current = rts.current()
        return None if current is None else current.remaining()

    @app.task(name="embedded.caller", shared=False)
    def caller() -> bool:
        ahead = rts.current()
        return work(0) is not None and rts.current() == ahead

    @app.task(name="embedded.again", shared=False, bind=True)
    def again(self: Any, how: str) -> None:
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        if how == "replace":
            raise self.replace(again.s(""))
        if how == "replace by a chain":
            raise self.replace(chain(again.si(""), again.si("")))

    yield app
    rts.uninstall(app)
    app.close()


def companions() -> list[psutil.Process]:
    """Return this process's companion processes that live."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        and "rts.companion" in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_an_embedded_worker_has_all_of_it(
    app: Celery, mongo: Any, redis_client: redis.Redis, rts_key_prefix: str, pool: str
) -> None:
    before = len(companions())
    for _ in range(2):  # a second worker in the same process, too
        with start_worker(app, pool=pool, perform_ping_check=False, shutdown_timeout=30):
            results = [app.tasks["embedded.work"].delay(0.01) for _ in range(5)]
            assert all(0 < result.get(timeout=30) < 20 for result in results)
            assert len(companions()) == before + 1
        assert len(companions()) == before
        ids = {result.id for result in results}
        assert mongo.tasks.count_documents({"_id": {"$in": list(ids)}}) == 5
    wait_until(lambda: redis_client.hget(f"{rts_key_prefix}count", "mixed") == "10")
    assert rts.current() is None


def test_a_task_that_is_called_as_a_function_is_part_of_the_run(app: Celery) -> None:
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        assert app.tasks["embedded.caller"].delay().get(timeout=30) is True


def test_the_companion_logs_as_the_app_has_set_its_logger(
    app: Celery, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, logger="rts.drain")
    options: Any = {"loglevel": "INFO", "perform_ping_check": False, "shutdown_timeout": 30}
    with start_worker(app, pool="solo", **options):
        app.tasks["embedded.work"].delay(0).get(timeout=30)
    assert "tau learned" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["retry", "replace", "replace by a chain"])
def test_a_task_that_is_published_again_and_has_ended_is_not_open(
    app: Celery, mongo: Any, redis_client: redis.Redis, rts_key_prefix: str, how: str
) -> None:
    parts = parts_of(app)
    # It notes when it is told to: the second note comes after the end.
    parts.open_tasks = OpenTasks(parts.link, parts.settings, every_s=60.0)
    far = {"sla_deadline": time.time() + 3600}  # which is not to come before its end
    task_id = app.tasks["embedded.again"].apply_async((how,), headers=far).id
    parts.open_tasks.flush()
    assert redis_client.zcard(f"{rts_key_prefix}open") == 1
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        wait_until(lambda: mongo.tasks.find_one({"_id": task_id, "attempts": 2}))
        parts.open_tasks.flush()
        wait_until(lambda: not redis_client.zcard(f"{rts_key_prefix}open"))


def test_an_eager_task_is_not_recorded(app: Celery, mongo: Any) -> None:
    work = app.tasks["embedded.work"]
    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
        assert work.apply((0,)).get() is None
        published = work.delay(0)
        published.get(timeout=30)
    assert [task["_id"] for task in mongo.tasks.find()] == [published.id]
