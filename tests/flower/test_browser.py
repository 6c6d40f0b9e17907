"""The pages in a real browser: no error in its console, readable, live, usable by keyboard.

They need a Chromium on PATH (``apt-get install chromium``).
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from tornado.web import create_signed_value

from rts.flower import tab
from rts.flower.words import duration
from rts.testing import RedisServer, wait_until
from tests.conftest import ROOT, MakeStage
from tests.flower.conftest import EVIL, Flower, some_runs
from tests.programs import needed
from tests.records import ended

Make, Look = Callable[..., Flower], Callable[..., "Seen"]

PAGES = (
    "/rts",
    "/rts/types?since=1h&type=mixed",
    "/rts/workers",
    "/rts/queues",
    "/rts/misses",
    "/rts/task/task-1040",
    "/rts/task/nobody",
)

#: A browser of ours needs no sandbox, and talks to nobody but us.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


#: Returns the charts that show nothing but axes and the objective.
EMPTY_CHARTS = """() => [...document.querySelectorAll(".rts-chart")].filter(chart => {
  const canvas = chart.querySelector("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint32Array(data.buffer);
  return ![...chart.querySelectorAll(".rts-legend li:not(.rts-kind-dash)")].some(item => {
    const colour = getComputedStyle(item).getPropertyValue("--rts-mark").trim();
    const [r, g, b] = [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16));
    return pixels.includes((255 << 24 | b << 16 | g << 8 | r) >>> 0);
  });
}).map(chart => chart.id)"""

#: Returns the charts without room for half an instant at their right end.
CUT_CHARTS = """() => [...document.querySelectorAll(".rts-chart")].filter(chart => {
  const context = chart.querySelector("canvas").getContext("2d");
  context.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
  const half = context.measureText("00:00:00").width / devicePixelRatio / 2;
  const drawn = chart.querySelector(".u-over").getBoundingClientRect();
  return chart.querySelector(".u-wrap").getBoundingClientRect().right - drawn.right < half;
}).map(chart => chart.id)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    path = needed("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as playwright:
        env = {**os.environ, "TMPDIR": "/tmp"}  # others may be too long for its socket
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS, env=env)
        yield browser
        browser.close()


class Seen:
    """A page of a Flower that notes what its console says."""

    def __init__(self, context: Any, base: str) -> None:
        self.page = context.new_page()
        self.page.clock.install()
        self.base = base
        self.errors: list[str] = []
        self.page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and self.errors.append(f"{self.page.url}: {message.text}")
            ),
        )
        self.page.on("pageerror", lambda error: self.errors.append(f"{self.page.url}: {error}"))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def open(self, path: str) -> Any:
        self.page.goto(self.base + path)
        self.page.wait_for_function(
            "[...document.querySelectorAll('.rts-plot')].every(p => p.querySelector('canvas'))"
        )
        return self.page

    def later(self) -> None:
        """Let a minute pass in the page: it refreshes."""
        self.page.clock.fast_forward(60_000)

    def until(self, condition: Callable[[], bool]) -> None:
        """Have the page refresh until *condition* holds."""

        def holds() -> bool:
            self.later()
            return condition()

        wait_until(holds, 60)

    def says(self, text: str) -> bool:
        """Return whether *text* is in the status line."""
        return text in self.page.locator("#rts-status").inner_text()

    def complaints(self) -> list[str]:
        """Return what axe-core finds worse than minor."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{self.page.url}: {v['id']}: {v['help']}: {[n['html'] for n in v['nodes']][:3]}"
            for v in found
            if v["impact"] != "minor"
        ]


@pytest.fixture
def look(browser: Any) -> Iterator[Look]:
    """Look at a Flower, each time as another user; all of them leave with the test."""
    with ExitStack() as stack:

        def made(flower: Flower, **options: Any) -> Seen:
            context = browser.new_context(**options)
            stack.callback(context.close)
            return Seen(context, flower.base)

        yield made


def test_the_picture_of_the_demo_keeps_its_columns(browser: Any) -> None:
    page = browser.new_page()
    try:
        page.goto((ROOT / "docs" / "images" / "demo.svg").as_uri())
        squeezed = page.evaluate(
            """[...document.querySelectorAll("text")]
            .filter(text => text.getNumberOfChars() !== text.textContent.length)
            .map(text => text.textContent)"""
        )
    finally:
        page.close()
    assert squeezed == []


def test_every_page_renders_and_can_be_read_by_all(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(*some_runs())
    stage = make_stage()
    flower = make_flower(stage, prefix="my/flower", basic_auth="me:secret")
    complaints = []
    for scheme in ("light", "dark"):
        known = {"username": "me", "password": "secret"}
        seen = look(flower, color_scheme=scheme, http_credentials=known)
        for path in PAGES:
            page = seen.open(path)
            assert page.locator("h1").count() == 1, path
            assert page.evaluate("document.documentElement.dataset.bsTheme") == scheme
            for summary in page.locator("summary").all():
                summary.click()
            complaints += seen.complaints()
        # That a task is not known is an answer with status 404, which the console tells.
        errors = [error for error in seen.errors if "nobody" not in error]
        assert errors == []
    assert complaints == []


def test_the_reason_stands_at_the_top_and_charts_are_drawn(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(*some_runs())
    flower = make_flower(make_stage())
    seen = look(flower)
    page = seen.page
    page.goto(flower.base + "/workers")
    page.get_by_role("link", name="RTS", exact=True).click()
    page.wait_for_url("**/rts")
    page.wait_for_selector(".rts-plot canvas")
    headline = page.locator("h1").inner_text()
    assert "meets 0\u00a0% of its deadlines" in headline
    row = page.locator("tr", has=page.locator("th", has_text="memory-heavy"))
    assert "waits too long" in row.inner_text()
    assert page.locator(".rts-plot canvas").count() == 2
    assert page.evaluate(CUT_CHARTS) == []
    page.locator("tr th a", has_text="cpu-heavy").click()
    page.wait_for_url("**/rts/types?*type=cpu-heavy*")
    assert page.locator("h2", has_text="cpu-heavy").count() == 1
    assert seen.errors == []


def test_charts_format_durations_as_the_tables_do(browser: Any) -> None:
    script = (Path(tab.__file__).parent / "static" / "rts.js").read_text(encoding="utf-8")
    function = "  function duration(" + script.partition("function duration(")[2]
    function = function.partition("\n  }\n")[0] + "\n  }"
    page = browser.new_page()
    short = (0.0, 0.0042, 0.45, 4.213, 99.9, 100.0, 400.0, 3599.6, 12000.0, -2.5, -100.0)
    for s in (*short, 86369.0, 86399.0, 90000.0, -190000.0, 864000.0):
        shown = page.evaluate(f"(() => {{ {function} return duration({s}); }})()")
        assert shown == re.sub(r"\s00\s(s|min)$", "", duration(s))
    page.close()


def test_pages_are_live_until_they_are_paused(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    flower = make_flower(make_stage())
    seen = look(flower)
    page = seen.open("/rts/types?since=24h")
    assert page.locator(".rts-plot").count() == 4
    assert page.evaluate(EMPTY_CHARTS) == []  # a single run is seen in each
    page = seen.open("/rts/types?since=1h")
    tasks = page.locator("#rts-by-type + * tbody td").first
    assert tasks.inner_text() == "1"
    summary = page.locator("#chart-runtimes summary")
    summary.click()
    write(*(ended(n, 5) for n in range(1, 5)))
    seen.until(lambda: tasks.inner_text() == "5")
    assert page.locator("#chart-runtimes details").get_attribute("open") is not None
    page.get_by_role("button", name="Pause").click()
    assert page.locator("#rts-status").inner_text() == "Paused"
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    seen.later()
    assert asked == []
    flower.stop()
    page.get_by_role("button", name="Pause").click()
    seen.until(lambda: seen.says("does not answer"))


def test_a_page_of_a_flower_that_hangs_says_so(
    look: Look, make_stage: MakeStage, make_flower: Make
) -> None:
    flower = make_flower(make_stage())
    seen = look(flower)
    seen.open("/rts/queues")
    flower.process.send(signal.SIGSTOP)
    try:
        seen.until(lambda: seen.says("does not answer"))
    finally:
        flower.process.send(signal.SIGCONT)
    seen.until(lambda: seen.says("Live again"))


def test_who_is_logged_out_is_told(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    flower = make_flower(
        make_stage(),
        "--auth=me@example.com",
        "--auth-provider=flower.views.auth.GithubLoginHandler",
        "--oauth2-key=key",
        "--oauth2-redirect-uri=http://127.0.0.1/login",
        "--cookie-secret=secret",
    )
    seen = look(flower)
    user = create_signed_value("secret", "user", "me@example.com").decode()
    seen.page.context.add_cookies([{"name": "user", "value": user, "url": flower.base}])
    assert seen.open("/rts").locator("#rts-content").count() == 1
    seen.page.context.clear_cookies()
    seen.until(lambda: seen.says("logged out"))


def test_marks_of_a_timeline_do_not_cover_each_other(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    now = time.time()
    write(ended(0, 5, arrival=now - 4000, deadline=now - 3990))
    flower = make_flower(make_stage())
    page = look(flower).open("/rts/task/task-0")
    arrival, deadline = (
        page.locator(".rts-timeline text", has_text=label).bounding_box()
        for label in ("arrival", "deadline")
    )
    assert arrival["y"] + arrival["height"] <= deadline["y"]


def test_open_details_stay_open_when_trouble_appears(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    with RedisServer() as own:
        flower = make_flower(make_stage(rts_redis_url=own.url))
        seen = look(flower)
        page = seen.open("/rts/types?since=1h")
        page.locator("#chart-runtimes summary").click()
        trouble = page.locator(".rts-trouble")
        for change, shown in ((own.kill, 1), (own.start, 0)):
            change()
            seen.until(lambda shown=shown: trouble.count() == shown)
            opened = page.locator("#chart-runtimes details").get_attribute("open")
            assert opened is not None


def test_hostile_names_never_run(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any, mongo: Any
) -> None:
    changes = {"name": EVIL, "worker": EVIL, "queue": EVIL}
    write(
        *(ended(n, 5 + n, task_id=f"{EVIL}{n}", deadline=1.0, **changes) for n in range(5)),
        *some_runs(),
    )
    mongo.tasks.update_many({"name": EVIL}, {"$set": {"task_type": EVIL}})
    mongo.assignments.update_many({"name": EVIL}, {"$set": {"task_type": EVIL}})
    flower = make_flower(make_stage())
    seen = look(flower)
    evil = quote(EVIL, safe="")
    paths = [*PAGES[:5], f"/rts/task/{evil}0", f"/rts/types?type={evil}&name={evil}"]
    shown = 0
    for path in paths:
        page = seen.open(path)
        page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        shown += page.get_by_text("alert('rts')").count()
        assert page.locator("main img").count() == 0
        assert page.locator("main script:not([type='application/json'])").count() == 0
    assert shown > 10
    assert [error for error in seen.errors if "404" not in error] == []


def test_long_names_make_no_page_wider_than_a_phone(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    long = {"task_type": "y" * 160, "name": "proj." + "x" * 100, "worker": "w" * 100}
    write(*(ended(n, 5 + n, task_id=f"{n}" * 40, deadline=1.0, **long) for n in range(5)))
    flower = make_flower(make_stage())
    seen = look(flower, viewport={"width": 320, "height": 640})
    paths = [*PAGES[:5], f"/rts/task/{'1' * 40}", f"/rts/types?type={long['task_type']}"]
    for path in [*paths, f"/rts/types?name={long['name']}"]:
        page = seen.open(path)
        assert page.evaluate("document.documentElement.scrollWidth") == 320, path
    page = seen.open("/rts/misses")
    page.set_viewport_size({"width": 1440, "height": 900})
    assert page.evaluate(
        "(e => e.scrollWidth == e.clientWidth)(document.querySelector('.rts-scroll'))"
    )


def test_legends_keep_their_colours_where_the_system_forces_its_own(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(*some_runs())
    flower = make_flower(make_stage())
    page = look(flower, forced_colors="active").open("/rts")
    colours = page.evaluate(
        "[...document.querySelectorAll('#chart-verdicts .rts-legend li')]"
        ".map(item => getComputedStyle(item, '::before').backgroundColor)"
    )
    assert len(set(colours)) == 2


def test_keyboard_theme_and_search(
    look: Look, make_stage: MakeStage, make_flower: Make, write: Any
) -> None:
    write(ended(0, 5))
    flower = make_flower(make_stage(), prefix="p")
    seen = look(flower, color_scheme="light")
    page = seen.open("/rts")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main-content"
    own = page.locator("#rts-theme")
    if own.count():  # Flower before 2.1 has no themes
        own.click()
    else:
        page.locator("#theme-toggle").click()
        page.locator("[data-bs-theme-value=dark]").click()
    for path in ("/rts", "/rts/queues"):
        seen.open(path)
        assert page.evaluate("document.documentElement.dataset.bsTheme") == "dark"
    page.get_by_label("Task id").fill("task-0")
    page.keyboard.press("Enter")
    page.wait_for_url("**/p/rts/task/task-0")
    assert "met, 2.00\u00a0s early" in page.locator("h1").inner_text()
    assert seen.errors == []
