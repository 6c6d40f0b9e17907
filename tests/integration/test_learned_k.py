"""A learned k covers the share of runs asked for, through the real script and cache."""

from __future__ import annotations

import heapq
import math
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rts.clock import FleetClock
from rts.deadlines import deadline
from rts.link.link import Link
from rts.settings import Settings
from rts.simulation.traces import Job, read_trace
from rts.tasktypes import TaskType
from rts.tau.cache import TauCache
from rts.tau.finish import FinishCall, FinishEntry
from rts.tau.sketch import LOG_BASE

#: Runs of each type after which the share has to be met.
FIRST_RUNS = 100

#: Jobs that arrive together. What is known to plan them is read, and what has ended meanwhile
#: is learned, in one go: that, and not the number of jobs, is what these tests take long for.
AT_ONCE = 3

#: More traces to test with, as CSV files.
TRACES = sorted(Path(os.environ.get("RTS_TEST_TRACES", "no-such-folder")).glob("*.csv"))


def made_up(shape: str, n: int = 4500) -> Iterator[Job]:
    """Return jobs of three types whose runtimes vary in the same way."""
    rng, at = random.Random(5), 0.0
    for number in range(n):
        if number % AT_ONCE == 0:
            at += rng.expovariate(1 / (AT_ONCE * 30))
        kind = rng.choice(("short", "medium", "long"))
        mean_s = {"short": 3.0, "medium": 8.0, "long": 30.0}[kind]
        sigma = {"narrow": 0.3, "wide": 0.7, "wider": 0.3 if number < n // 2 else 0.7}
        if shape == "far":  # from the first tau, and each type with a spread of its own
            own = {"short": 0.1, "medium": 0.5, "long": 1.2}
            factor = 20 * rng.lognormvariate(0, own[kind])
        elif shape == "bimodal":
            factor = rng.choice((0.4, 0.4, 0.4, 0.4, 3.0)) * rng.lognormvariate(0, 0.1)
        elif shape == "slower":  # and slower, up to tenfold
            factor = 10 ** (number / n) * rng.lognormvariate(0, 0.3)
        else:
            factor = rng.lognormvariate(0, sigma[shape])
        yield Job(at, f"{kind}.{rng.randrange(3)}", mean_s * factor, kind)


def in_time(url: str, prefix: str, jobs: list[Job], q: float, only: str = "") -> list[bool]:
    """Run *jobs* on an idle system: each begins when it arrives, is planned with what is
    known then, and is learned from when it ends. Return which were in time, without the
    first runs of each type, of the types that begin with *only*.
    """
    settings = Settings(
        redis_url=url,
        key_prefix=prefix,
        deadline_policy="quantile",
        quantile=q,
        task_types={name: TaskType(name, 10.0) for name in {j.task_type for j in jobs}},
        timeout=5.0,
    )
    link, now = Link(settings), 0.0
    cache = TauCache(link, settings, FleetClock(), now=lambda: now)
    call, taught = FinishCall(settings), 0
    running: list[tuple[float, int, Job, float]] = []
    begun: Counter[str] = Counter()
    met: list[bool] = []
    for number, job in enumerate(jobs):
        ended = []
        while running and running[0][0] <= job.arrival_s:
            *_, over, tau = heapq.heappop(running)
            taught += 1
            ended.append(
                FinishEntry(taught, b"", over.runtime_s, over.task_type, over.name, tau)
            )
        if ended:
            link.call(call.pack(None, ended))
        now = job.arrival_s
        tau = cache.tau(job.task_type, job.name)
        k = cache.ratio(job.task_type) or settings.sla_multiplier
        begun[job.task_type] += 1
        if begun[job.task_type] > FIRST_RUNS and job.task_type.startswith(only):
            met.append(job.runtime_s <= deadline(0.0, tau, k, settings.min_slack))
        heapq.heappush(running, (job.arrival_s + job.runtime_s, number, job, tau))
    link.close()
    return met


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("shape", "q"),
    [
        *(("narrow", 0.95), ("narrow", 0.9), ("wide", 0.95), ("bimodal", 0.95)),
        *(("slower", 0.95), ("far", 0.95)),
    ],
)
def test_the_share_that_was_asked_for_is_in_time(
    rts_redis_url: str, rts_key_prefix: str, shape: str, q: float
) -> None:
    met = in_time(rts_redis_url, rts_key_prefix, list(made_up(shape)), q)
    assert sum(met) / len(met) == pytest.approx(q, abs=0.01)


@pytest.mark.usefixtures("unmeasured")
def test_a_type_that_comes_later_is_learned_by_its_first_runs(
    rts_redis_url: str, rts_key_prefix: str
) -> None:
    rng = random.Random(3)
    jobs = []
    for n in range(4000):
        kind, runtime_s = "calm", 4 * rng.lognormvariate(0, 0.15)
        if n >= 1000 and n % 4 == 0:
            kind = f"late-{(n - 1000) // 1000}"
            runtime_s = rng.choice((2.0, 2.0, 14.0)) * rng.lognormvariate(0, 0.1)
        jobs.append(Job(30.0 * (n - n % AT_ONCE), kind, runtime_s, kind))
    met = in_time(rts_redis_url, rts_key_prefix, jobs, 0.95, only="late")
    assert len(met) == 3 * (250 - FIRST_RUNS)
    assert sum(met) / len(met) == pytest.approx(0.95, abs=0.025)


@pytest.mark.usefixtures("unmeasured")
def test_runtimes_that_start_to_vary_more_are_learned(
    rts_redis_url: str, rts_key_prefix: str
) -> None:
    met = in_time(rts_redis_url, rts_key_prefix, list(made_up("wider", 9000)), 0.95)
    last = met[-1500:]
    assert sum(last) / len(last) == pytest.approx(0.95, abs=0.015)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("trace", TRACES, ids=[path.stem for path in TRACES])
def test_the_share_that_was_asked_for_is_in_time_on_traces(
    rts_redis_url: str, rts_key_prefix: str, trace: Path
) -> None:
    met = in_time(rts_redis_url, rts_key_prefix, read_trace(trace)[:6000], 0.95)
    assert sum(met) / len(met) == pytest.approx(0.95, abs=0.01)


def test_runs_measured_against_a_default_tau_do_not_count(
    settings: Settings, link: Link, redis_client: redis.Redis
) -> None:
    call = FinishCall(settings)
    first = settings.task_types["mixed"].tau
    for used, known in ((first, None), (first / 2, "1")):
        link.call(call.pack(None, [FinishEntry(1, b"", 3.0, "mixed", "t", used)]))
        assert redis_client.hget(settings.keys.ratio + "mixed", "n") == known


def test_old_runs_lose_weight(
    settings: Settings, link: Link, redis_client: redis.Redis
) -> None:
    call = FinishCall(settings)
    rng = random.Random(2)
    for start in range(0, 20_000, 100):
        scale = 1.0 if start < 10_000 else 4.0
        link.call(
            call.pack(
                None,
                [
                    FinishEntry(n + 1, b"", scale * rng.uniform(0.5, 1.5), "mixed", "t", 1.0)
                    for n in range(100)
                ],
            )
        )
    for field in ("mixed", "*"):
        held = redis_client.hgetall(settings.keys.ratio + field)
        counts = {int(bucket): int(n) for bucket, n in held.items() if bucket != "n"}
        assert sum(counts.values()) == int(held["n"]) < 1000
        old = sum(n for bucket, n in counts.items() if 1.04**bucket < 1.7)
        assert old < 0.01 * int(held["n"])


def test_the_first_ratios_of_a_type_are_forgotten(
    settings: Settings, link: Link, redis_client: redis.Redis
) -> None:
    """Its tau was still on the way."""
    key = settings.keys.ratio + "mixed"

    def run(n: int) -> dict[str, str]:
        entries = [FinishEntry(i, b"", 6.0, "mixed", "t", 2.0) for i in range(1, n + 1)]
        link.call(FinishCall(settings).pack(None, entries))
        return redis_client.hgetall(key)

    bucket = str(math.ceil(math.log(3.0) / LOG_BASE))
    assert run(49) == {"n": "49", bucket: "49"}
    assert run(1) == {"n": "50"}
    assert run(30) == {"n": "80", bucket: "30"}
    assert redis_client.hgetall(settings.keys.ratio + "*") == {"n": "80", bucket: "80"}
    assert not redis_client.exists(settings.keys.outbox), "these were only to learn from"


def test_halving_what_old_runs_count_keeps_the_ranks(
    settings: Settings, link: Link, redis_client: redis.Redis
) -> None:
    key = settings.keys.ratio + "mixed"
    counts = {"zero": 3, **{str(bucket): 1 + bucket % 3 for bucket in range(-20, 300)}}
    # A hash has no order, though one this small keeps that in which it was filled.
    redis_client.hset(key, mapping={"odd": 1, "n": 999, **dict(sorted(counts.items()))})
    link.call(FinishCall(settings).pack(None, [FinishEntry(1, b"", 1.0, "mixed", "t", 1.0)]))
    counts["0"] += 1  # of a runtime that is as long as its tau
    held, before, after = redis_client.hgetall(key), 0, 0
    for bucket, n in counts.items():
        before, after = before + n, after + int(held.get(bucket, "0"))
        assert after == before // 2, bucket
    assert held["n"] == str(after)
    assert "0" not in held.values()
