"""Settings: every invalid value fails with a message that names setting, value and range."""

from __future__ import annotations

import json
import pickle
import ssl
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

import rts
from rts import ConfigurationError, worker
from rts.settings import DEFAULT_REDIS_URL, Settings
from tests.conftest import MakeApp, printed


def read(environ: dict[str, str] | None = None, **conf: Any) -> Settings:
    return Settings.from_conf(conf, environ={} if environ is None else environ)


def test_the_spool_is_named_after_the_user_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``sudo -E`` and ``celery worker --uid`` leave the name of another user there."""
    expected = read().spool_dir
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert read().spool_dir == expected


def test_the_spool_stays_where_it_is_when_a_password_changes() -> None:
    def folder(url: str, prefix: str = "rts:") -> str:
        return read(rts_redis_url=url, rts_key_prefix=prefix).spool_dir

    own = folder("redis://host:6379/0")
    assert folder("redis://:old@host:6379/0") == own
    assert folder("redis://me:new@host:6379/0?ssl_ca_certs=/ca.crt&password=a@b") == own
    others = {
        folder("redis://host:6379/0", "other:"),
        folder("redis://host:6379/1"),
        folder("redis://host:6379/0?db=2"),
        folder("redis://host2:6379/0"),
        folder("unix:///run/redis.sock?db=1"),
        folder("unix:///run/redis.sock?db=2"),
    }
    assert len(others - {own}) == 6


def test_without_settings_the_documented_defaults_apply() -> None:
    settings = read()
    assert settings.redis_url == "redis://localhost:6379/0"
    assert settings.mongo_url == "mongodb://localhost:27017/rts"
    assert (settings.sla_multiplier, settings.learning_rate, settings.min_slack) == (
        2.0,
        0.2,
        1.0,
    )
    assert {t.name: t.tau for t in settings.task_types.values()} == {
        "cpu-light": 5,
        "cpu-heavy": 15,
        "memory-heavy": 20,
        "gpu-inference": 10,
        "gpu-training": 60,
        "mixed": 10,
    }
    assert settings.keys.tau == "rts:tau"
    assert read(rts_mongo_url=None, rts_min_samples=None) == settings


BAD: dict[str, list[Any]] = {
    "rts_sla_multiplier": [1.49, 2.51, float("nan"), "two", True],
    "rts_learning_rate": [0, 1.01],
    "rts_min_slack": [-0.1],
    "rts_min_samples": [0, 1.5],
    "rts_tau_scope": ["task"],
    "rts_max_types": [5],
    "rts_ledger_ttl": [-1],
    "rts_outbox_max": [0],
    "rts_spool_max_bytes": [0],
    "rts_spool_dir": ["relative", 7],
    "rts_timeout": [0, 1e10],  # no socket takes the latter
    "rts_connect_timeout": [float("inf"), 1e10],
    "rts_breaker_period": [-1],
    "rts_enabled": ["yes"],
    "rts_drain": [1],
    "rts_key_prefix": ["", "a\x00b"],
    "rts_redis_url": [
        *("amqp://localhost", 7, "redis", "redis://host:port/0", "redis://host:99999/0"),
        *("redis://[::1:6379/0", "redis://:se/cret@host/0", "redis://:12#3@host/0"),
    ],
    "rts_mongo_url": ["localhost:27017", "mongodb", "postgresql://host/rts", 7],
    "rts_task_types": [
        *(["video"], {"a/b": 3}, {5: 3}, {"video": 0}, {"video": {"k": 2}}),
        *({"video": {"sla_multiplier": 2}}, {"video": {"tau": 3, "sla_multiplier": 3}}),
    ],
    "rts_priority_multipliers": [{"high": 2}, {1: 9}, 2],
    "rts_open_max": [-1],
    "rts_slo": [0.95, {"mixed": 1}, {"mixed": 0.49}, {"mixed": 95}, {"": 0.95}, {7: 0.95}],
    "rts_slo_window": [3599, 1e12],  # the latter began before the year 1
    "rts_slo_min_events": [0],
    "rts_routes": [
        *(["gpu"], {"mixed": []}, {"mixed": "gpu"}, {"mixed": [""]}, {"mixed": ["gpu", 7]}),
        {"unheard-of": ["gpu"]},
    ],
    "rts_mulitplier": [2],
}


@pytest.mark.parametrize(
    ("setting", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_an_invalid_value_names_setting_value_and_range(setting: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{setting: value})
    assert str(caught.value).startswith(setting)
    assert "allowed: " in str(caught.value)
    assert caught.value.allowed
    # As a pool of processes brings it back.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("rts_task_types", {"a/b": 3}, "rts_task_types, key = 'a/b' "),
        ("rts_priority_multipliers", {"high": 2}, "rts_priority_multipliers, key = 'high' "),
        ("rts_routes", {"unheard-of": ["gpu"]}, "rts_routes, key = 'unheard-of' "),
        ("rts_webhooks", [{"URL": "https://a"}], "rts_webhooks[0], key = 'URL' "),
        ("rts_webhooks", [{}], "rts_webhooks[0] = 'a dict without url' "),
    ],
)
def test_an_invalid_key_is_not_taken_for_the_value(
    setting: str, value: Any, named: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**{setting: value})
    assert str(caught.value).startswith(named)


@pytest.mark.parametrize("name", ["тип", "größe", "-a"])
def test_what_a_name_of_a_type_may_be_is_plain_to_who_writes_other_letters(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"a to z, .* the first no - or _"):
        read(rts_task_types={name: 3})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("rts_sla_multiplier", 1.5), ("rts_sla_multiplier", 2.5)),
        *(("rts_quantile", 0.5), ("rts_quantile", 0.999)),
        *(("rts_late_share", 0), ("rts_late_share", 1)),
        *(("rts_slo", {"*": 0.5}), ("rts_slo", {"*": 0.99999})),
        *(("rts_key_prefix", "x"), ("rts_key_prefix", "x" * 64)),
        *(("rts_learning_rate", 1), ("rts_hopeless_slots", 1)),
        *(("rts_min_slack", 0), ("rts_ledger_ttl", 0), ("rts_open_max", 0)),
        *(("rts_min_samples", 1), ("rts_outbox_max", 1), ("rts_max_types", 6)),
        *(("rts_slo_window", 3600), ("rts_slo_window", 1e9), ("rts_timeout", 1e9)),
        ("rts_spool_dir", "/absolute"),
    ],
)
def test_the_ends_of_a_range_are_valid(setting: str, value: Any) -> None:
    assert getattr(read(**{setting: value}), setting.removeprefix("rts_")) == value


def test_an_unknown_name_gets_the_most_similar_ones_first() -> None:
    with pytest.raises(ConfigurationError, match="allowed: the settings rts_slo, ") as caught:
        read(rts_sloo={"*": 0.9})
    assert caught.value.setting == "rts_sloo"


class Word(str, Enum):
    """As apps may have them; ``str`` of a member is not its value."""

    EDF = "edf"
    HIGH = "high"
    PREFIX = "app:"
    SLACK = "slack"


def test_members_of_an_enum_are_the_strings_that_they_are() -> None:
    settings = read(
        rts_scheduler=Word.EDF,
        rts_key_prefix=Word.PREFIX,
        rts_routes={"mixed": [Word.HIGH]},
        rts_slo={Word.HIGH: 0.9},
    )
    assert f"{settings.scheduler}" == "edf"
    assert f"{settings.key_prefix}" == "app:"
    assert [f"{queue}" for queue in settings.routes["mixed"]] == ["high"]
    assert [f"{key}" for key in settings.slo] == ["high"]
    named, usual = (
        read(rts_webhooks=[{"url": "https://a/", "format": name}]).webhooks[0].id
        for name in (Word.SLACK, "slack")
    )
    assert named == usual, "the name of its queue"


def test_an_invalid_scheduler_names_none_as_allowed() -> None:
    with pytest.raises(ConfigurationError, match="allowed: 'edf' or 'priority' or None"):
        read(rts_scheduler="fifo")


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(rts_redis_url="http://user:secret@host/0")
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(read(rts_redis_url="redis://:secret@host/0"))
    with pytest.raises(ConfigurationError, match=r"broker_url.* as %23, %2F, %3F") as caught:
        read(broker_url="redis://:se#cret@host/0")
    assert "se#" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"^CELERY_BROKER_URL = "):
        read({"CELERY_BROKER_URL": "redis://:se#cret@host/0"}, broker_url="redis://host")


@pytest.mark.parametrize(
    "value",
    [
        "mongodb://user:secret@host/rts",
        "https://hooks.slack.com/services/secret",
        [{"url": "https://hooks.slack.com/services/secret"}],
    ],
)
def test_the_value_of_an_unknown_setting_may_be_secret(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rts_uri = .* the settings rts_") as caught:
        read(rts_uri=value)
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.value)


def test_an_error_tracker_gets_no_frame_whose_variables_hold_a_password() -> None:
    app = Celery("tracked", broker="memory://", set_as_current=False)
    app.conf.rts_mongo_url = "mongodb://me:secret@host/rts?tls=maybe"
    with pytest.raises(ConfigurationError) as caught:
        rts.install(app)
    assert [frame.name for frame in caught.traceback][1:] == ["install"]


def test_an_error_tracker_gets_none_from_a_worker_either(make_app: MakeApp) -> None:
    app = make_app()
    app.conf.rts_mongo_url = "mongodb://me:secret@host/rts?tls=maybe"
    with pytest.raises(ConfigurationError) as caught:
        app.WorkController(pool="solo")
    assert caught.traceback[-1].path == Path(worker.__file__)


def test_the_environment_overrides_the_multiplier() -> None:
    assert read({"SCHED_SLA_MULTIPLIER": "1.75"}, rts_sla_multiplier=2.2).sla_multiplier == 1.75
    assert read({"SCHED_SLA_MULTIPLIER": ""}, rts_sla_multiplier=2.2).sla_multiplier == 2.2
    with pytest.raises(ConfigurationError, match=r"SCHED_SLA_MULTIPLIER = '3'.*1\.5 to 2\.5"):
        read({"SCHED_SLA_MULTIPLIER": "3"})


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        ({"broker_url": "redis://a:1/2"}, "redis://a:1/2"),
        ({"broker_url": "redis://a:1/2;redis://b"}, "redis://a:1/2"),
        ({"broker_url": ["redis://a", "redis://b"]}, "redis://a"),
        ({"broker_url": []}, "redis://localhost:6379/0"),
        ({"broker_url": "redis://"}, "redis://localhost"),
        ({"broker_url": "redis:///3"}, "redis://localhost/3"),
        ({"broker_url": "rediss:///3"}, "rediss://localhost/3"),
        ({"broker_url": "amqp://x", "result_backend": "redis://c/1"}, "redis://c/1"),
        ({"broker_url": "amqp://x"}, "redis://localhost:6379/0"),
        ({"broker_url": "amqp://x", "result_backend": "redis"}, "redis://localhost:6379/0"),
        ({"broker_url": "redis+socket:///run/r.sock"}, "unix:///run/r.sock"),
        (
            {"broker_url": "redis+socket:///run/r.sock?virtual_host=4"},
            "unix:///run/r.sock?db=4",
        ),
        *(
            (
                {"broker_url": f"rediss://a?ssl_cert_reqs=CERT_{checks.upper()}"},
                f"rediss://a?ssl_cert_reqs={checks}",
            )
            for checks in ("none", "optional", "required")
        ),
        ({"broker_url": "redis://a", "rts_redis_url": "redis://own"}, "redis://own"),
        (
            {"broker_url": "rediss://a/1", "broker_use_ssl": {"ssl_cert_reqs": ssl.CERT_NONE}},
            "rediss://a/1?ssl_cert_reqs=none",
        ),
        (
            {
                "broker_url": "redis://a?ssl_cert_reqs=CERT_NONE",
                "broker_use_ssl": {"ssl_ca_certs": Path("/a b/ca"), "ssl_certfile": None},
            },
            "rediss://a?ssl_cert_reqs=none&ssl_ca_certs=/a%20b/ca",
        ),
        (
            {
                "broker_url": "redis://a",
                "broker_use_ssl": {"ssl_min_version": ssl.TLSVersion.TLSv1_2},
            },
            "rediss://a?ssl_min_version=771",
        ),
        (
            {
                "broker_url": "redis://a",
                "broker_use_ssl": {"ssl_include_verify_flags": [ssl.VERIFY_X509_STRICT]},
            },
            "rediss://a?ssl_include_verify_flags=VERIFY_X509_STRICT",
        ),
        (
            {
                "broker_url": "redis://a",
                "broker_use_ssl": {
                    "ssl_include_verify_flags": [],
                    "ssl_exclude_verify_flags": [int(ssl.VERIFY_X509_STRICT) | 4],
                },
            },
            "rediss://a?ssl_include_verify_flags=&ssl_exclude_verify_flags="
            "VERIFY_CRL_CHECK_LEAF%2CVERIFY_X509_STRICT",
        ),
        # Celery ignores these.
        ({"broker_url": "redis://a", "broker_use_ssl": True}, "redis://a"),
        ({"broker_url": "redis://a", "broker_use_ssl": {}}, "redis://a"),
        (
            {"broker_url": "redis+socket:///r.sock", "broker_use_ssl": {"ssl_ca_certs": "ca"}},
            "unix:///r.sock",
        ),
        ({"broker_url": "redis://a", "redis_backend_use_ssl": {"a": "b"}}, "redis://a"),
    ],
)
def test_redis_is_the_apps_own_unless_set(conf: dict[str, Any], url: str) -> None:
    assert read(**conf).redis_url == url


@pytest.mark.parametrize(
    ("environ", "conf", "url"),
    [
        ({"CELERY_BROKER_URL": "redis://e"}, {}, "redis://e"),
        ({"CELERY_BROKER_URL": "redis://e"}, {"broker_url": "redis://a"}, "redis://e"),
        ({"CELERY_BROKER_URL": "amqp://e"}, {"broker_url": "redis://a"}, DEFAULT_REDIS_URL),
        ({"CELERY_RESULT_BACKEND": "redis://e/1"}, {"broker_url": "amqp://x"}, "redis://e/1"),
        ({"CELERY_BROKER_WRITE_URL": "redis://w"}, {}, "redis://w"),
        ({}, {"broker_write_url": "redis://w", "broker_read_url": "redis://r"}, "redis://w"),
        ({"CELERY_BROKER_URL": "redis://e"}, {"rts_redis_url": "redis://own"}, "redis://own"),
    ],
)
def test_redis_is_the_one_that_celery_takes_from_the_environment(
    environ: dict[str, str], conf: dict[str, Any], url: str
) -> None:
    assert read(environ, **conf).redis_url == url


def test_a_namespaced_configuration_is_understood() -> None:
    class Django:
        CELERY_RTS_MIN_SAMPLES = 7
        CELERY_BROKER_URL = "redis://d:1/1"
        RTS_OTHER = RTS_MIN_SLACK = 1j

    app = Celery(set_as_current=False)
    app.config_from_object(Django, namespace="CELERY")
    settings = Settings.from_conf(app.conf, environ={})
    assert (settings.min_samples, settings.redis_url) == (7, "redis://d:1/1")


def test_a_configuration_in_celerys_old_names_is_understood() -> None:
    class Old:
        BROKER_URL = "redis://d:1/1"
        RTS_MIN_SAMPLES = 7
        RTS_KEY = "the app's own"

    app = Celery(set_as_current=False)
    app.config_from_object(Old)
    settings = Settings.from_conf(app.conf, environ={})
    assert (settings.min_samples, settings.redis_url) == (7, "redis://d:1/1")


def test_what_is_set_in_code_overrides_a_configuration_in_the_other_spelling() -> None:
    upper = Celery(set_as_current=False)
    upper.config_from_object({"BROKER_URL": "redis://d:1/1", "RTS_MIN_SAMPLES": 7})
    upper.conf.rts_min_samples = 8
    lower = Celery(set_as_current=False)
    lower.config_from_object({"broker_url": "redis://d:1/1", "rts_min_samples": 7})
    lower.conf.RTS_MIN_SAMPLES = 8
    for app in (upper, lower):
        assert Settings.from_conf(app.conf, environ={}).min_samples == 8


def test_the_spool_folder_is_where_its_path_leads_by_way_of_links(tmp_path: Path) -> None:
    (tmp_path / "releases" / "7").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "releases" / "7")
    found = read(rts_spool_dir=f"{tmp_path}/current/../spool").spool_dir
    assert Path(found).resolve() == tmp_path / "releases" / "spool"


def test_types_may_be_members_of_an_enum() -> None:
    class Kind(str, Enum):
        RENDER = "render"

    types = read(rts_task_types={Kind.RENDER: 3.0}).task_types
    assert f"{types['render'].name}" == "render"
    assert json.dumps(list(types)[-1]) == '"render"'


def test_the_app_starts_without_any_writable_folder() -> None:
    # No byte can be written to a file, so no temporary folder is usable.
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from celery import Celery
import rts
rts.install(Celery())
"""
    printed(script)


@pytest.mark.parametrize(
    ("ttl", "window", "budget"), [(7200, 86400, 7200), (86400, 7200, 7200), (0, 7200, 7200)]
)
def test_the_error_budget_is_of_no_more_than_the_ledger_keeps(
    ttl: float, window: float, budget: float
) -> None:
    settings = read(rts_ledger_ttl=ttl, rts_slo_window=window)
    assert settings.budget_window_s == budget


def test_settings_survive_json() -> None:
    settings = read(
        rts_task_types={"video": {"tau": 30, "sla_multiplier": 1.8}},
        rts_priority_multipliers={9: 1.5},
        rts_slo={"video": 0.99, "*": 0.9},
        rts_routes={"video": ["gpu", "burst"]},
        rts_webhooks=[{"url": "https://hooks.example.org", "events": ["slo_burning"]}],
    )
    assert Settings.from_dict(json.loads(json.dumps(asdict(settings)))) == settings
