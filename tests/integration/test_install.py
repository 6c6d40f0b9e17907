"""Installing, uninstalling, and what is refused at install."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import pytest
import redis
from celery import Celery, current_app
from kombu.transport import redis as stock

import rts
from rts.installation import parts_of
from rts.keys import Keys
from rts.link.scripts import pack
from rts.testing import RedisServer, WorkerFailed, wait_until
from tests.conftest import MakeStage, printed
from tests.order import EDF

#: What :func:`bare` is.
NewApp = Callable[..., Celery]


def nothing() -> None:
    """A task that does nothing."""


@pytest.fixture
def bare() -> Iterator[NewApp]:
    """Make apps that nothing configures; without rts and closed at the end."""
    made: list[Celery] = []

    def make(**options: Any) -> Celery:
        made.append(Celery(f"app{len(made)}", **options))
        return made[-1]

    yield make
    for app in made:
        rts.uninstall(app)
        app.close()


@pytest.fixture
def conf(rts_redis_url: str, rts_key_prefix: str) -> dict[str, Any]:
    """The session's Redis as the broker, and a queue of this test."""
    return {
        "broker_url": rts_redis_url,
        "task_default_queue": rts_key_prefix.strip(":"),
        "rts_key_prefix": rts_key_prefix,
    }


@pytest.fixture
def app(bare: NewApp, conf: dict[str, Any]) -> Celery:
    """An app for this test only."""
    app = bare()
    app.conf.update(conf)
    app.task(name="own.task", shared=False)(nothing)
    return app


@pytest.fixture
def other(bare: NewApp, conf: dict[str, Any], app: Celery) -> Iterator[Celery]:
    """A second app in the process that is not the current one."""
    other = bare(set_as_current=False)
    other.conf.update(conf)
    yield other
    app.set_current()


def ordered(client: redis.Redis, app: Celery) -> tuple[int, int]:
    """Return how many messages wait in the deadline order, and how many where Celery reads."""
    queue = app.conf.task_default_queue
    return client.zcard(f"{queue}{EDF}"), client.llen(queue)


def newest(client: redis.Redis, app: Celery) -> dict[str, Any]:
    """Return the headers of the newest message in the app's queue."""
    headers: dict[str, Any] = json.loads(client.lindex(app.conf.task_default_queue, 0))[
        "headers"
    ]
    return headers


def test_one_call_installs_everything_and_another_removes_it(
    app: Celery, redis_client: redis.Redis
) -> None:
    app.send_task("own.task")
    plain = newest(redis_client, app)
    rts.install(app)
    rts.install(app)  # changes nothing
    app.send_task("own.task")
    headers = newest(redis_client, app)
    added = set(headers) - set(plain)
    assert added == {
        *("task_type", "rts_tau", "rts_k", "rts_arrival", "rts_deadline", "rts_type_source")
    }
    assert len(json.dumps({k: headers[k] for k in added})) < 1000
    rts.uninstall(app)
    opened = Keys(app.conf.rts_key_prefix).open
    assert redis_client.zscore(opened, headers["id"]), "noted before the thread would have"
    rts.uninstall(app)
    app.send_task("own.task")
    assert set(newest(redis_client, app)) == set(plain)


def test_the_current_app_is_the_app_that_it_stands_for(app: Celery) -> None:
    assert app == current_app
    rts.install(current_app)
    assert parts_of(app) is not None
    rts.install(app)  # changes nothing
    rts.uninstall(current_app)
    assert parts_of(app) is None


@pytest.mark.parametrize("scheduler", [None, "edf"])
def test_no_connection_is_left(scheduler: str | None) -> None:
    with RedisServer() as server:
        client = redis.Redis.from_url(server.url)
        app = Celery("web", broker=server.url, set_as_current=False)
        app.conf.update(rts_redis_url=server.url, rts_scheduler=scheduler)
        before = len(client.client_list())
        rts.install(app)
        assert rts.predict("nobody's", app=app) is None
        parts = parts_of(app)
        assert len(client.client_list()) >= before + 2, "rts's Redis, and the broker"
        rts.uninstall(app)
        wait_until(lambda: len(client.client_list()) == before)
        # What still holds them connects again.
        assert parts.link.call(pack("PING")) == [b"PONG"]
        assert parts.predictor.of_task("nobody's", None) is None
        parts.predictor.close()
        parts.link.close()
        wait_until(lambda: len(client.client_list()) == before)
        app.close()
        client.close()


def test_it_may_be_called_before_the_configuration(
    bare: NewApp, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    app = bare()
    rts.install(app)
    app.conf.update(conf, rts_sla_multiplier=1.75)
    app.send_task("late.task")
    assert newest(redis_client, app)["rts_k"] == 1.75


@pytest.mark.parametrize("late", ["options", "scheduler"])
def test_an_app_whose_configuration_changes_publishes_in_order(
    bare: NewApp, conf: dict[str, Any], redis_client: redis.Redis, late: str
) -> None:
    app = bare()
    scheduler = None if late == "scheduler" else "edf"
    app.config_from_object({**conf, "rts_scheduler": scheduler})
    rts.install(app)
    assert app.conf.broker_url  # which loads it
    if late == "scheduler":
        app.conf.rts_scheduler = "edf"
    else:
        app.conf.broker_transport_options = {"visibility_timeout": 60}
    app.send_task("late.task")  # when the configuration is read again
    app.send_task("late.task")
    assert ordered(redis_client, app) == (1, 1)  # workers in order adopt the first
    if late == "options":
        with app.connection_for_write() as connection:
            assert connection.default_channel.visibility_timeout == 60


@pytest.mark.parametrize("namespace", ["CELERY", "celery"])
def test_options_that_have_a_namespace_do_not_hide_the_order(
    bare: NewApp, conf: dict[str, Any], redis_client: redis.Redis, namespace: str
) -> None:
    conf.update(
        broker_transport_options={"visibility_timeout": 60},
        rts_scheduler="edf",
    )
    named = {f"celery_{key}": value for key, value in conf.items()}
    if namespace.isupper():
        named = {key.upper(): value for key, value in named.items()}
    app = bare()
    app.config_from_object(named, namespace=namespace)
    rts.install(app)
    app.send_task("own.task")
    assert ordered(redis_client, app) == (1, 0)
    with app.connection_for_write() as connection:
        assert connection.default_channel.visibility_timeout == 60
    rts.uninstall(app)
    app.send_task("own.task")
    assert ordered(redis_client, app) == (1, 1)


def test_what_is_published_after_uninstalling_waits_where_celery_reads(
    app: Celery, redis_client: redis.Redis
) -> None:
    app.conf.rts_scheduler = "edf"
    rts.install(app)
    app.send_task("own.task")
    assert ordered(redis_client, app) == (1, 0)
    rts.uninstall(app)
    app.send_task("own.task")
    assert ordered(redis_client, app) == (1, 1)
    rts.install(app)
    app.send_task("own.task")
    assert ordered(redis_client, app) == (2, 1)


def test_an_app_that_is_finalized_by_hand_can_publish_before(
    bare: NewApp,
    conf: dict[str, Any],
    redis_client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = bare(autofinalize=False)
    app.conf.update(conf)

    @app.task(name="by.hand", shared=False, rts={"task_type": "cpu-light"})
    def by_hand() -> None: ...

    rts.install(app)
    app.send_task("by.hand")
    assert newest(redis_client, app)["task_type"] == "mixed", "Celery has no such task yet"
    assert not app.finalized
    assert "rts publish hook failed" not in caplog.text
    app.finalize()
    app.send_task("by.hand")
    assert newest(redis_client, app)["task_type"] == "cpu-light"


def test_a_publish_does_not_finalize_its_app(
    bare: NewApp, conf: dict[str, Any], redis_client: redis.Redis
) -> None:
    app = bare()
    annotations = {"annotated": {"rts": {"task_type": "cpu-light"}}}
    app.conf.update(conf, task_annotations=annotations)

    @app.task(name="annotated", shared=False)
    def annotated() -> None: ...

    @app.task(name="by.name", shared=False, rts={"task_type": "cpu-heavy"})
    def by_name() -> None: ...

    rts.install(app)
    annotated.delay()
    assert newest(redis_client, app)["task_type"] == "cpu-light"
    assert not app.finalized, "its on_after_finalize would have been sent"
    app.send_task("by.name")
    assert newest(redis_client, app)["task_type"] == "cpu-heavy", "found all the same"


@pytest.mark.parametrize("how", ["attribute", "update", "object", "environment"])
def test_an_invalid_setting_fails_at_install(
    how: str, bare: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = bare()
    if how == "attribute":
        app.conf.rts_sla_multiplier = 9
    elif how == "update":
        app.conf.update(rts_sla_multiplier=9)
    elif how == "object":
        app.config_from_object({"rts_sla_multiplier": 9})
    else:
        monkeypatch.setenv("SCHED_SLA_MULTIPLIER", "9")
    with pytest.raises(rts.ConfigurationError, match=r"= '?9'? is not valid; .*1\.5 to 2\.5"):
        rts.install(app)


def test_the_deadline_order_is_refused_with_a_kombu_that_it_cannot_override(
    bare: NewApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = bare(broker="redis://127.0.0.1:1")
    app.conf.rts_scheduler = "edf"
    monkeypatch.delattr(stock.Channel, "_brpop_start")
    with pytest.raises(rts.ConfigurationError, match=r"kombu \d.*has no Channel._brpop_start"):
        rts.install(app)


def test_a_lazy_configuration_is_loaded_when_the_app_needs_it(bare: NewApp) -> None:
    app, told = bare(), []
    app.config_from_object({"CELERY_RTS_MIN_SAMPLES": 0}, namespace="CELERY")
    with pytest.raises(rts.ConfigurationError, match="rts_min_samples = 0"):
        rts.install(app)
    app.config_from_object({"CELERY_RTS_MIN_SAMPLES": 1}, namespace="CELERY")
    rts.install(app)
    # As Celery's manual adds periodic tasks: on the lines after the configuration.
    app.on_after_configure.connect(lambda **_: told.append("configured"), weak=False)
    assert app.conf.rts_min_samples == 1
    assert told == ["configured"]


@pytest.mark.parametrize("how", ["receiver", "defaults"])
def test_a_configuration_that_code_completes_is_not_judged_before(
    how: str, bare: NewApp
) -> None:
    app = bare()
    app.config_from_object({"broker_url": "amqp://placeholder", "rts_scheduler": "edf"})
    if how == "receiver":
        app.on_configure.connect(
            lambda sender, **_: setattr(sender, "_preconf", {"broker_url": "redis://h"}),
            weak=False,
        )
    else:
        app.add_defaults(lambda: {"rts_key_prefix": "mine:"})
    rts.install(app)


def test_a_worker_refuses_to_start_with_a_setting_that_is_invalid_by_then(
    make_stage: MakeStage,
) -> None:
    stage = make_stage()
    with pytest.raises(WorkerFailed, match="rts_min_samples = 0 is not valid"):
        stage.worker("tests.apps.late_setting")


def test_a_producer_with_an_invalid_setting_goes_on_without_rts(
    app: Celery, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    rts.install(app)
    app.conf.rts_min_samples = 0
    app.send_task("own.task")
    app.send_task("own.task")
    assert "rts_deadline" not in newest(redis_client, app)
    assert sum("rts is off in this process" in r.getMessage() for r in caplog.records) == 1


def test_disabled_it_does_nothing(app: Celery, redis_client: redis.Redis) -> None:
    app.conf.rts_enabled = False
    rts.install(app)
    app.send_task("own.task")
    assert "rts_deadline" not in newest(redis_client, app)


def test_disabled_it_leaves_the_queues_in_their_form(
    app: Celery, redis_client: redis.Redis
) -> None:
    app.conf.update(rts_enabled=False, rts_scheduler="edf")
    rts.install(app)
    app.send_task("own.task")
    (message,) = redis_client.zrange(f"{app.conf.task_default_queue}{EDF}", 0, -1)
    assert "rts_deadline" not in message


def test_another_app_in_the_process_is_left_alone(
    app: Celery, other: Celery, redis_client: redis.Redis
) -> None:
    rts.install(app)
    other.task(name="other.task", shared=False)(nothing)
    with other.connection_for_write():
        other.set_current()
        other.send_task("other.task")
        assert "rts_deadline" not in newest(redis_client, app)
        app.send_task("own.task")
        assert "rts_deadline" in newest(redis_client, app)


@pytest.mark.parametrize("current", ["own", "other"])
def test_a_task_that_apps_share_is_planned_by_the_app_that_publishes_it(
    app: Celery, other: Celery, redis_client: redis.Redis, current: str
) -> None:
    own, others = (each.task(name="both.know")(nothing) for each in (app, other))
    rts.install(app)
    (app if current == "own" else other).set_current()
    own.delay()
    assert "rts_deadline" in newest(redis_client, app)
    others.delay()
    assert "rts_deadline" not in newest(redis_client, app)
    other.conf.update(rts_min_slack=77.0, rts_key_prefix="rts-test-other:")
    rts.install(other)
    for publisher, slack_s in ((own, 1.0), (others, 77.0)):
        publisher.apply_async(headers={"task_type": "cpu-light"})
        headers = newest(redis_client, app)
        left_s = headers["rts_deadline"] - headers["rts_arrival"] - headers["rts_tau"]
        assert left_s == pytest.approx(max(5.0, slack_s))


class Tasks(str, Enum):
    RESIZE = "images.resize"


def test_a_task_that_a_member_of_an_enum_names_has_its_own_type(
    app: Celery, redis_client: redis.Redis
) -> None:
    rts.install(app)
    resize = app.task(name=Tasks.RESIZE, rts={"task_type": "gpu-training"})(nothing)
    resize.delay()
    assert newest(redis_client, app)["task_type"] == "gpu-training"


def test_an_import_in_the_configuration_is_enough(
    make_stage: MakeStage, redis_client: redis.Redis, mongo: Any
) -> None:
    stage = make_stage(imports=["rts.auto"])
    stage.installed = False
    stage.worker(concurrency=1)
    script = "from tests.apps.basic import ok; ok.delay(0)"
    printed(script, env=stage.environment)
    task = wait_until(lambda: mongo.tasks.find_one({"state": "SUCCESS"}))
    # The producer has no rts, so the worker has planned it, as its arrival source says.
    assert task["arrival_source"] == "received"
    assert task["sla_success"] is True
    assert redis_client.hlen(f"{stage.prefix}tau") == 2


def test_of_several_apps_the_one_whose_configuration_names_it_gets_it() -> None:
    script = """
import sys
from celery import Celery
import rts

one, two = Celery("one", broker="memory://"), Celery("two", broker="memory://")
if "imported" in sys.argv:
    one.conf.imports = ["rts.auto"]
    one.loader.import_default_modules()
    other = two  # the current app
else:
    import rts.auto
    one, other = two, one
print(rts.wiring._has_rts(one), rts.wiring._has_rts(other))
"""
    for how in ("imported", "by hand"):
        assert printed(script, how).split() == ["True", "False"], how


@pytest.mark.measured
@pytest.mark.parametrize("how", ["a publish", "a worker"])
@pytest.mark.parametrize("k", [2.0, 9.0])
def test_an_app_made_after_the_import_gets_it_if_its_configuration_names_it(
    how: str, k: float
) -> None:
    """As where the product makes the app, and the module of its configuration is all that the
    operator can change: that one imports rts for the processes that only publish.
    """
    script = """
import sys
import rts.auto
from celery import Celery, _state

how, k = sys.argv[1:]
before = _state.default_app
named = Celery("named", broker="memory://", set_as_current=False)
named.conf.update(
    imports="rts.auto" if k == "2.0" else ["rts.auto"],  # Celery takes both
    rts_sla_multiplier=float(k),
    rts_redis_url="redis://127.0.0.1:1",
)
other = Celery("other", broker="memory://", set_as_current=False)
error = None
for app in (other, named):
    try:
        if how == "a publish":
            app.send_task("tell")
        else:
            app.loader.import_default_modules()
    except rts.ConfigurationError as exc:
        error = exc.setting
print(before, *(rts.wiring._has_rts(app) for app in (named, other)), error)
"""
    found = printed(script, how, str(k)).split()
    refused = k == 9.0 and how == "a worker"
    error = "rts_sla_multiplier" if refused else "None"
    assert found == ["None", str(not refused), "False", error]


@pytest.mark.parametrize("how", ["a publish", "a task", "a worker"])
def test_an_app_whose_configuration_names_it_stays_without_it_once_uninstalled(
    how: str,
) -> None:
    script = """
import sys
import rts
from celery import Celery

app = Celery("named", broker="memory://")
app.conf.update(imports=["rts.auto"], rts_redis_url="redis://127.0.0.1:1")
app.loader.import_default_modules()
had = rts.wiring._has_rts(app)
rts.uninstall(app)
if sys.argv[1] == "a publish":
    app.send_task("tell")
elif sys.argv[1] == "a task":
    app.tasks
else:
    app.loader.import_default_modules()
print(had, rts.wiring._has_rts(app))
"""
    assert printed(script, how).split() == ["True", "False"]


@pytest.mark.parametrize("how", ["a timeout", "another thread"])
def test_what_disturbs_the_first_publish_of_an_app_does_not_leave_it_without(
    how: str,
) -> None:
    script = """
import sys
import rts.auto
from celery import Celery

app = Celery("named", broker="memory://")
app.conf.update(imports=["rts.auto"], rts_redis_url="redis://127.0.0.1:1")
wire = rts.auto.wire

def disturbed(app):
    rts.auto.wire = wire
    if sys.argv[1] == "a timeout":
        raise KeyboardInterrupt  # as the handler of SIGALRM in Airflow's scheduler
    rts.auto._publishing()
    print(rts.wiring._has_rts(app))

rts.auto.wire = disturbed
try:
    app.send_task("tell")
except KeyboardInterrupt:
    app.send_task("tell")
    print(rts.wiring._has_rts(app))
"""
    assert printed(script, how).split() == ["True"]
