"""Adds the tab to one Flower application: handlers, templates, clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from tornado.routing import URLSpec

from rts.flower.cache import AnswerCache
from rts.flower.handlers import (
    SETTING,
    Api,
    Page,
    Search,
    StaticFiles,
    Tab,
    TaskApi,
    TaskPage,
    TaskTimeline,
)
from rts.flower.pages import Pages
from rts.flower.source import Source
from rts.flower.templates import FOLDER, TabLoader
from rts.scheduling.queue_metrics import queue_readings
from rts.settings import Settings
from rts.views.metrics import MAX_AGE_S, RtsCollector

STATIC = str(Path(__file__).parent / "static")
#: Seconds that a scrape of Flower's ``/metrics``, and Flower with it, waits for answers.
#: If one takes longer, the last one is shown.
PATIENCE_S = 0.25
#: What was added to these metrics, which are those of this process.
_collectors: list[RtsCollector] = []
NAMES = ("types", "workers", "queues", "misses")


def add_tab(flower: Any) -> None:
    """Add the pages below ``/rts`` and ``/api/rts``, and the entry in the navigation, to a
    Flower application. Idempotent.

    Its own handlers and templates stay as they are; ours take precedence.

    Raises:
        ConfigurationError: a setting of the app is invalid.
    """
    if SETTING in flower.settings:
        return
    settings = Settings.from_conf(flower.capp.conf)
    if not settings.enabled:
        return
    prefix = (flower.options.url_prefix or "").strip("/")
    prefix = f"/{prefix}" if prefix else ""
    flower.settings[SETTING] = Tab(
        Pages(Source(flower.capp, settings), AnswerCache()),
        {"static_path": STATIC, "static_url_prefix": f"{prefix}/rts/static/"},
        themed=Path(flower.settings["static_path"], "js", "theme.js").exists(),
    )
    flower.add_handlers(".*", _handlers(prefix))
    # Tornado caches loaders by this path, for all applications of a process.
    flower.settings["template_loader"] = TabLoader(flower.settings["template_path"])
    flower.settings["template_path"] = str(FOLDER)
    if not _collectors:  # two would export everything twice
        readings = queue_readings(flower.capp, settings)
        collector = RtsCollector(settings, readings, patience_s=PATIENCE_S, max_age_s=MAX_AGE_S)
        REGISTRY.register(collector)
        _collectors.append(collector)


def _handlers(prefix: str) -> list[URLSpec]:
    def at(pattern: str, handler: type, name: str | None = None, **given: Any) -> URLSpec:
        return URLSpec(prefix + pattern, handler, given, name)

    return [
        at(r"/rts", Page, "rts", page="overview"),
        at(r"/rts/", Page, page="overview"),
        *(at(f"/rts/{name}", Page, f"rts-{name}", page=name) for name in NAMES),
        at(r"/rts/task", Search, "rts-search"),
        at(r"/rts/task/(.+)", TaskTimeline, "rts-task"),
        at(r"/task/(.+)", TaskPage),
        at(r"/rts/static/(.*)", StaticFiles, path=STATIC),
        *(at(f"/api/rts/{name}", Api, page=name) for name in ("overview", *NAMES)),
        at(r"/api/rts/task/(.+)", TaskApi),
    ]
