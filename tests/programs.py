"""Programs that some tests need and that no wheel brings: browsers, brokers, Prometheus."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def needed(name: str, *others: str, path: str | None = None) -> str:
    """Return the path of a program, or of one of its *others* names.

    Where it is missing the test is skipped; where it is among RTS_TEST_REQUIRED
    (names with commas between them), as ``.ci/run`` says of what it has installed, it
    fails.
    """
    for candidate in (name, *others):
        found = shutil.which(candidate, path=path)
        if found is not None:
            return found
    message = f"no {name} on PATH"
    if name in os.environ.get("RTS_TEST_REQUIRED", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


def certificate_in(folder: Path) -> tuple[str, str]:
    """Make a certificate for localhost; return its path and that of its key."""
    certificate, key = str(folder / "certificate"), str(folder / "key")
    command = [needed("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
