"""``rts replay`` and ``rts plan`` on ledgers of real runs, and on traces."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from rts.cli import ledger_runs
from rts.simulation.traces import Job, at_load, read_trace, six_types, write_trace
from rts.testing import wait_until
from rts.testing.replay import replay, share
from tests.commands import NO_MONGO, Run, document, write
from tests.conftest import CELERY, ROOT, MakeStage
from tests.records import ended

#: As on a broker whose urgent messages do not go first.
EQUAL = {"priority_steps": [0]}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """A trace of 300 tasks that 4 slots are too few for."""
    path = tmp_path / "trace.csv"
    write_trace(path, at_load(six_types(300, seed=1), 4, 1.2))
    return str(path)


def by_name(job: Job) -> tuple[str, float]:
    return job.name, job.runtime_s


@pytest.mark.alone  # other tests would take the time between two runs
@pytest.mark.parametrize(("scheduler", "rho"), [("edf", 1.2), (None, 0.85)])
def test_the_replay_of_a_real_run_says_what_happened(
    scheduler: str | None,
    rho: float,
    cli: Run,
    conf: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCHED_SLA_MULTIPLIER", "1.5")  # of somebody else, as the next one
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://localhost:1/0")
    jobs = at_load(six_types(100, seed=5), 4, rho)
    said: dict[str, Any] = {}

    def look(ledger: Any) -> None:
        assert ledger.tasks.distinct("k") == [2.0]
        host, port = ledger.client.address
        url = f"mongodb://{host}:{port}/{ledger.name}"
        conf.update(rts_mongo_url=url, rts_scheduler=scheduler)
        said["replay"] = document(cli("replay", "--since", "1h", "--json"))
        said["text"] = cli("replay", "--since", "1h", "--write", str(tmp_path / "it.csv"))
        said["plan"] = document(cli("plan", "--since", "1h", "--target", "0.9", "--json"))

    met = share(replay(jobs, 4, scheduler, speedup=100, look=look))
    found = said["replay"]
    assert found["slots"] == found["slots_recorded"] == 4
    assert found["total"]["tasks"] == 100
    assert found["total"]["recorded"] == pytest.approx(met)
    (order,) = found["orders"]
    assert order == (scheduler or "fifo")
    # Of a hundred tasks under overload, chance (a millisecond) decides about a few.
    within = 0.10 if scheduler else 0.06
    assert found["orders"][order]["share"] == pytest.approx(met, abs=within)
    assert found["rho"] == pytest.approx(rho, rel=0.25)
    assert found["overhead_s"] > 0
    assert sum(row["tasks"] for row in found["rows"]) == 100
    assert "4 slots (the peak in the ledger)" in said["text"].stdout
    written = read_trace(tmp_path / "it.csv")
    # By name, since instants of the ledger are whole milliseconds.
    for job, original in zip(
        sorted(written, key=by_name), sorted(jobs, key=by_name), strict=True
    ):
        assert job.name == original.name
        assert job.runtime_s >= original.runtime_s / 100
    assert said["plan"]["slots"] > 4
    assert said["plan"]["order"] == order


def test_the_ledger_is_read_by_window_queue_and_number(
    cli: Run, conf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        conf,
        *(ended(n, 100.0 - n, queue="q" if n % 2 else "other") for n in range(10)),
        ended(10, 7000),
        ended(11, 50, started_at=None),  # killed before anybody knew
        ended(12, 40, state="FAILURE", cause="killed", runtime_s=None),
    )
    found = document(cli("replay", "--since", "1h", "--json"))
    assert found["total"] == {
        "key": "total",
        "tasks": 11,
        "recorded": pytest.approx(10 / 11),
        "simulated": {"fifo": pytest.approx(10 / 11)},
    }
    assert (
        document(cli("replay", "--since", "1h", "--queue", "q", "--json"))["total"]["tasks"]
        == 6
    )
    by_name = document(cli("replay", "--since", "3h", "--by", "name", "--json"))
    assert [(row["key"], row["tasks"]) for row in by_name["rows"]] == [("proj.work", 12)]
    monkeypatch.setattr("rts.cli.workloads.MAX_RUNS", 5)
    monkeypatch.setattr(ledger_runs, "MAX_RUNS", 5)
    few = cli("replay", "--since", "3h", "--json")
    assert "only the last 5 runs" in few.stderr
    assert document(few)["total"]["tasks"] == 4  # one of them has no start


def test_tasks_that_were_dropped_are_replayed_with_their_tau(
    cli: Run, conf: dict[str, Any]
) -> None:
    never = {"state": "REVOKED", "started_at": None, "runtime_s": None, "load_at_start": {}}
    write(
        conf,
        *(ended(n, 100.0 + 10 * n) for n in range(4)),
        *(ended(10 + n, 101.0 + 10 * n, cause="dropped", **never) for n in range(3)),
        ended(20, 101.0, cause="expired", **never),
        ended(21, 101.0, cause="dropped", queue="other", **never),
        ended(22, 150.0, state="RETRY"),
        ended(22, 101.0, cause="dropped", retries=1, run_id="again", **never),
    )
    found = document(cli("replay", "--since", "1h", "--queue", "q", "--slots", "9", "--json"))
    assert found["slots_recorded"] == 1
    assert found["total"]["tasks"] == 8
    assert found["total"]["recorded"] == 4 / 8
    # The last one is too late whatever the slots: it was retried only after its deadline.
    assert found["total"]["simulated"]["fifo"] == 7 / 8


@pytest.mark.parametrize(
    ("broker", "queue", "first"),
    [
        ({"broker_url": "redis://"}, Queue("q"), "urgent"),
        ({"broker_url": "redis://", "broker_transport_options": EQUAL}, Queue("q"), "both"),
        ({"broker_url": "amqp://"}, Queue("q", max_priority=10), "later"),
        ({"broker_url": "amqp://"}, Queue("q"), "both"),
        ({"broker_url": "sqs://"}, Queue("q"), "both"),
    ],
)
def test_the_stock_order_has_the_priorities_of_the_messages(
    cli: Run, conf: dict[str, Any], broker: dict[str, Any], queue: Queue, first: str
) -> None:
    # One slot, and three seconds each, for ten that arrive in turn and are due in 17 s: by
    # arrival, half of each kind are in time.
    now = time.time() - 100
    for n in range(10):
        due = {"arrival": now + n / 100, "deadline": now + 17, "started_at": now + 3 * n}
        kind = {"task_type": ("urgent", "later")[n % 2], "priority": 3 * (n % 2)}
        write(conf, ended(n, 100 - 3 * n - 3, **due, **kind))
    orders = ("--slots", "1", "--scheduler", "fifo", "--scheduler", "edf", "--overhead", "0")
    conf.update(worker_disable_prefetch=True, task_queues=[queue], **broker)
    found = document(cli("replay", "--since", "1h", *orders, "--json"))
    met = {row["key"]: row["simulated"]["fifo"] * row["tasks"] for row in found["rows"]}
    # The first that arrives, an urgent one, begins in any case.
    expected = {"urgent": (5, 0), "later": (1, 4), "both": (3, 2)}[first]
    assert (met["urgent"], met["later"]) == expected
    planned = document(cli("plan", "--since", "1h", "--json"))
    assert planned["slots"] == 2


def test_a_task_waits_for_a_worker_that_takes_from_its_queue(
    cli: Run, conf: dict[str, Any]
) -> None:
    # Ten that come at once for a worker of one slot, and ten in turn for another one.
    begun = time.time() - 100
    for n in range(20):
        queue, arrival = ("rush", begun) if n < 10 else ("calm", begun + n)
        at = {"arrival": arrival, "deadline": arrival + 5.5, "queue": queue, "worker": queue}
        ran = {"started_at": begun + n, "completed_at": begun + n + 1, "runtime_s": 1.0}
        write(conf, ended(n, 0, **ran, **at))
    conf.update(worker_prefetch_multiplier=1)
    arguments = ("replay", "--since", "1h", "--overhead", "0", "--json")
    found = document(cli(*arguments))
    assert found["slots_recorded"] == 2
    assert found["total"]["simulated"]["fifo"] == 15 / 20
    twice = document(cli(*arguments, "--slots", "4"))
    assert twice["total"]["simulated"]["fifo"] == 1.0


def test_what_a_task_publishes_arrives_when_it_runs(cli: Run, conf: dict[str, Any]) -> None:
    # One slot ran these in turn, each in three seconds. On two slots the chain's second task
    # takes a slot three seconds sooner, when two others arrive, for one of which none is free.
    begun = time.time() - 100
    rows = (("x", 0.0, ""), ("a", 0.0, ""), ("b", 5.99, "a"), ("y", 3.5, ""), ("y", 3.5, ""))
    for n, (kind, arrival_s, parent) in enumerate(rows):
        at = {"arrival": begun + arrival_s, "deadline": begun + arrival_s + 3.2}
        who = {"name": kind, "parent_id": "task-1" if parent else None}
        ran = {"started_at": begun + 3 * n, "completed_at": begun + 3 * n + 3}
        write(conf, ended(n, 0, **ran, **at, **who))
    arguments = ("--since", "1h", "--slots", "2", "--overhead", "0", "--by", "name", "--json")
    found = document(cli("replay", *arguments))
    met = {row["key"]: row["simulated"]["fifo"] for row in found["rows"]}
    assert met == {"x": 1.0, "a": 1.0, "b": 1.0, "y": 0.5}
    assert found["total"]["recorded"] == 2 / 5


def test_of_many_runs_only_those_are_looked_at_that_are_read(
    cli: Run, conf: dict[str, Any], mongo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(conf, *(ended(n, 1000.0 + n) for n in range(200)))
    monkeypatch.setattr("rts.cli.workloads.MAX_RUNS", 10)
    monkeypatch.setattr(ledger_runs, "MAX_RUNS", 10)
    mongo.command("profile", 2)
    found = document(cli("replay", "--since", "3h", "--json"))
    mongo.command("profile", 0)
    assert found["total"]["tasks"] == 10
    asked = list(mongo["system.profile"].find({"op": "query", "command.find": "assignments"}))
    assert len(asked) == 3
    assert max(one["docsExamined"] for one in asked) == 10


def test_malformed_records_of_the_ledger_are_left_out(
    cli: Run, conf: dict[str, Any], mongo: Any
) -> None:
    write(conf, ended(0, 100.0))
    known = mongo.assignments.find_one()
    odd: list[dict[str, Any]] = [{"started_at": "x"}, {"name": None}, {"arrival": 5}]
    mongo.assignments.insert_many([{**known, "_id": n, **each} for n, each in enumerate(odd)])
    mongo.assignments.insert_one({"completed_at": known["completed_at"]})
    mongo.assignments.insert_one({"completed_at": known["completed_at"], "state": "RETRY"})
    mongo.tasks.insert_one({"verdict_at": known["completed_at"], "cause": "dropped"})
    found = document(cli("replay", "--since", "1h", "--json"))
    assert found["total"]["tasks"] == 1


def test_tasks_that_go_wrong_are_replayed_too(
    cli: Run, make_stage: MakeStage, mongo: Any, tmp_path: Path
) -> None:
    stage = make_stage()
    app = Celery("producer", broker=stage.broker, set_as_current=False)
    app.conf.task_default_queue = stage.conf["task_default_queue"]
    for name in ("ok", "fail", "autoretry", "kill_self", "rejected", "ignored", "replaced"):
        app.send_task(f"tests.apps.basic.{name}")
    app.send_task("tests.apps.basic.requeued", (str(tmp_path / "marker"),))
    app.close()
    stage.worker(concurrency=2)
    ended = {"completed_at": {"$ne": None}}
    wait_until(lambda: mongo.tasks.count_documents(ended) == 8)
    found = document(cli("replay", "--since", "1h", "--by", "name", "--slots", "2", "--json"))
    shares = {
        row["key"].rpartition(".")[2]: (row["tasks"], row["recorded"], row["simulated"]["fifo"])
        for row in found["rows"]
    }
    names = ("ok", "fail", "autoretry", "ignored", "requeued", "headers")  # has replaced one
    completed = dict.fromkeys(names, (1, 1.0, 1.0))
    assert shares == {**completed, "kill_self": (1, 0, 0), "rejected": (1, 0, 0)}


def test_nothing_ran_and_no_server(cli: Run, conf: dict[str, Any]) -> None:
    for name in ("replay", "plan"):
        nothing = cli(name)
        assert nothing.exit_code == 1
        assert "no task ran" in nothing.stderr
    conf.update(rts_mongo_url=NO_MONGO)
    for name in ("replay", "plan"):
        away = cli(name)
        assert away.exit_code == 1
        assert "MongoDB at" in away.stderr
        assert "secret" not in away.stderr


def test_what_if_of_a_trace(cli: Run, conf: dict[str, Any], trace: str) -> None:
    conf.update(rts_scheduler="edf")
    arguments = ("replay", "--trace", trace, "--slots", "4")
    both = ("--scheduler", "fifo", "--scheduler", "edf")
    found = document(cli(*arguments, *both, "--json"))
    assert list(found["orders"]) == ["fifo", "edf"]
    assert found["orders"]["edf"]["share"] > found["orders"]["fifo"]["share"] + 0.2
    assert found["rho"] == pytest.approx(1.2)
    assert found["total"]["recorded"] is None
    half = document(cli(*arguments, "--speed", "0.5", "--json"))
    assert half["rho"] == pytest.approx(0.6)
    assert half["orders"]["edf"]["share"] > found["orders"]["edf"]["share"]
    strict = document(cli(*arguments, "--speed", "0.5", "--k", "1.5", "--json"))
    assert strict["orders"]["edf"]["share"] < half["orders"]["edf"]["share"]
    slow = document(cli(*arguments, "--speed", "0.5", "--overhead", "3", "--json"))
    assert slow["orders"]["edf"]["share"] < half["orders"]["edf"]["share"]
    text = cli(*arguments, *both, "--speed", "0.5").stdout
    assert "arrivals 0.5 times as fast" in text
    assert "4 slots, load 0.60" in text
    for kind in ("cpu-light", "gpu-training", "total"):
        assert kind in text


def test_a_trace_is_replayed_on_as_many_slots_as_its_load_needs(cli: Run, trace: str) -> None:
    result = cli("replay", "--since", "24h", "--trace", trace, "--json")
    assert "--since has no effect" in result.stderr
    found = json.loads(result.stdout)
    assert (found["slots"], found["total"]["tasks"]) == (5, 300)
    assert found["rho"] == pytest.approx(4 * 1.2 / 5)
    found = document(cli("replay", "--trace", trace, "--speed", "2", "--json"))
    assert found["slots"] == 10


def test_the_plan_for_a_trace(cli: Run, conf: dict[str, Any], trace: str) -> None:
    conf.update(rts_scheduler="edf")
    arguments = ("plan", "--trace", trace, "--target", "0.9")
    found = document(cli(*arguments, "--json"))
    slots = found["slots"]
    trials = {trial["slots"]: trial for trial in found["trials"]}
    assert trials[slots]["worst"] >= 0.9 > trials[slots - 1]["worst"]
    text = cli(*arguments).stdout
    assert f"{slots} slots meet 90% of the deadlines in order edf" in text
    (answer,) = (line for line in text.splitlines() if "<- the answer" in line)
    assert answer.split()[0] == str(slots)
    fifo = document(cli(*arguments, "--scheduler", "fifo", "--resamples", "0", "--json"))
    assert fifo["slots"] >= document(cli(*arguments, "--resamples", "0", "--json"))["slots"]
    each = cli(*arguments, "--by", "type", "--resamples", "2")
    assert "of each type's deadlines" in each.stdout
    never = cli("plan", "--trace", trace, "--target", "0.999995", "--k", "1.5")
    assert never.exit_code == 1
    assert "no number of slots meets 99.9995%" in never.stderr


@pytest.mark.measured
def test_progress_is_shown_on_a_terminal_beside_the_answer(trace: str) -> None:
    command = [*CELERY, "rts", "replay", "--trace", trace, "--slots", "4"]
    command += ["--scheduler", "sjf", "--json"]
    terminal, end = pty.openpty()
    env = {**os.environ, "TEST_BROKER": "memory://", "TEST_CONF": "{}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=end, text=True
    ) as process:
        os.close(end)
        answer, _ = process.communicate(timeout=60)
    shown = ""
    with suppress(OSError):  # at its end
        while True:
            shown += os.read(terminal, 100_000).decode()
    os.close(terminal)
    assert process.returncode == 0, shown
    assert list(json.loads(answer)["orders"]) == ["sjf"]
    assert "simulating sjf" in shown
    assert "100%" in shown


@pytest.mark.skipif(util.find_spec("matplotlib") is None, reason="needs matplotlib")
@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_plots_are_written(cli: Run, trace: str, tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}.{suffix}" for name in ("slots", "load", "plan")]
    what_if = ("replay", "--trace", trace, "--slots", "4", "--scheduler", "fifo")
    shown = cli(*what_if, "--scheduler", "edf", "--plot", str(paths[0]))
    assert f"Plot written to {paths[0]}" in shown.stdout
    found = document(cli(*what_if, "--plot", str(paths[1]), "--plot-by", "load", "--json"))
    points = found["curves"]["fifo"]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] > points[-1][1]
    target = ("plan", "--trace", trace, "--target", "0.9", "--resamples", "1")
    assert cli(*target, "--plot", str(paths[2])).exit_code == 0
    if suffix == "png":
        for path in paths:
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
            assert path.stat().st_size > 10_000
        return
    texts = [path.read_text() for path in paths]
    for text, x_label in zip(texts, ("slots", "load ρ on 4 slots", "slots"), strict=True):
        assert x_label in text
        assert "deadlines met, %" in text
    assert "fifo" in texts[0]
    assert "edf" in texts[0]
    assert "target 90 %" in texts[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("replay", "--trace", "TRACE", "--slots", "0"), "0 is not in the range"),
        (("replay", "--trace", "TRACE", "--queue", "celery"), "--trace excludes"),
        (("replay", "--trace", "TRACE", "--until", "1h"), "--trace excludes"),
        (("replay", "--since", "0s"), "--since must be before --until"),
        (("replay", "--trace", "none.csv", "--slots", "4"), "does not exist"),
        (("replay", "--trace", "BAD", "--slots", "4"), "line 3: runtime_s = 'long'"),
        (("replay", "--trace", "LONG", "--slots", "4"), "…' is not a number of seconds"),
        (("replay", "--trace", "TRACE", "--slots", "4", "--k", "3"), "3.0 is not in the range"),
        (("replay", "--trace", "TRACE", "--slots", "4", "--speed", "0"), "0.0 is not in the"),
        (
            ("replay", "--trace", "TRACE", "--slots", "4", "--speed", "1e-300"),
            "not in the range",
        ),
        (("replay", "--scheduler", "lifo"), "'lifo' is not one of"),
        (("replay", "--since", "soon"), "neither a duration"),
        (("replay", "--since", "1h", "--until", "2h"), "must be before"),
        (("replay", "--plot", "x.pdf"), "ends neither in .svg nor in .png"),
        (("replay", "--plot", "/no/such/folder/x.svg"), "there is no folder"),
        (("replay", "--plot-by", "load"), "--plot-by needs --plot"),
        (("plan", "--target", "0"), "0.0 is not in the range"),
        (("plan", "--target", "1.5"), "1.5 is not in the range"),
        (("plan", "--target", "nan"), "'nan' is not a number"),
        (("replay", "--trace", "TRACE", "--slots", "4", "--speed", "nan"), "is not a number"),
        (("replay", "--trace", "TRACE", "--slots", "4", "--k", "nan"), "is not a number"),
        (("plan", "--trace", "EMPTY"), "contains no jobs"),
    ],
)
def test_invalid_options_and_traces_are_rejected(
    cli: Run, trace: str, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "bad.csv").write_text("arrival_s,name,runtime_s\n1,a,2\n2,b,long\n")
    (tmp_path / "long.csv").write_text(f"arrival_s,name,runtime_s\n1,a,{'9' * 100_000}\n")
    (tmp_path / "empty.csv").write_text("arrival_s,name,runtime_s\n")
    files = {
        "TRACE": trace,
        "BAD": str(tmp_path / "bad.csv"),
        "EMPTY": str(tmp_path / "empty.csv"),
        "LONG": str(tmp_path / "long.csv"),
    }
    result = cli(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr


def test_plots_without_matplotlib(
    cli: Run, trace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rts.cli.plots.find_spec", lambda name: None)
    result = cli("replay", "--trace", trace, "--slots", "4", "--plot", "x.svg")
    assert result.exit_code == 2
    assert "pip install 'rts[plot]'" in result.stderr


def test_files_that_cannot_be_written(cli: Run, trace: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder.svg"
    folder.mkdir()
    for option in ("--write", "--plot"):
        result = cli("replay", "--trace", trace, "--slots", "4", option, str(folder))
        assert result.exit_code == 1, option
        assert "cannot be written" in result.stderr
    assert "deadlines met %" in result.stdout  # the answer, which took a while
    arguments = ("--target", "0.9", "--resamples", "1", "--plot", str(folder))
    result = cli("plan", "--trace", trace, *arguments)
    assert "cannot be written" in result.stderr
    assert "<- the answer" in result.stdout


def test_a_trace_that_arrives_at_once_has_no_load(cli: Run, tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    write_trace(path, [Job(3.0, f'a/b ö,"{n}"', 2.0, "kind of mine") for n in range(9)])
    found = cli("replay", "--trace", str(path), "--slots", "2", "--by", "name")
    assert "2 slots, all arrive at once" in found.stdout
    assert 'a/b ö,"8"' in found.stdout
    arguments = ("--plot", str(tmp_path / "x.svg"), "--plot-by", "load")
    drawn = cli("replay", "--trace", str(path), "--slots", "2", *arguments)
    assert drawn.exit_code == 1
    assert "no load to plot" in drawn.stderr
