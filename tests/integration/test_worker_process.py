"""WorkerProcess of rts.testing: real workers that start, stop, crash and never stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from rts.testing import WorkerFailed, WorkerProcess, wait_until
from tests.conftest import ROOT

APP = """
import os, time
from celery import Celery
app = Celery("plain", broker=os.environ["PLAIN_BROKER"])
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_transport_options = {"global_keyprefix": os.environ["PLAIN_PREFIX"]}

@app.task
def sleep(seconds):
    time.sleep(seconds)
"""


@pytest.fixture
def make_worker(
    tmp_path: Path, rts_redis_url: str, rts_key_prefix: str
) -> Callable[..., WorkerProcess]:
    """Return a maker of workers of a plain app, not started."""
    (tmp_path / "plain.py").write_text(APP)
    env = {"PLAIN_BROKER": rts_redis_url, "PLAIN_PREFIX": rts_key_prefix}

    def make(app: str = "plain", **options: Any) -> WorkerProcess:
        return WorkerProcess(app, env=env, cwd=tmp_path, queues=["q1", "q2"], **options)

    return make


def test_a_worker_reports_on_itself_and_leaves_nothing_behind(
    make_worker: Callable[..., WorkerProcess],
) -> None:
    worker = make_worker(hostname="a@test", arguments=["--without-gossip"])
    assert worker.log == ""
    assert not worker.running
    with pytest.raises(WorkerFailed, match="not running"):
        _ = worker.pid
    with worker:
        assert worker.running
        assert worker.start() is worker
        assert "a@test ready." in worker.log
        assert "q1" in worker.log
        assert os.getsid(worker.pid) != os.getsid(0)
        children = worker.children()
        assert len(children) == 2
        assert worker.companions() == []
        pid = worker.pid
    assert "Warm shutdown" in worker.log
    assert not psutil.pid_exists(pid)
    assert not any(child.is_running() for child in children)
    worker.stop()


def test_after_a_crash_it_adds_to_its_log_and_after_a_stop_it_begins_another(
    make_worker: Callable[..., WorkerProcess],
) -> None:
    with make_worker(pool="solo") as worker:
        worker.kill()
        assert not worker.running
        assert worker.children() == []
        first = worker.pid
        worker.start()
        assert worker.pid != first
        assert worker.log.count(" ready.") == 2
        worker.stop()
        earlier = worker.log
        worker.start()
        assert worker.running
        assert earlier not in worker.log


def test_only_the_main_process_is_killed(make_worker: Callable[..., WorkerProcess]) -> None:
    worker = make_worker().start()
    children = worker.children()
    for child in children:  # so that they stay, as a child amid a long task does
        child.send_signal(signal.SIGSTOP)
    worker.kill(group=False)
    assert not worker.running
    assert all(child.is_running() for child in children)
    worker.stop()
    wait_until(lambda: not any(child.is_running() for child in children), message="no orphans")


@pytest.mark.parametrize("loglevel", ["WARNING", "ERROR"])
def test_a_quiet_worker(make_worker: Callable[..., WorkerProcess], loglevel: str) -> None:
    with make_worker(pool="threads", loglevel=loglevel, hostname="quiet@%h") as worker:
        assert worker.running
        assert "INFO" not in worker.log


def test_the_reason_of_a_failed_start(make_worker: Callable[..., WorkerProcess]) -> None:
    with pytest.raises(WorkerFailed, match=r"it ended(?s:.*)nowhere"):
        make_worker("nowhere").start()
    with pytest.raises(WorkerFailed, match="not ready in time"):
        make_worker(start_timeout=0).start()
    worker = WorkerProcess("plain", cwd="/nowhere")
    with pytest.raises(WorkerFailed, match="/nowhere"):
        worker.start()
    assert not worker.running


_OWNER = """
import sys, time
from rts.testing import WorkerProcess
with WorkerProcess("plain", cwd=sys.argv[1]) as worker:
    print(worker.pid, *(child.pid for child in worker.children()), flush=True)
    time.sleep(300)
"""


def test_it_dies_with_its_owner(
    make_worker: Callable[..., WorkerProcess],
    tmp_path: Path,
    rts_redis_url: str,
    rts_key_prefix: str,
) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PLAIN_BROKER": rts_redis_url, "PLAIN_PREFIX": rts_key_prefix},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pids = [int(pid) for pid in owner.stdout.readline().split()]
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    assert len(pids) == 3
    for pid in pids:
        wait_until(lambda pid=pid: not psutil.pid_exists(pid), message="all are dead")


def test_wait_until_returns_the_value_or_says_what_was_missing() -> None:
    values = iter([0, "", "there"])
    assert wait_until(lambda: next(values), interval=0) == "there"
    with pytest.raises(TimeoutError, match=r"not within 0 s: it comes \(last 0\)"):
        wait_until(lambda: 0, timeout=0, message="it comes")
