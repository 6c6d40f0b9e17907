"""The demo, as a newcomer runs it: from start to end, and interrupted."""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import psutil
import pytest

from rts.testing import wait_until
from tests.conftest import ROOT, UNTRACED

COMMAND = [sys.executable, "-m", "workers.demo"]


def left_of(marker: str) -> list[psutil.Process]:
    """Return the processes that were started with *marker* in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DEMO_TEST") == marker:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


@pytest.mark.timeout(480)  # it takes a minute alone
def test_the_demo_shows_rts_at_work() -> None:
    env = {**UNTRACED, "DEMO_TEST": "whole"}
    result = subprocess.run(
        COMMAND, cwd=ROOT, env=env, capture_output=True, text=True, timeout=450, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    published = re.search(r"published (\d+) tasks", result.stdout)
    assert int(published[1]) >= 120
    assert f"{published[1]}/{published[1]} verdicts" in result.stdout, result.stdout
    for task_type in (
        *("cpu-light", "cpu-heavy", "memory-heavy"),
        *("gpu-inference", "gpu-training", "mixed"),
    ):
        assert result.stdout.count(task_type) >= 3, task_type  # before, after, report
    assert "killed" in result.stdout
    assert "Traceback" not in result.stdout
    assert left_of("whole") == []


def test_a_missing_server_is_a_line_that_says_how_to_get_it() -> None:
    code = """
import sys
import pymongo
from workers.demo import main

sys.path.clear()  # the wheels are gone
sys.exit(main())
"""
    env = {**UNTRACED, "PATH": "/nowhere"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("no redis-server was found: ")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind() -> None:
    env = {**UNTRACED, "DEMO_TEST": "interrupted"}
    with subprocess.Popen(
        COMMAND, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        for line in demo.stdout:
            if line.startswith("published"):
                break
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=150)
    assert demo.returncode == 130, out
    assert err == ""
    wait_until(lambda: not left_of("interrupted"), message="all processes of the demo are gone")


def test_ctrl_c_within_a_constructor_prints_no_error_of_the_destructor() -> None:
    code = """
from workers.demo import interrupt

class Client:
    def __init__(self):
        interrupt()
        self.connected = True

    def __del__(self):
        self.connected

try:
    Client()
except KeyboardInterrupt:
    print("stopped")
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("stopped\n", "")
