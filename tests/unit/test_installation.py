"""What other threads, and a forked child, get while an app's parts are built."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import pytest
from celery import Celery
from celery.signals import before_task_publish

import rts
from rts import installation, wiring
from rts.installation import ATTRIBUTE, parts_of
from rts.lifecycle import owners, receivers
from tests.forked import forks_beside_threads, in_child


class Conf(dict[str, Any]):
    """A configuration whose first read blocks until the test releases it."""

    def __init__(self) -> None:
        super().__init__(rts_redis_url="redis://127.0.0.1:1")
        self.read, self.released = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[str]:
        self.read.set()
        self.released.wait(30)
        return super().__iter__()


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery(set_as_current=False)
    rts.install(app)
    yield app
    rts.uninstall(app)
    app.close()


@pytest.fixture
def conf(app: Celery) -> Conf:
    app.conf = Conf()
    return app.conf


@pytest.mark.parametrize("other", [wiring, None])
def test_what_is_no_app_is_refused_and_left_alone(other: Any) -> None:
    with pytest.raises(TypeError, match=r"takes a Celery app, not (a module|None)$"):
        rts.install(other)
    assert not hasattr(other, ATTRIBUTE)
    assert other not in list(installation.installed)


def test_a_thread_waits_while_another_one_builds(app: Celery, conf: Conf) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(parts_of(app))) for _ in range(2)]
    threads[0].start()
    assert conf.read.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # long enough to return with nothing
    conf.released.set()
    for thread in threads:
        thread.join(30)
    assert found[0] is not None
    assert found[0] is found[1]


@forks_beside_threads
def test_a_child_builds_what_its_parent_was_building(app: Celery, conf: Conf) -> None:
    builder = threading.Thread(target=parts_of, args=(app,))
    builder.start()
    assert conf.read.wait(30)

    def act() -> bool:
        conf.released.set()
        return parts_of(app) is not None

    _, code = in_child(act)
    conf.released.set()
    builder.join(30)
    assert code == 0


def test_an_app_gets_its_receivers_while_another_one_gives_them_up(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, released = threading.Event(), threading.Event()
    disconnect = receivers.disconnect

    def slowly() -> None:
        asked.set()
        released.wait(30)
        disconnect()

    monkeypatch.setattr(receivers, "disconnect", slowly)
    other = Celery(set_as_current=False)
    threads = [
        threading.Thread(target=rts.uninstall, args=(app,)),
        threading.Thread(target=rts.install, args=(other,)),
    ]
    threads[0].start()
    assert asked.wait(30)
    threads[1].start()
    threads[1].join(0.2)  # long enough to find them connected
    released.set()
    for thread in threads:
        thread.join(30)
    try:
        uids = [key for (key, *_), _ in before_task_publish.receivers]
        assert "rts.publishing" in uids
    finally:
        rts.uninstall(other)
        other.close()


def test_no_thread_waits_for_the_configuration_of_another_app(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, released = threading.Event(), threading.Event()

    def slowly(*_: Any, **__: Any) -> None:
        asked.set()
        released.wait(30)  # as for a module whose import installs rts in the other thread

    monkeypatch.setattr(wiring, "_apply_order", slowly)
    apps = [Celery(set_as_current=False) for _ in range(2)]
    assert apps[0].conf.timezone is None  # it is configured by now
    threads = [threading.Thread(target=rts.install, args=(app,)) for app in apps]
    threads[0].start()
    assert asked.wait(30)
    threads[1].start()
    threads[1].join(10)
    waits = threads[1].is_alive()
    released.set()
    for thread in threads:
        thread.join(30)
    for app in apps:
        rts.uninstall(app)
        app.close()
    assert not waits


class Growing(WeakSet[Any]):
    """Apps, of which there is one more once they are looked at."""

    other: Celery | None = None

    def __iter__(self) -> Iterator[Any]:
        for each in super().__iter__():
            if self.other is None:  # as another thread may at any time
                self.other = Celery(set_as_current=False)
                self.add(self.other)
            yield each


def test_apps_may_come_while_a_message_is_published(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(name="alone.task", shared=False)
    def alone_task() -> None: ...

    app.conf.rts_redis_url = "redis://127.0.0.1:1"
    with_rts, every = Growing([app]), Growing([app])
    monkeypatch.setattr(installation, "installed", with_rts)
    monkeypatch.setattr(owners, "_apps", every)
    assert installation.publisher("alone.task") is parts_of(app)
    assert owners.owner_of([app.amqp.queues["celery"]]) is app
    for apps in (with_rts, every):
        apps.other.close()


def test_a_call_from_within_the_build_does_without(app: Celery) -> None:
    installation = getattr(app, ATTRIBUTE)
    within: list[Any] = []

    class Asking(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            within.append(installation.parts(app))  # as a signal handler that publishes
            return super().__iter__()

    app.conf = Asking(rts_redis_url="redis://127.0.0.1:1")
    assert installation.parts(app) is not None
    assert within == [None]


@pytest.mark.parametrize("kind", [TimeoutError, KeyboardInterrupt])
def test_a_timeout_that_strikes_the_build_does_not_turn_rts_off(
    app: Celery, kind: type[BaseException]
) -> None:
    strikes = [kind]

    class Struck(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            while strikes:
                raise strikes.pop()  # as the handler of SIGALRM in Airflow's scheduler
            return super().__iter__()

    app.conf = Struck(rts_redis_url="redis://127.0.0.1:1")
    with pytest.raises(kind):
        parts_of(app)
    assert parts_of(app) is not None


def test_a_build_that_fails_again_is_not_tried_for_each_task(app: Celery) -> None:
    attempts = []

    class Failing(dict[str, Any]):
        def __iter__(self) -> Iterator[str]:
            attempts.append(time.monotonic())
            raise RuntimeError("no credentials")  # as a credential provider may

    app.conf = Failing()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            parts_of(app)
    assert parts_of(app) is None
    assert len(attempts) == 2
    getattr(app, ATTRIBUTE)._try_from = attempts[0]
    with pytest.raises(RuntimeError):
        parts_of(app)


@pytest.mark.parametrize("scheduler", ["edf", None])
def test_only_an_app_that_asks_for_an_order_logs_that_it_is_off(
    app: Celery, caplog: pytest.LogCaptureFixture, scheduler: str | None
) -> None:
    conf = {"broker_url": "redis://127.0.0.1:1", "rts_scheduler": scheduler, "rts_quantile": 7}
    app.config_from_object(
        {f"celery_{key}".upper(): conf[key] for key in conf}, namespace="CELERY"
    )
    app.finalize()
    assert list(app.conf)
    assert ("deadline order is off" in caplog.text) is (scheduler == "edf")
