"""The example app: its tasks against independent computations, and its producer."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import signal
import sys
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

import rts
from rts.settings import MULTIPLIER_VARIABLE
from rts.tasktypes import DEFAULT_TASK_TYPES
from rts.testing import RedisServer, WorkerProcess, wait_until
from rts.testing.processes import OwnedProcess
from tests.conftest import ROOT, printed, python

np = pytest.importorskip("numpy")

HEADERS = {"task_type", "rts_tau", "rts_k", "rts_arrival", "rts_deadline", "rts_type_source"}


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The modules of the example app, loaded without side effects on other tests."""
    from celery import _state

    earlier = _state._tls.current_app  # a new app makes itself the current one
    from workers import numeric, text, trouble
    from workers.app import app

    yield SimpleNamespace(app=app, numeric=numeric, text=text, trouble=trouble)
    rts.uninstall(app)
    _state._set_current_app(earlier)


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A Redis that a test can pause."""
    with RedisServer() as server:
        yield server


def stdlib(files: int) -> list[bytes]:
    """Return the first modules of the standard library, found independently."""
    folder = Path(os.__file__).parent
    names = sorted(name for name in os.listdir(folder) if name.endswith(".py"))
    return [(folder / name).read_bytes() for name in names[:files]]


# --- text ---------------------------------------------------------------------------


def test_fingerprint_hashes_and_counts(example: SimpleNamespace) -> None:
    data = b"".join(stdlib(7))
    shares = np.bincount(np.frombuffer(data, np.uint8)) / len(data)
    shares = shares[shares > 0]
    result = example.text.fingerprint(files=7)
    assert result["sha256"] == sha256(data).hexdigest()
    assert result["lines"] == len(re.findall(b"\n", data))
    assert result["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum(), rel=1e-12)


def test_compress_makes_real_files_smaller(example: SimpleNamespace) -> None:
    fast, small = (example.text.compress(files=5, preset=preset) for preset in (0, 6))
    assert fast["bytes"] == small["bytes"] == sum(map(len, stdlib(5)))
    assert 0 < small["packed_bytes"] < fast["packed_bytes"] < fast["bytes"] / 2


def test_index_finds_every_place_of_every_word(example: SimpleNamespace) -> None:
    words: Counter[str] = Counter()
    for data in stdlib(6):
        runs = re.split(r"[^A-Za-z_]+", data.decode("utf-8", "replace"))
        words.update(run for run in runs if len(run) >= 3)
    assert example.text.index(files=6) == {
        "words": len(words),
        "places": sum(words.values()),
        "commonest": max(words, key=lambda word: (words[word], word)),
    }


def test_index_of_nothing_is_empty(example: SimpleNamespace) -> None:
    assert example.text.index(files=0) == {"words": 0, "places": 0, "commonest": None}


def test_survey_counts_definitions(example: SimpleNamespace) -> None:
    names: Counter[str] = Counter()
    nodes = 0
    for data in stdlib(6):
        for token in tokenize.tokenize(io.BytesIO(data).readline):
            if token.type == tokenize.NAME:
                names[token.string] += 1
        waiting: list[ast.AST] = [ast.parse(data)]
        while waiting:
            nodes += 1
            waiting.extend(ast.iter_child_nodes(waiting.pop()))
    result = example.text.survey(files=6)
    assert result == {"functions": names["def"], "classes": names["class"], "nodes": nodes}


# --- numbers ------------------------------------------------------------------------


def best_accuracy() -> float:
    """Return the accuracy of the best possible classifier: the nearest true shape."""
    random = np.random.default_rng(7)
    shapes = random.normal(size=(10, 64))
    labels = random.integers(10, size=4000)
    x = shapes[labels] + random.normal(scale=1.5, size=(4000, 64))
    distances = ((x[:, None, :] - shapes) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == labels)[3000:].mean())


def test_training_learns_what_can_be_learned(example: SimpleNamespace) -> None:
    assert example.numeric.train(epochs=0)["accuracy"] < 0.3
    learned = example.numeric.train(epochs=20)
    assert learned["epochs"] == 20
    assert learned["accuracy"] == pytest.approx(best_accuracy(), abs=0.02)


def test_inference_uses_the_trained_weights(example: SimpleNamespace) -> None:
    first, second = example.numeric.trained()
    x, labels = example.numeric.pictures()
    right = (np.argmax(np.tanh(x @ first) @ second, axis=1) == labels).mean()
    result = example.numeric.classify(rounds=2)
    assert result == {"pictures": 2 * len(x), "accuracy": pytest.approx(right)}
    assert right > 0.9


# --- all six ------------------------------------------------------------------------

ALL_SIX = """
import json
from workers.numeric import classify, train
from workers.text import compress, fingerprint, index, survey
results = {t.name: t() for t in (fingerprint, compress, index, survey, train, classify)}
print(json.dumps(results))
"""


def test_the_defaults_give_small_results_that_are_the_same_everywhere() -> None:
    outputs = set()
    for seed in ("1", "2"):
        outputs.add(printed(ALL_SIX, env={"PYTHONHASHSEED": seed}))
    assert len(outputs) == 1
    results = json.loads(outputs.pop())
    assert len(results) == 6
    assert all(len(json.dumps(result)) < 200 for result in results.values())


# --- troublemakers ------------------------------------------------------------------


def test_flaky_retries_once_and_succeeds(example: SimpleNamespace) -> None:
    assert example.trouble.flaky.apply().get() == 1


def test_the_broken_task_raises(example: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="on purpose"):
        example.trouble.broken()


@pytest.mark.parametrize(
    "call",
    [
        "killed()",
        "import threading; threading.Thread(target=killed).start()",
        "from billiard import Process; p = Process(target=killed); p.start(); p.join();"
        " assert p.exitcode == 1, p.exitcode",
        "import multiprocessing as m; m = m.get_context('fork');"
        " p = m.Process(target=killed); p.start(); p.join(); assert p.exitcode == 1",
    ],
    ids=["main process", "thread", "other billiard child", "multiprocessing child"],
)
def test_killed_spares_any_process_but_a_pool_child(call: str) -> None:
    finished = python("-c", f"from workers.trouble import killed; {call}")
    assert finished.returncode >= 0, "it was killed"
    assert "only a prefork pool survives this task" in finished.stderr
    assert "AssertionError" not in finished.stderr


def test_killed_kills_a_pool_child_and_the_worker_goes_on(
    broker: RedisServer, rts_mongo_url: str, tmp_path: Path
) -> None:
    env = {
        "CELERY_BROKER_URL": broker.url,
        "CELERY_RESULT_BACKEND": broker.url,
        "RTS_MONGO_URL": rts_mongo_url,
        "RTS_SPOOL_DIR": str(tmp_path / "spool"),
    }
    publish = (
        "from workers.text import fingerprint; from workers.trouble import killed;"
        " killed.delay(); fingerprint.delay(files=1)"
    )
    with WorkerProcess("workers.app", concurrency=1, env=env, cwd=ROOT) as worker:
        printed(publish, env=env)
        wait_until(
            lambda: re.search(r"workers\.text\.fingerprint\[.*succeeded", worker.log),
            message="the task after the killed one",
        )
        assert "signal 9 (SIGKILL)" in worker.log
        assert worker.running


# --- the producer -------------------------------------------------------------------


def producer(url: str, log: Path, *arguments: str) -> OwnedProcess:
    """Start the producer on the broker at *url*."""
    env = {**os.environ, "CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": url}
    env.pop(MULTIPLIER_VARIABLE, None)
    command = [sys.executable, "-m", "workers.producer", *arguments]
    return OwnedProcess(command, log, env=env, cwd=ROOT)


def test_the_producer_publishes_a_mix_of_all_six_types(
    broker: RedisServer, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    running = producer(broker.url, log, "--rate", "5000", "--count", "250")
    try:
        assert running.wait(60) == 0, log.read_text()
    finally:
        running.kill()
    assert log.read_text() == "published 250 tasks\n"
    client = redis.Redis.from_url(broker.url)
    messages = [json.loads(raw)["headers"] for raw in client.lrange("celery", 0, -1)]
    client.close()
    assert len(messages) == 250
    assert all(message.keys() >= HEADERS for message in messages)
    assert all(message["ignore_result"] for message in messages)
    assert {message["task_type"] for message in messages} == set(DEFAULT_TASK_TYPES)
    assert {m["rts_type_source"] for m in messages} == {"explicit", "task", "inferred"}
    assert {message["eta"] is None for message in messages} == {True, False}
    # A resource request determines the type only of a task that has none.
    surveys = [m for m in messages if m["task"] == "workers.text.survey" and "req_cpu" in m]
    assert {(m["task_type"], m["rts_type_source"]) for m in surveys} == {
        ("cpu-heavy", "inferred")
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_producer_ends_cleanly(
    broker: RedisServer, tmp_path: Path, number: signal.Signals
) -> None:
    log, alive = tmp_path / "log", tmp_path / "alive"
    running = producer(broker.url, log, "--rate", "50", "--alive", str(alive))
    try:
        wait_until(alive.exists, message="a first task")
        running.send(number)
        assert running.wait(30) == 0
    finally:
        running.kill()
    assert re.fullmatch(r"published [1-9]\d* tasks\n", log.read_text())


STRUCK = """
import os, signal, sys
from workers import producer

class Result:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

producer.MIX = (lambda **more: Result(),)
sys.argv += ["--rate", "100"]
producer.main()
"""


def test_the_producer_ends_though_the_signal_arrives_in_a_destructor() -> None:
    assert printed(STRUCK) == "published 1 tasks\n"


def test_the_producer_ends_while_the_broker_does_not_answer(
    broker: RedisServer, tmp_path: Path
) -> None:
    log, alive = tmp_path / "log", tmp_path / "alive"
    running = producer(broker.url, log, "--rate", "50", "--alive", str(alive))
    try:
        wait_until(alive.exists, message="a first task")
        broker.pause()
        wait_until(lambda: time.time() - alive.stat().st_mtime > 1, message="it waits")
        running.send(signal.SIGTERM)
        assert running.wait(30) == 0
    finally:
        running.kill()
        broker.resume()


def test_the_producer_survives_an_absent_broker(broker: RedisServer, tmp_path: Path) -> None:
    log, alive = tmp_path / "log", tmp_path / "alive"
    broker.kill()
    running = producer(broker.url, log, "--rate", "20", "--alive", str(alive))
    try:
        wait_until(lambda: "not published" in log.read_text(), message="a failed publish")
        assert not alive.exists()
        broker.start()
        wait_until(alive.exists, timeout=60, message="it publishes when the broker is there")
    finally:
        running.kill()


@pytest.mark.parametrize(
    "arguments", [("--rate", "0"), ("--rate", "nan"), ("--rate", "inf"), ("--count", "-1")]
)
def test_the_producer_refuses_invalid_arguments(arguments: tuple[str, ...]) -> None:
    finished = python("-m", "workers.producer", *arguments)
    assert finished.returncode == 2
    assert "must be above 0" in finished.stderr
