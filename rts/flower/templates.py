"""Templates: ours below ``rts/``, and Flower's own with what we add to two of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from tornado.template import Loader, Template

from rts import health

FOLDER = Path(__file__).parent / "templates"
OURS = "rts/"

_ENTRY = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'rts' %} active{% end %}OLD"
            href="{{ reverse_url('rts') }}"
            {% if active_tab == 'rts' %}aria-current="page"{% end %}>RTS</a>
        </li>"""
_FACTS = """
{% module Template("rts/task_facts.html", rts=getattr(handler, "rts_facts", None)) %}
"""
#: The navigation entry for the broker: ours follows it.
_BROKER = re.compile(r"<li[^>]*>\s*<a[^>]*reverse_url\('broker'\).*?</li>", re.DOTALL)


def navbar(text: str) -> str | None:
    """Return Flower's navigation with our entry; ``None`` if it has none for the broker."""
    broker = _BROKER.search(text)
    if broker is None:
        return None
    # Flower 2.0 has one colour for all entries, and an icon that has no name.
    old = " text-dark" if "text-dark" in broker[0] else ""
    text = text[: broker.end()] + _ENTRY.replace("OLD", old) + text[broker.end() :]
    if old:
        text = text.replace('role="img">', 'role="img" aria-label="Source code of Flower">')
    return text


def task_page(text: str) -> str | None:
    """Return Flower's task page with our part; ``None`` if it does not end in its content."""
    head, end, tail = text.rpartition("{% end %}")
    return head + _FACTS + end if end and not tail.strip() else None


#: The edits of Flower's templates, by name. They return ``None`` for one that they do not know.
EDITS: Mapping[str, Callable[[str], str | None]] = {
    "navbar.html": navbar,
    "task.html": task_page,
}


class TabLoader(Loader):
    """Loads our templates and Flower's, which lie in *root*."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        """Return the name: all names here are from the root."""
        return name

    def _create_template(self, name: str) -> Template:
        if name.startswith(OURS):
            path = FOLDER / name.removeprefix(OURS)
        else:
            path = Path(self.root) / name
        text = path.read_text(encoding="utf-8")
        if name in EDITS:
            edited = EDITS[name](text)
            if edited is None:
                health.warn_once(
                    f"flower:{name}",
                    "rts: %s of this Flower is not as expected: our part of it is missing. The "
                    "pages below /rts work",
                    name,
                )
            text = edited or text
        return Template(text, name=name, loader=self)
