"""What is public, and that importing it is cheap and harmless."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import rts
import rts.testing
from tests.conftest import printed

PUBLIC = {
    "rts": {
        *("CommandError", "ConfigurationError", "Current", "RtsError", "StoreUnavailable"),
        *(
            "Prediction",
            "current",
            "install",
            "predict",
            "predict_new",
            "route",
            "signals",
            "uninstall",
        ),
    },
    "rts.testing": {
        *("MongoServer", "RedisServer", "ServerFailed", "ServerNotFound"),
        *("WorkerFailed", "WorkerProcess", "wait_until"),
    },
}


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_the_public_names(module: str) -> None:
    loaded = importlib.import_module(module)
    assert set(loaded.__all__) == PUBLIC[module]
    assert all(getattr(loaded, name).__doc__ for name in loaded.__all__)


def test_the_package_is_marked_as_typed() -> None:
    assert Path(rts.__file__).with_name("py.typed").is_file()


def modules() -> list[str]:
    # These do something when they are imported: that is what they are for.
    act = ("rts.auto", "rts.testing.plugin", "rts.testing.replay_app")
    return [m.name for m in pkgutil.walk_packages(rts.__path__, "rts.") if m.name not in act]


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_is_and_its_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__ or not Path(module.__file__ or "").read_text()
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("rts", ("celery", "pymongo", "psutil", "pynvml")),
        ("rts.companion.process", ("celery", "kombu")),
        ("rts.parts", ("pymongo", "bson")),
        ("rts.worker", ("pymongo", "bson")),
    ],
)
def test_importing_loads_no_more_than_it_must(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    assert printed(script) == "[]\n"
