"""Tornado handlers of the tab. All of them are read-only.

Pages follow the rules of Flower's pages (anonymous where Flower is, else its authentication),
``/api/rts`` those of Flower's API, which is closed without authentication unless
``FLOWER_UNAUTHENTICATED_API`` opens it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from flower.views.tasks import TaskView
from tornado import web

from rts.flower import reasons, words
from rts.flower.filters import CHOICES, BadFilter, Filters
from rts.flower.page_parts import Document
from rts.flower.pages import Pages
from rts.flower.timeline import timeline
from rts.views.json_values import plain, utc
from rts.views.tally import UNKNOWN

#: Only our own files and Flower's may run or load; nothing inline.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'self'"
)
#: The setting of a Flower application that holds its tab.
SETTING = "rts_tab"


class StaticFiles(web.StaticFileHandler):
    """Our scripts, styles and the chart library: public, as Flower's own are."""

    def set_extra_headers(self, path: str) -> None:
        """Forbid content sniffing."""
        self.set_header("X-Content-Type-Options", "nosniff")


@dataclass(frozen=True)
class Tab:
    """What the handlers share."""

    pages: Pages
    #: ``static_path`` and ``static_url_prefix`` of our files, as in tornado's settings.
    static: Mapping[str, str]
    #: Whether Flower has a choice of themes (from 2.1 on), which ours then follow.
    themed: bool

    def asset(self, name: str) -> str:
        """Return the address of one of our files; it changes when the file does."""
        return StaticFiles.make_static_url(dict(self.static), name)


class BasePage(BaseHandler):  # type: ignore[misc]  # Flower has no type information
    """One of our pages."""

    def initialize(self, page: str = "") -> None:
        """Take the arguments of the URL spec."""
        self._tab: Tab = self.settings[SETTING]
        self._page = page

    def set_default_headers(self) -> None:
        """Omit Flower's permissive cross-origin header: these pages are for browsers."""
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-cache")

    def get_template_namespace(self) -> dict[str, Any]:
        """Return the names that are known in every template."""
        return {
            **super().get_template_namespace(),
            "words": words,
            "reasons": reasons,
            "choices": CHOICES,
            "nobody": UNKNOWN,
            "asset": self._tab.asset,
            "as_json": as_json,
            "utc": utc,
            "themed": self._tab.themed,
        }

    def show(self, template: str, document: Document, filters: Filters, **more: Any) -> None:
        """Render one of our templates."""
        self.render(f"rts/{template}.html", doc=document, filters=filters, **more)

    def filters(self) -> tuple[Filters, str | None]:
        """Return the filters in the address, and what is wrong with them."""
        try:
            return Filters.of(lambda name: self.get_query_argument(name, None)), None
        except BadFilter as exc:
            self.set_status(400)
            return Filters(), f"{exc}; showing the last 24 hours."


class Page(BasePage):
    """Overview, types, workers, queues, misses."""

    @web.authenticated
    async def get(self) -> None:
        """Show the page."""
        filters, wrong = self.filters()
        document = await self._tab.pages.of(self._page, filters)
        if wrong:
            document["trouble"] = [wrong, *document["trouble"]]
        self.show(self._page, document, filters)


class Search(BasePage):
    """``/rts/task?id=…``: redirects to the page of that task."""

    @web.authenticated
    def get(self) -> None:
        """Redirect."""
        wanted = self.get_query_argument("id", "").strip()
        self.redirect(
            self.reverse_url("rts-task", wanted) if wanted else self.reverse_url("rts-misses")
        )


class TaskTimeline(BasePage):
    """``/rts/task/ID``: one task on its timeline."""

    @web.authenticated
    async def get(self, task_id: str) -> None:
        """Show the page, or that nothing is known about the task."""
        document = await self._tab.pages.task(task_id)
        if _is_unknown(document):
            self.set_status(404)
        drawn = timeline(document["task"], document["runs"])
        self.show("task", document, Filters(), drawn=drawn)


class TaskPage(TaskView):  # type: ignore[misc]  # Flower has no type information
    """Flower's page of a task, with type, tau, deadline and verdict.

    Flower knows tasks from events only. One that only the ledger knows, or may know, is shown
    on our page.
    """

    #: What the ledger knows of the task, for our part of the page.
    rts_facts: Document | None = None

    @web.authenticated
    async def get(self, task_id: str) -> None:
        """Show the page."""
        tab: Tab = self.settings[SETTING]
        self.rts_facts = await tab.pages.task(task_id)
        known_to_flower = self.application.events.state.tasks.get(task_id) is not None
        if not known_to_flower and not _is_unknown(self.rts_facts):
            self.redirect(self.reverse_url("rts-task", task_id))
            return
        super().get(task_id)


class Api(BaseApiHandler):  # type: ignore[misc]  # Flower has no type information
    """``/api/rts/PAGE``: what the page shows, as JSON."""

    def initialize(self, page: str = "") -> None:
        """Take the arguments of the URL spec."""
        self._tab: Tab = self.settings[SETTING]
        self._page = page

    @web.authenticated
    async def get(self) -> None:
        """Answer with the document."""
        try:
            filters = Filters.of(lambda name: self.get_query_argument(name, None))
        except BadFilter as exc:
            raise web.HTTPError(400, str(exc)) from exc
        self.answer(await self._tab.pages.of(self._page, filters))

    def set_default_headers(self) -> None:
        """Forbid content sniffing, as Flower does from 2.2 on."""
        super().set_default_headers()
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Send the message, which may quote the address, as text: Flower < 2.2 sends HTML."""
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        super().write_error(status_code, **kwargs)

    def answer(self, document: Document) -> None:
        """Write the document."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(plain(document), allow_nan=False))


class TaskApi(Api):
    """``/api/rts/task/ID``: one task."""

    @web.authenticated
    async def get(self, task_id: str) -> None:
        """Answer with the document; 404 if nothing is known about the task."""
        document = await self._tab.pages.task(task_id)
        if _is_unknown(document):
            raise web.HTTPError(404, "Unknown task")
        self.answer(document)


def _is_unknown(document: Document) -> bool:
    """Return whether the task of *document* is certainly unknown: a ledger that is unavailable
    or slow may know it.
    """
    return not (document["known"] or document["trouble"] or document["counting"])


def as_json(value: Any) -> str:
    """Return JSON that is safe in an HTML page: it has no characters special to HTML.

    >>> as_json({"a": "</script>"})
    '{"a": "\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(plain(value), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
