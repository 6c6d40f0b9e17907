"""A real RabbitMQ broker on private ports, where rabbitmq-server is installed."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from rts.testing.processes import OwnedProcess
from rts.testing.server import reserved
from rts.testing.waiting import wait_until
from tests.programs import needed

#: Debian's wrapper on the usual path runs it as another user, who may not read our
#: folder; the server's own script is beside the library.
PATH = f"/usr/lib/rabbitmq/bin{os.pathsep}{os.environ.get('PATH', os.defpath)}"


#: What holds the ports of :func:`free_port`.
_holders: list[socket.socket] = []


def free_port() -> int:
    """Return a free port, which no other test gets while this process lives."""
    _holders.append(reserved(0))
    return int(_holders[-1].getsockname()[1])


class RabbitServer:
    """A broker with its own node name, ports and folder. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._process: OwnedProcess | None = None
        #: Erlang's port mapper: a daemon of our own, which ends with the server.
        self._mapper_port = str(free_port())

    def __enter__(self) -> RabbitServer:
        command = needed("rabbitmq-server", path=PATH)
        conf = self._folder / "rabbitmq.conf"
        conf.write_text(f"listeners.tcp.1 = 127.0.0.1:{self.port}\n")
        env = {
            **os.environ,
            "HOME": str(self._folder),
            "ERL_CRASH_DUMP": str(self._folder / "crash.dump"),
            "RABBITMQ_NODENAME": f"rts{secrets.token_hex(4)}@localhost",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(conf.with_suffix("")),
            "ERL_EPMD_PORT": self._mapper_port,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
        }
        process = self._process = OwnedProcess([command], self._folder / "rabbit.log", env=env)
        with suppress(TimeoutError):
            wait_until(lambda: self._answers() or not process.running, timeout=90)
        if not self._answers():
            self.__exit__()
            log = (self._folder / "rabbit.log").read_text(errors="replace")
            raise TimeoutError(f"RabbitMQ does not answer: {log[-2000:]}")
        return self

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        self._process.stop(20)
        subprocess.run(
            ["epmd", "-port", self._mapper_port, "-kill"], capture_output=True, check=False
        )
