"""The Compose file: its form, and that its commands run, without Docker."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rts.testing import RedisServer, wait_until
from rts.testing.processes import OwnedProcess
from tests.conftest import ROOT
from tests.programs import needed
from tests.rabbitmq import free_port

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OWN = ("worker", "beat", "flower", "producer", "exporter")
DOCKERFILE = (ROOT / "Dockerfile").read_text()

#: A full version, and the base of the image where that is named.
PINNED = re.compile(r"[a-z][a-z0-9/._-]*:v?\d+\.\d+\.\d+(-[a-z][a-z0-9-]*)?")
#: What people open in a browser, and where on their own machine.
PUBLISHED = {"flower": 5555, "prometheus": 9090, "grafana": 3000}


def size(text: str) -> int:
    """Return a size such as 512m or 1g in bytes."""
    number, unit = re.fullmatch(r"(\d+)([kmg])b?", text, re.IGNORECASE).groups()
    return int(number) << {"k": 10, "m": 20, "g": 30}[unit.lower()]


# --- form ---------------------------------------------------------------------------


def commands() -> list[list[str]]:
    """Return the Compose programs of this machine: the classic one and the plugin."""
    found = []
    if classic := shutil.which("docker-compose"):
        found.append([classic])
    if docker := shutil.which("docker"):
        probe = subprocess.run(
            [docker, "compose", "version"], capture_output=True, timeout=30, check=False
        )
        if probe.returncode == 0:
            found.append([docker, "compose"])
    return found


def test_compose_accepts_the_file() -> None:
    programs = commands()
    if not programs:
        needed("docker-compose")
    for program in programs:
        finished = subprocess.run(
            [*program, "-f", str(ROOT / "docker-compose.yml"), "config"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        resolved = yaml.safe_load(finished.stdout)
        assert resolved["services"].keys() == SERVICES.keys()


def test_there_are_the_servers_and_our_own_services() -> None:
    assert SERVICES.keys() == {"redis", "mongo", "prometheus", "grafana", *OWN}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_checked_limited_and_not_root(name: str) -> None:
    service = SERVICES[name]
    check = service["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= check.keys()
    assert size(service["mem_limit"]) <= 1 << 30
    assert 0 < service["cpus"] <= 2
    user, group = service["user"].split(":")
    assert int(user) > 0
    assert int(group) > 0
    assert service["restart"] == "unless-stopped"
    assert PINNED.fullmatch(service["image"])
    assert "inside" in service["networks"]


@pytest.mark.parametrize("name", OWN)
def test_our_own_services_wait_for_the_servers(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {
        server: {"condition": "service_healthy"} for server in ("redis", "mongo")
    }
    assert SERVICES[name]["tmpfs"] == ["/tmp"]
    assert SERVICES[name]["init"] is True


def test_web_pages_are_reachable_from_this_machine_only() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name, service in SERVICES.items():
        if name in PUBLISHED:
            port = PUBLISHED[name]
            assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        else:
            assert "ports" not in service
            assert service["networks"] == ["inside"]


def test_data_that_must_persist_is_on_volumes() -> None:
    mounts = {
        name: [mount.split(":") for mount in service.get("volumes", ())]
        for name, service in SERVICES.items()
    }
    assert mounts["redis"] == [["redis", "/data"]]
    assert mounts["mongo"] == [["mongo", "/data/db"]]
    ((volume, folder),) = mounts["worker"]
    assert {"redis", "mongo", "prometheus", volume} == COMPOSE["volumes"].keys()
    spool = re.search(r"RTS_SPOOL_DIR=(\S+)", DOCKERFILE)
    assert Path(spool[1]).is_relative_to(folder)
    # A new volume gets the owner of the image's folder.
    assert re.search(
        rf"install -d -o app -g app {re.escape(folder)}$", DOCKERFILE, re.MULTILINE
    )


def test_redis_persists_its_data_and_stays_below_its_limit() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert size(options["--maxmemory"]) < size(SERVICES["redis"]["mem_limit"])


def test_the_image_is_pinned_and_has_the_user_of_the_services() -> None:
    lines = DOCKERFILE.splitlines()
    images = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert images
    assert all(PINNED.fullmatch(image) for image in images)
    assert [line for line in lines if line.startswith("USER ")] == ["USER app"]
    uid, gid = SERVICES["worker"]["user"].split(":")
    assert f"--gid {gid} app" in DOCKERFILE
    assert f"--uid {uid} --gid {gid} app" in DOCKERFILE


def test_the_build_context_has_all_that_the_image_copies() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source.removeprefix("./")
        for line in DOCKERFILE.splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def test_the_source_distribution_has_them() -> None:
    included = (ROOT / "pyproject.toml").read_text().partition("build.targets.sdist]\n")[2]
    names = set(re.findall(r'"([^"]+)"', included.splitlines()[0]))
    assert {"Dockerfile", ".dockerignore", "docker-compose.yml"} <= names


def test_mounted_files_exist_and_are_read_only() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, *rest = mount.split(":")
            if source.startswith("."):
                assert (ROOT / source).is_file(), source
                assert rest[1:] == ["ro"]


# --- what it runs -------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose_redis() -> Iterator[RedisServer]:
    """Redis with the options of its service."""
    with RedisServer(arguments=SERVICES["redis"]["command"][1:]) as server:
        yield server


@pytest.mark.parametrize("name", OWN)
def test_a_service_runs_and_its_check_succeeds(
    name: str, compose_redis: RedisServer, rts_mongo_url: str, tmp_path: Path
) -> None:
    """Run the service's own command and check, with other addresses and folders."""
    if name == "flower":
        pytest.importorskip("flower")
    service = SERVICES[name]
    port = str(free_port())

    def here(text: str, folder: str = str(tmp_path)) -> str:
        for theirs in ("5555", "9808"):
            text = text.replace(theirs, port)
        return text.replace("/tmp/", f"{folder}/").replace("$$", "$")

    url = compose_redis.url.rpartition("/")[0]
    addresses = {
        "redis://redis:6379": url,
        "mongodb://mongo:27017/rts": rts_mongo_url,
    }
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HOSTNAME": socket.gethostname(),
        "RTS_SPOOL_DIR": str(tmp_path / "spool"),
    }
    for key, value in service["environment"].items():
        for address, other in addresses.items():
            value = value.replace(address, other)
        environment[key] = value
    assert "6379" not in environment["CELERY_BROKER_URL"].removeprefix(url)

    quoted = shlex.quote(str(tmp_path))
    kind, *check = (here(part, quoted) for part in service["healthcheck"]["test"])
    probe = ["/bin/sh", "-c", *check] if kind == "CMD-SHELL" else check

    def healthy() -> bool:
        finished = subprocess.run(
            probe, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False
        )
        return finished.returncode == 0

    assert not healthy(), "it tells nothing: it passes before the service runs"
    log = tmp_path / "log"
    command = [here(part) for part in service["command"]]
    if name == "beat":  # which shows only in this way that it has reached its schedule
        command += ["-l", "DEBUG"]
    running = OwnedProcess(command, log, env=environment, cwd=ROOT)
    try:
        try:
            wait_until(lambda: healthy() or not running.running, timeout=90)
        except TimeoutError:
            pytest.fail(f"not healthy:\n{log.read_text()}")
        if name == "beat":  # Celery's does not exit cleanly in the middle of its start
            wait_until(lambda: "Waking up in" in log.read_text() or not running.running)
        assert running.running, log.read_text()
    finally:
        running.stop(30)
    assert "Traceback" not in log.read_text()
