"""What rts requires leaves an app the versions that it has."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = (Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")


def requirements() -> list[str]:
    """Return what is installed with rts, without extras."""
    (listed,) = re.findall(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.M | re.S)
    return re.findall(r'^ +"([^"]+)"', listed, re.M)


def test_only_the_next_celery_is_left_out() -> None:
    # pip would refuse rts beside pretix, which has redis-py 7.4 with kombu 5.6.
    narrow = [found for found in requirements() if re.search(r"<|==|~=|\[", found)]
    assert narrow == ["celery>=5.5,<6"]


def test_what_kombus_redis_transport_imports_comes_along() -> None:
    assert {"redis", "packaging"} <= {
        re.split(r"\W", found, maxsplit=1)[0] for found in requirements()
    }
