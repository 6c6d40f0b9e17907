"""The documentation names nothing that is not there, and leaves nothing of these out."""

from __future__ import annotations

import ast
import pkgutil
import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

import rts
from rts import keys
from rts.cli import COMMANDS
from rts.cli import rts as group
from rts.headers import PUBLISHED_HEADER, write_plan
from rts.keys import Keys
from rts.ledger.documents import documents
from rts.records import Execution, OutboxEntry, Plan
from rts.settings import CHECKS, Settings
from rts.testing import plugin
from rts.views import families
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md")])
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}

#: ``rts report`` in code, or after ``celery -A proj``; not the package, as in ``import rts``,
#: nor a line of the log.
COMMAND = re.compile(r"(?:celery -A [\w.]+ |`)rts (?!is off)([a-z]+)([^\n`|]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(text: str) -> set[str]:
    """Return the fragments that the headings of a page can be reached by."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def names_after(pattern: str) -> set[tuple[str, str]]:
    """Return (page, name) of all that *pattern* finds."""
    return {(page, name) for page, text in TEXTS.items() for name in re.findall(pattern, text)}


def metric_names() -> set[str]:
    """Return the names that the code of the families holds, and those it puts together."""
    tree = ast.parse(Path(families.__file__).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    found = {text for text in texts if isinstance(text, str) and re.fullmatch(r"rts\w+", text)}
    found |= {f"rts_{kind}_seconds" for kind in families.HISTOGRAMS} | {"rts_info"}
    return found | {f"{name}_total" for name in found}


def test_how_it_works_says_what_each_part_of_the_code_is_for() -> None:
    parts = {f"`{module.name}`" for module in pkgutil.iter_modules(rts.__path__, "rts.")}
    assert {part for part in parts if part not in TEXTS["docs/how-it-works.md"]} == set()


def test_the_way_of_a_task_is_through_code_that_exists() -> None:
    way = TEXTS["docs/how-it-works.md"].partition("## The code")[2].partition("by subject")[0]
    code = "\n".join(path.read_text("utf-8") for path in ROOT.glob("rts/**/*.py"))
    for name in re.findall(r"`([^`]+)`", way):
        if name[0].isupper():
            owner, _, method = name.partition(".")
            assert f"class {owner}" in code, name
            assert f"def {method}" in code, name
        else:
            path = ROOT / "rts" / (name if "/" in name else name.replace(".", "/") + ".py")
            assert path.exists(), name


def test_every_module_that_the_code_refers_to_is_there() -> None:
    sources = [path.read_text(encoding="utf-8") for path in ROOT.glob("rts/**/*.py")]
    named = {name for text in sources for name in re.findall(r":mod:`~?(rts[\w.]*)`", text)}
    assert {name for name in named if find_spec(name) is None} == set()


@pytest.mark.parametrize("page", TEXTS)
def test_relative_links_lead_somewhere(page: str) -> None:
    for path, anchor in LINK.findall(TEXTS[page]):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} leads to {path}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path}#{anchor}"


def test_every_picture_is_shown() -> None:
    shown = {Path(path).name for text in TEXTS.values() for path, _ in LINK.findall(text)}
    assert {picture.name for picture in (DOCS / "images").iterdir()} <= shown


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {path for path, _ in LINK.findall(TEXTS["README.md"])}
    assert {page for page in TEXTS if page != "README.md"} <= linked


def test_commands_and_their_options_exist() -> None:
    used = [(page, *match) for page, text in TEXTS.items() for match in COMMAND.findall(text)]
    assert {name for _, name, _ in used} == set(COMMANDS)
    for page, name, rest in used:
        command = group.get_command(click.Context(group), name)
        known = {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, click.Group):
            for part in command.commands.values():
                known |= {option for parameter in part.params for option in parameter.opts}
        wrong = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - known
        assert not wrong, f"{page}: rts {name} has no {wrong}"


def test_examples_in_python_can_be_read() -> None:
    for page, text in TEXTS.items():
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            ast.parse(block, page)


def test_every_command_has_its_section() -> None:
    sections = re.findall(r"^## (.+)$", TEXTS["docs/cli.md"], re.MULTILINE)
    assert sorted(", ".join(sections).split(", ")) == sorted(COMMANDS)


def test_names_of_settings_headers_and_metrics_exist() -> None:
    headers: dict[str, object] = {}
    write_plan(headers, Plan("mixed", "inferred", 1.0, 9.0, 1.0, 2.0, "received"))
    known = {*CHECKS, *headers, PUBLISHED_HEADER, *dir(plugin), *metric_names()}
    plain = names_after(r"\brts_[a-z_]*[a-z]\b")
    assert not {(page, name) for page, name in plain if name not in known}
    django = names_after(r"\bCELERY_(RTS_[A-Z_]+)")
    assert not {(page, name) for page, name in django if name.lower() not in CHECKS}


def test_the_table_of_settings_is_complete() -> None:
    rows = re.findall(r"^\| `(rts_\w+)` \|", TEXTS["docs/settings.md"], re.MULTILINE)
    assert sorted(rows) == sorted(CHECKS)


def test_the_table_of_settings_has_the_defaults() -> None:
    rows = re.findall(r"^\| `rts_(\w+)` \| ([^|]+) \|", TEXTS["docs/settings.md"], re.MULTILINE)
    told = {n: value.removesuffix(" s").replace(",", "").strip("`") for n, value in rows}
    words = {"30 days in": 30 * 86400.0, "1 GiB": 1 << 30}
    plain = {**asdict(Settings()), "task_types": {}, "webhooks": []}
    for name in set(plain) - {"redis_url", "spool_dir", "mongo_url", "key_prefix"}:
        value = words.get(told[name])
        assert (ast.literal_eval(told[name]) if value is None else value) == plain[name], name


def test_the_example_configuration_has_every_setting_with_its_default() -> None:
    text = (ROOT / "celeryconfig.py").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^#? ?rts_(\w+) = (.+)$", text, re.MULTILINE))
    assert {f"rts_{name}" for name in shown} == set(CHECKS)
    plain = {**asdict(Settings()), "task_types": {}, "webhooks": [], "redis_url": None}
    for name in set(plain) - {"spool_dir", "mongo_url"}:
        assert eval(shown[name]) == plain[name], name


def test_the_table_of_metrics_is_complete() -> None:
    rows = re.findall(r"^\| (`rts_[^|]+) \|", TEXTS["docs/monitoring.md"], re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"rts_\w+", row)}
    tree = ast.parse(Path(families.__file__).read_text(encoding="utf-8"))
    made = {
        call.args[0].value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id.endswith("Family")
        and isinstance(call.args[0], ast.Constant)
    }
    assert made - {"rts"} <= told | {name.removesuffix("_total") for name in told}
    assert told <= metric_names()


def test_every_counter_is_told_of() -> None:
    counted: set[str] = set()
    for path in (ROOT / "rts").glob("**/*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in (
                "health.count",
                "count",
            ):
                match call.args[:1]:
                    case [ast.Constant(value=str(name))]:
                        counted.add(name)
                    case [ast.JoinedStr(values=[ast.Constant(value=str(start)), *_])]:
                        counted.add(f"{start}…")
    for path in (ROOT / "rts").glob("**/*.lua"):
        text = path.read_text(encoding="utf-8")
        counted |= set(re.findall(r"'HINCRBY', (?:KEYS\[\d+\]|counters), '(\w+)'", text))
    assert {
        "hook_errors",
        "breaker_opened",
        "refused_…",
        "runs_lost",
        "metrics_refused",
    } <= counted
    table = TEXTS["docs/operations.md"].partition("## Counters")[2].partition("\n## ")[0]
    told = set(re.findall(r"`(\w+…?)`", table))
    families = tuple(name.removesuffix("…") for name in told if name.endswith("…"))
    assert not {name for name in counted - told if not name.startswith(families)}


def test_every_line_of_the_log_is_told_of() -> None:
    logged: set[str] = set()
    for path in (ROOT / "rts").glob("**/*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                _, _, function = ast.unparse(call.func).rpartition(".")
                texts = call.args[1:2] if function == "warn_once" else call.args[:1]
                match function, texts:
                    case "warn_once" | "warning" | "error", [ast.Constant(value=str(text))]:
                        logged.add(text)
    assert "rts: Redis at %s answers again" in logged
    part = TEXTS["docs/operations.md"].partition("\n## Logs\n")[2].partition("\n## ")[0]
    firsts = "".join(re.findall(r"^\| ([^|]+) \|", part, re.MULTILINE))
    told = [re.escape(line).replace("…", "(%s|…)") for line in re.findall(r"`([^`]+)`", firsts)]
    begins = re.compile(rf"(rts: )?({'|'.join(told)})")
    assert {text for text in logged if not begins.match(text)} == set()


def test_the_page_of_the_ledger_names_every_field() -> None:
    run = Execution(
        *("r", "t", "n", "mixed", "inferred", 1.0, 2.0, 0.0, 2.0, "published", "celery", 0),
        *(None, None, "w", "w/1", 1),
        priority=1,
    )
    texts = TEXTS["docs/ledger.md"].partition("\n## tasks")[2].split("\n## assignments")
    for document, text in zip(documents(OutboxEntry("0-1", run)), texts, strict=True):
        assert document is not None
        fields = {field for field in document if field == "_id" or field[0] != "_"}
        assert fields <= set(re.findall(r"`(\w+)`", text))


def test_every_public_name_is_told_of() -> None:
    table = TEXTS["docs/tasks.md"].partition("## The names in `rts`")[2]
    assert {name for name in rts.__all__ if f"`{name}" not in table} == set()


def test_how_it_works_names_every_package_key_and_collection() -> None:
    text = TEXTS["docs/how-it-works.md"]
    packages = {
        f"rts.{module.name}" for module in pkgutil.iter_modules(rts.__path__) if module.ispkg
    }
    missing = {name for name in packages - {"rts.lua"} if f"`{name}`" not in text}
    assert not missing
    private = Keys("rts:")
    in_redis = [
        key
        for name, value in vars(private).items()
        if name != "prefix"
        for key in ([value] if isinstance(value, str) else value)
    ]
    in_redis.append(private.webhook(""))
    assert not [key for key in in_redis if f"`{key}" not in text]
    collections = (keys.TASKS, keys.ASSIGNMENTS, keys.TAU_SNAPSHOT, keys.REFUSED, keys.ROLLUPS)
    assert not {name for name in collections if f"`{name}`" not in text}
