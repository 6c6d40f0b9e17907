"""``rts check`` and ``rts watch`` on real servers, ledgers and terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from dataclasses import replace
from typing import Any

import pytest
import redis
from celery import Celery

from rts.alerting.alert import Alert
from rts.cli import check, watch_data
from rts.cli.watch_data import Gatherer
from rts.settings import Settings
from rts.testing import MongoServer, wait_until
from rts.views.slo import standings
from tests.commands import NO_MONGO, NO_REDIS, Run, write, write_verdicts
from tests.conftest import CELERY, ROOT
from tests.records import ended

NO_CA = NO_MONGO + "?tls=true&tlsCAFile=/no/such.pem"


@pytest.fixture
def conf(conf: dict[str, Any]) -> dict[str, Any]:
    """The configuration, with a broker and objectives."""
    return {
        **conf,
        "broker_url": conf["rts_redis_url"],
        "task_default_queue": conf["rts_key_prefix"].strip(":"),
        "rts_slo": {"cpu-light": 0.99, "*": 0.9},
    }


def test_a_check_is_ok_where_all_is_well(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 60, 200, 0), ("mixed", 60, 95, 1))
    result = cli("check")
    assert result.exit_code == 0, result.output
    text, _, numbers = result.output.strip().partition(" | ")
    assert "\n" not in text
    assert text.startswith("RTS OK - cpu-light: 100.0 % of 200 tasks on time (objective 99 %)")
    assert text.endswith(" ; 0 records waiting for the ledger")
    assert "'cpu-light on time 1h'=100.000%" in numbers
    assert "'* burn rate 1h'=0.104;6;14.4" in numbers
    assert "'outbox lag'=0.000s;60;300" in numbers
    assert cli("check", "--slo").exit_code == cli("check", "--lag").exit_code == 0
    assert "outbox" not in cli("check", "--slo").output
    assert "cpu-light" not in cli("check", "--lag").output


def test_one_task_is_a_task(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 60, 1, 0))
    result = cli("check", "--slo", "--type", "cpu-light")
    assert result.output.startswith("RTS OK - cpu-light: 100.0 % of 1 task on time (")


def test_an_objective_without_tasks_is_well(cli: Run) -> None:
    result = cli("check", "--slo")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("RTS OK - cpu-light: no tasks yet (objective 99 %)")


def test_few_tasks_use_up_no_budget(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 60, 8, 1))
    result = cli("check", "--slo", "--type", "cpu-light")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("RTS OK - cpu-light: 88.9 % of 9 tasks on time")
    write_verdicts(conf, ("cpu-light", 30, 1, 0))
    assert cli("check", "--slo", "--type", "cpu-light").exit_code == 1


def test_a_page_is_critical_and_hides_the_others(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 60, 60, 40), ("mixed", 60, 100, 0))
    result = cli("check", "--slo")
    assert result.exit_code == 2
    text = result.output.partition(" | ")[0]
    assert text == (
        "RTS CRITICAL - cpu-light: 60.0 % of 100 tasks on time over 1h, the error budget "
        "burns 40.0 times too fast (objective 99 %)"
    )
    document = json.loads(cli("check", "--slo", "--json").output)
    assert (document["status"], document["code"]) == ("CRITICAL", 2)
    light, others = document["findings"]
    assert (light["status"], light["objective"], light["target"]) == (
        "CRITICAL",
        "cpu-light",
        0.99,
    )
    assert light["windows"]["1h"]["good"] == 60
    assert others["status"] == "OK"
    # One type, or one task, alone: by its own objective, else that of *.
    assert cli("check", "--type", "mixed").exit_code == 0
    assert cli("check", "--type", "cpu-light").exit_code == 2
    assert cli("check", "--name", "proj.cpu-light").exit_code == 1
    assert "proj.mixed: 100.0 % of 100" in cli("check", "--name", "proj.mixed").output


def test_a_check_of_a_queue_counts_no_other_task_of_a_type_or_name_like_it(
    cli: Run, conf: dict[str, Any]
) -> None:
    kinds = (
        ("mixed", "proj.a", "burst", False),
        ("cpu-light", "proj.a", "mixed", True),
        ("cpu-light", "mixed", "burst", False),
        ("cpu-light", "mixed", "burst", True),
    )
    for n in range(80):
        task_type, name, queue, good = kinds[n % 4]
        due = {"deadline": time.time() - (30 if good else 90)}
        write(conf, ended(n, 60, task_type=task_type, name=name, queue=queue, **due))
    for option, code, told in (
        ("--queue", 0, "mixed: 100.0 % of 20 tasks on time (objective 90 %)"),
        ("--type", 2, "mixed: 0.0 % of 20 tasks on time over 6h"),
        ("--name", 1, "mixed: 50.0 % of 40 tasks on time over 3d"),
    ):
        result = cli("check", option, "mixed")
        assert (result.exit_code, told in result.output) == (code, True), result.output
    # Without an option a key of rts_slo is whatever has that name.
    conf["rts_slo"] = {"mixed": 0.9}
    assert " of 80 tasks on time" in cli("check", "--slo").output


def test_a_budget_that_is_used_up_exactly_is_used_up(cli: Run, conf: dict[str, Any]) -> None:
    conf["rts_slo"] = {"*": 0.95}
    write_verdicts(conf, ("mixed", 4 * 86400, 38, 2))
    result = cli("check", "--slo")
    assert result.exit_code == 1, result.output
    assert "95.0 % of 40 tasks on time, the error budget is used up" in result.output
    assert "'* budget left'=0.00%;0:" in result.output


def test_a_ticket_and_a_used_up_budget_are_warnings(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 3 * 3600, 970, 30))
    result = cli("check", "--slo")
    assert result.exit_code == 1, result.output
    assert "over 3d, the error budget burns 3.0 times too fast" in result.output
    conf["rts_slo"] = {"cpu-light": 0.9}
    assert cli("check", "--slo").exit_code == 0
    write_verdicts(conf, ("cpu-light", 4 * 86400, 0, 80))
    result = cli("check", "--slo")
    assert result.exit_code == 1, result.output
    assert "the error budget is used up" in result.output


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "text"),
    [
        ({"rts_mongo_url": NO_MONGO}, ("--slo",), 3, "MongoDB at mongodb://127.0.0.1:1/rts"),
        ({"rts_mongo_url": NO_MONGO}, ("--lag",), 2, "MongoDB at mongodb://127.0.0.1:1/rts"),
        ({"rts_mongo_url": NO_MONGO}, (), 2, "MongoDB at mongodb://127.0.0.1:1/rts"),
        ({"rts_mongo_url": NO_CA}, ("--lag",), 2, "?*** is not valid"),
        ({"rts_mongo_url": NO_CA}, ("--slo",), 3, "?*** is not valid"),
        ({"rts_mongo_url": NO_MONGO + "?tls=on"}, (), 3, "rts_mongo_url, option tls = 'on'"),
        ({"rts_redis_url": NO_REDIS}, ("--lag",), 2, "Redis at redis://127.0.0.1:1/0"),
        ({"broker_url": "nosuch://"}, ("--lag",), 3, "KeyError: 'No such transport: nosuch'"),
        ({"rts_slo": {"*": 2}}, ("--slo",), 3, "rts_slo"),
        ({"rts_slo": {}}, ("--slo",), 3, "rts_slo has no objectives"),
        ({"rts_slo": {"mixed": 0.9}}, ("--type", "cpu-light"), 3, "no objective"),
        ({}, ("--type", "no-such-type"), 3, "no task type"),
        ({}, ("--lunch",), 3, "No such option"),
        ({}, ("--lag-warning", "soon"), 3, "not a valid float"),
        ({}, ("--lag-warning", "301"), 3, "--lag-warning must not exceed --lag-critical"),
    ],
)
def test_a_check_that_cannot_be_made_is_unknown_or_critical(
    cli: Run, conf: dict[str, Any], changes: Any, arguments: Any, code: int, text: str
) -> None:
    conf.update(changes)
    result = cli("check", *arguments)
    assert (result.exit_code, "secret" in result.output) == (code, False), result.output
    assert result.output.count(text) == 1


def test_a_command_line_that_a_shell_completes_may_be_wrong() -> None:
    context = check.command.make_context(
        "check", ["--lag-warning", "soon"], resilient_parsing=True
    )
    assert context.params["lag_critical"] == check.CRITICAL_LAG_S


def test_an_outbox_that_lags_is_a_warning_and_then_critical(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis, rts_key_prefix: str
) -> None:
    long_ago = int((time.time() - 200) * 1000)
    redis_client.xadd(f"{rts_key_prefix}outbox", {"r": "x"}, id=f"{long_ago}-0")
    assert cli("check", "--lag").exit_code == 1
    assert cli("check", "--lag", "--lag-critical", "100").exit_code == 2
    assert cli("check", "--lag", "--lag-warning", "250").exit_code == 0
    redis_client.hset(f"{rts_key_prefix}counters", "records_lost", 3)
    assert cli("check", "--lag", "--lag-critical", "30").exit_code == 2
    redis_client.zadd(f"{rts_key_prefix}overdue", {"late": time.time()})
    beat = {"seen_at": time.time(), "worker": "w@h", "slots": 1, "queues": []}
    redis_client.hset(f"{rts_key_prefix}workers", "w@h/1", json.dumps(beat))
    result = cli("check", "--lag", "--lag-warning", "250")
    assert result.exit_code == 1
    assert "records_lost 3" in result.output
    assert "'overdue tasks'=1" in result.output
    # It waits for MongoDB, and how long is known; without Redis nothing is.
    conf["rts_mongo_url"] = NO_MONGO
    result = cli("check", "--lag")
    assert result.exit_code == 2
    assert "1 record waiting for the ledger, the oldest for 20" in result.output
    assert "'outbox lag'=20" in result.output
    conf["rts_redis_url"] = NO_REDIS
    assert "outbox" not in cli("check", "--lag").output


def test_status_shows_alerts_and_waiting_messages(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    hook = {"url": "https://u:hush@hooks.slack.com/services/hidden", "secret": "hush-hush"}
    conf["rts_webhooks"] = [hook]
    settings = Settings.from_conf(conf, environ={})
    redis_client.rpush(settings.keys.webhook(settings.webhooks[0].id), "a", "b")
    redis_client.hset(settings.keys.alerts, "k", "v")
    text, document = cli("status").output, cli("status", "--json").output
    assert "Alerts      1 firing, but nothing evaluates them now" in text
    assert "Webhook     2 waiting for https://hooks.slack.com\n" in text
    assert json.loads(document)["alerts"] == {
        "firing": 1,
        "led": False,
        "webhooks": [{"to": "https://hooks.slack.com", "waiting": 2}],
    }
    for secret in ("hush", "hidden"):
        assert secret not in text + document
    redis_client.set(settings.keys.alerting, "a companion")
    assert "Alerts      1 firing\n" in cli("status").output


def test_a_name_cannot_break_the_line(cli: Run, conf: dict[str, Any]) -> None:
    evil = "a'=1;0;0\n|\x1b[31m"
    conf["rts_slo"] = {evil: 0.9}
    output = cli("check", "--slo").output
    assert output.count("\n") == output.count("|") == 1, "monitors split at the bar"
    assert "\x1b" not in output
    numbers = shlex.split(output.strip().partition(" | ")[2])
    assert [number.count("=") for number in numbers] == [1, 1]


def test_watch_prints_once_without_a_terminal(cli: Run, conf: dict[str, Any]) -> None:
    write_verdicts(conf, ("cpu-light", 60, 60, 40), ("mixed", 7200, 10, 0))
    output = cli("watch").output
    rows = {line.split()[0]: line.split() for line in output.splitlines() if line}
    assert rows["*"][1:5] == ["90", "-", "-", "10"]
    assert [
        word
        for line in output.splitlines()
        if line.startswith("cpu-light") and "BURNS" in line
        for word in line.split()[-2:]
    ] == ["BURNS:", "page"]
    assert rows["mixed"][1:8] == ["90", "-", "-", "100.0", "0", "0", "10"]
    assert "Redis up · MongoDB up · Outbox 0 waiting\n" in output
    assert "No workers." in output
    assert conf["task_default_queue"] in output
    document = json.loads(cli("watch", "--json").output)
    assert document["types"]["1h"]["cpu-light"]["tasks"] == 100
    conf.update(rts_mongo_url=NO_MONGO, rts_redis_url=NO_REDIS)
    output = cli("watch").output
    assert "Redis NOT REACHABLE · MongoDB NOT REACHABLE" in output
    assert "secret" not in output
    assert "No workers." not in output


def test_watch_shows_how_it_is_now(
    cli: Run, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    """Not the runs of a day that was quiet, nor an alert's first numbers as today's."""
    write_verdicts(conf, ("cpu-light", 7200, 100, 0), ("mixed", 7200, 100, 0))
    write_verdicts(conf, ("cpu-light", 60, 10, 0), runtime_s=30.0)
    keys = Settings.from_conf(conf, environ={}).keys
    alert = Alert("1", "k", "task_overdue", "firing", "ticket", "3 late\x1b[2J", started_at=1e9)
    foreign: list[dict[str, Any]] = [{"severity": 7}, {"at": 1e300}, {"started_at": "1"}]
    for n, change in enumerate(foreign):
        redis_client.hset(keys.alerts, str(n), replace(alert, **change).to_json())
    redis_client.hset(keys.alerts, "k", alert.to_json())
    beat = {"seen_at": time.time(), "worker": "w@h", "queues": []}
    redis_client.hset(keys.workers, "w@h/1", json.dumps(beat))
    now = redis_client.time()[0]
    redis_client.zadd(keys.open, {"due": now - 60, "not due": now + 600, "late": now + 900})
    redis_client.zadd(keys.overdue, {"overdue": now - 60})
    note = ended(3, 0)._replace(completed_at=None, deadline=now - 1.0)
    redis_client.hset(keys.running, "3", note.to_json())
    redis_client.hset(keys.running, "4", note._replace(deadline=now + 600.0).to_json())
    lines = cli("watch").output.splitlines()
    open_now = "Open 4, 2 past the deadline · Running 2, 1 past the deadline"
    assert open_now in lines
    assert any(line.startswith("Alerts are firing, but nothing evaluates") for line in lines)
    assert "Ticket since 2001-09-09 01:46Z: 3 late\\x1b[2J, as it began" in lines
    for task_type, runtime_s in (("cpu-light", 30.0), ("mixed", 1.0)):
        row = [line for line in lines if line.startswith(task_type)][-1]
        assert float(row.split()[-2]) == pytest.approx(runtime_s, rel=0.02)
    document = json.loads(cli("watch", "--json").output)
    assert document["alerts"][0]["started_at"] == "2001-09-09T01:46:40.000Z"
    assert document["workers"][0]["seen_at"].endswith("Z")
    redis_client.set(keys.alerting, "a companion")
    assert "nothing evaluates" not in cli("watch").output


def test_watch_does_not_ask_for_the_long_windows_each_time(
    conf: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_verdicts(conf, ("mixed", 60, 3, 1))
    asked: list[object] = []

    def counted(*question: Any) -> Any:
        asked.append(question)
        return standings(*question)

    monkeypatch.setattr(watch_data, "standings", counted)
    monkeypatch.setattr(watch_data, "PAUSE_FACTOR", 1e9)
    app = Celery("watched", set_as_current=False)
    app.conf.update(conf)
    gatherer = Gatherer(app, Settings.from_conf(app.conf))
    first, second = gatherer.gather(), gatherer.gather()
    assert len(asked) == 1
    assert second.standings == first.standings
    assert second.types["24h"] == first.types["24h"]


def test_watch_shows_no_objectives_from_before_an_outage(conf: dict[str, Any]) -> None:
    with MongoServer() as mongo:
        conf.update(rts_mongo_url=mongo.url)
        write_verdicts(conf, ("cpu-light", 60, 60, 40))
        app = Celery("watched", set_as_current=False)
        app.conf.update(conf)
        gatherer = Gatherer(app, Settings.from_conf(app.conf))
        assert len(gatherer.gather().standings) == 2
        mongo.halt()
        snapshot = gatherer.gather()
    assert (snapshot.standings, snapshot.types) == ((), {})


@pytest.mark.parametrize("interval", ["inf", "1e300", "nan", "0"])
def test_watch_rejects_invalid_intervals(cli: Run, interval: str) -> None:
    result = cli("watch", "--interval", interval)
    assert result.exit_code == 2
    assert "--interval" in result.stderr


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, conf: dict[str, Any], *arguments: str, term: str = "xterm") -> None:
        self._master, slave = pty.openpty()
        self._before = termios.tcgetattr(slave)
        self._slave = slave
        self.resize(24, 100)
        env = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES")
        }
        env |= {"TEST_BROKER": conf["broker_url"], "TEST_CONF": json.dumps(conf), "TERM": term}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
        command = [*CELERY, "rts", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        self.output = ""

    def read(self) -> str:
        """Return all that was written so far."""
        while select.select([self._master], [], [], 0)[0]:
            self.output += os.read(self._master, 65536).decode(errors="replace")
        return self.output

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Change its size."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def is_as_before(self) -> bool:
        """Whether its modes are what they were."""
        return termios.tcgetattr(self._slave) == self._before

    def close(self) -> None:
        """Let go."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)


def test_watch_is_printed_once_on_a_terminal_that_cannot_move_its_cursor(
    conf: dict[str, Any],
) -> None:
    write_verdicts(conf, ("cpu-light", 60, 60, 40))
    terminal = Terminal(conf, "watch", term="dumb")
    try:
        wait_until(lambda: terminal.read() and terminal.process.poll() is not None)
        assert terminal.process.returncode == 0
        assert "cpu-light" in terminal.read()
        assert "\x1b" not in terminal.output
    finally:
        terminal.close()


@pytest.mark.measured
@pytest.mark.parametrize("end", ["q", "SIGINT"])
def test_watch_is_live_on_a_terminal(conf: dict[str, Any], end: str) -> None:
    write_verdicts(conf, ("cpu-light", 60, 60, 40))
    terminal = Terminal(conf, "watch", "--interval", "0.3")
    try:
        wait_until(lambda: terminal.read().count("cpu-light") >= 6)  # three pictures
        assert terminal.output.startswith("\x1b[?1049h\x1b[?25l")
        assert "BURNS: page" in terminal.output
        assert not terminal.is_as_before()
        if end == "q":
            terminal.output = ""
            terminal.resize(9, 40)
            terminal.process.send_signal(signal.SIGWINCH)
            wait_until(lambda: "more lines; the window is too" in terminal.read())
            terminal.type("x")  # means nothing
            terminal.type("q")
        else:
            terminal.process.send_signal(signal.Signals[end])
        # Somebody reads, as a terminal does: what is written would wait for it otherwise.
        wait_until(lambda: terminal.read() and terminal.process.poll() is not None)
        assert terminal.process.returncode == 0
        assert terminal.read().endswith("\x1b[?25h\x1b[?1049l")
        assert terminal.is_as_before()
        assert "Traceback" not in terminal.output
    finally:
        terminal.close()


def test_watch_leaves_the_screen_to_the_shell_while_it_is_suspended(
    conf: dict[str, Any],
) -> None:
    enter, leave = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
    terminal = Terminal(conf, "watch", "--interval", "0.3")
    try:
        wait_until(lambda: "Redis up" in terminal.read())
        terminal.output = ""
        terminal.type("\x1a")  # Ctrl-Z; there is no shell, so it is continued at once
        wait_until(lambda: "Redis up" in terminal.read().partition(leave + enter)[2])
        terminal.type("q")
        wait_until(lambda: terminal.read() and terminal.process.poll() is not None)
        assert terminal.read().endswith(leave)
        assert terminal.is_as_before()
    finally:
        terminal.close()
