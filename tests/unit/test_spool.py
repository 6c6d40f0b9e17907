"""The spool: whatever happens, each line is shipped once, or counted."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rts import health
from rts.ledger.spool import REFUSED_BYTES, Batch, Spool
from rts.records import Execution

MIB = 1 << 20


def run(task_id: str) -> Execution:
    return Execution(
        run_id=f"run-{task_id}",
        task_id=task_id,
        name="proj.add",
        task_type="cpu-light",
        type_source="explicit",
        tau=5.0,
        k=2.0,
        arrival=1.0,
        deadline=11.0,
        arrival_source="published",
        queue=None,
        retries=0,
        parent_id=None,
        root_id=None,
        worker="w@h",
        instance="w@h/1-a",
        pid=1,
    )


def ids(batch: Batch) -> list[str]:
    return [json.loads(line)["execution"]["task_id"] for line in batch.lines() if line]


def take_all(spool: Spool) -> list[str]:
    found = []
    while (batch := spool.take()) is not None:
        found += ids(batch)
        batch.remove()
    return found


def test_what_is_appended_is_taken_in_order(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    assert spool.take() is None
    for i in range(10):
        spool.append(run(str(i)), elsewhere=i == 3, suspect=("w", 7) if i == 4 else None)
    batch = spool.take()
    assert batch is not None
    records = [json.loads(line) for line in batch.lines() if line]
    assert [Execution.from_mapping(r["execution"]) for r in records] == [
        run(str(i)) for i in range(10)
    ]
    assert [r["elsewhere"] for r in records] == [i == 3 for i in range(10)]
    assert records[4]["suspect"] == ["w", 7]
    assert records[5]["suspect"] is None
    batch.remove()
    assert spool.take() is None
    assert spool.waiting_bytes() == 0
    assert os.stat(spool.directory).st_mode & 0o777 == 0o700


def test_lines_keep_their_numbers_whoever_takes_them(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append(run("a"), elsewhere=False, suspect=None)
    batch = spool.take()
    assert batch is not None
    lines, producer = batch.lines(), batch.producer
    assert spool.take() is None, "a batch has one shipper"
    batch.mark(2)
    batch.close()  # as when its process dies
    spool.append(run("b"), elsewhere=False, suspect=None)
    again = spool.take()
    assert again is not None
    assert (again.lines(), again.producer, again.shipped) == (lines, producer, 2)
    again.remove()
    assert take_all(spool) == ["b"]
    assert not [name for name in os.listdir(spool.directory) if name.endswith(".at")]


STEPS = st.lists(
    st.sampled_from(["append", "append", "take", "crash", "tear", "part", "other"]), max_size=40
)


@given(STEPS)
def test_each_line_is_shipped_once_whatever_the_interleaving(steps: list[str]) -> None:
    """*crash*: a shipper dies between taking and removing; *part*: after half of it;
    *tear*: a process dies in the middle of a line; *other*: another process appends.
    """
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(os.path.join(folder, "s"), MIB, batch_bytes=2500)
        other = Spool(os.path.join(folder, "s"), MIB, batch_bytes=2500)
        appended: list[str] = []
        shipped: dict[tuple[str, int], str] = {}

        def ship(batch: Batch, most: int) -> None:
            for number, line in enumerate(batch.lines(), start=1):
                if number <= batch.shipped or number > most:
                    continue
                try:
                    task_id = json.loads(line)["execution"]["task_id"]
                except ValueError:
                    continue
                # The script takes a number of a writer once.
                shipped.setdefault((batch.producer, number), task_id)

        for step in [*steps, "take"]:
            if step in ("append", "other"):
                appended.append(str(len(appended)))
                (spool if step == "append" else other).append(
                    run(appended[-1]), elsewhere=False, suspect=None
                )
            elif step == "tear":
                os.makedirs(spool.directory, 0o700, exist_ok=True)
                with open(os.path.join(spool.directory, "current.jsonl"), "ab") as file:
                    file.write(b'\n{"execution":{"run')
            else:
                batch = spool.take()
                while batch is not None:
                    half = len(batch.lines()) // 2
                    if step == "take":
                        ship(batch, 1 << 30)
                        batch.remove()
                    elif step == "part":
                        ship(batch, half)
                        batch.mark(half)
                        batch.close()
                    else:
                        ship(batch, half)  # but did not come to mark it
                        batch.close()
                    batch = spool.take() if step == "take" else None
        assert sorted(shipped.values()) == sorted(appended)


def _append_many(directory: str, name: str, n: int) -> None:
    spool = Spool(directory, 100 * MIB, batch_bytes=20_000)
    for i in range(n):
        spool.append(run(f"{name}-{i}"), elsewhere=False, suspect=None)


def test_processes_and_threads_append_while_others_take(tmp_path: Path) -> None:
    directory = str(tmp_path / "spool")
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_append_many, args=(directory, f"p{i}", 400)) for i in range(3)
    ]
    threads = [
        threading.Thread(target=_append_many, args=(directory, f"t{i}", 400)) for i in range(3)
    ]
    found: list[list[str]] = [[], []]
    done = threading.Event()

    def take(into: list[str]) -> None:
        spool = Spool(directory, 100 * MIB)
        while not done.is_set():
            into += take_all(spool)

    takers = [threading.Thread(target=take, args=(part,)) for part in found]
    for worker in (*processes, *threads, *takers):
        worker.start()
    for worker in (*processes, *threads):
        worker.join(60)
    done.set()
    for taker in takers:
        taker.join(60)
    left = take_all(Spool(directory, 100 * MIB))
    expected = {f"{kind}{i}-{n}" for kind in "pt" for i in range(3) for n in range(400)}
    everything = found[0] + found[1] + left
    assert len(everything) == len(expected)
    assert set(everything) == expected


def test_the_oldest_go_when_it_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(str(tmp_path / "spool"), 40_000)
    for i in range(300):
        spool.append(run(f"{i:04d}"), elsewhere=False, suspect=None)
        assert spool.waiting_bytes() < 52_000
    left = take_all(spool)
    dropped = health.take_counts()["spool_dropped"]
    assert left == [f"{i:04d}" for i in range(dropped, 300)]
    assert dropped > 0
    assert "rts_spool_max_bytes" in caplog.text


def test_a_batch_that_is_being_shipped_is_not_dropped(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 40_000)
    spool.append(run("first"), elsewhere=False, suspect=None)
    batch = spool.take()
    for i in range(300):
        spool.append(run(str(i)), elsewhere=False, suspect=None)
    assert batch is not None
    assert ids(batch) == ["first"]
    batch.remove()


def test_who_was_stopped_in_the_middle_of_a_rename_stops_nobody(tmp_path: Path) -> None:
    import fcntl

    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append(run("0"), elsewhere=False, suspect=None)
    with open(os.path.join(spool.directory, "current.jsonl"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        spool.append(run("1"), elsewhere=False, suspect=None)
        assert take_all(spool) == ["1"]
    assert take_all(spool) == ["0"]


@pytest.mark.parametrize("kind", ["file", "link", "writable"])
def test_a_folder_that_is_not_ours_alone_is_refused(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spool"
    if kind == "file":
        directory.write_text("")
    elif kind == "link":
        (tmp_path / "elsewhere").mkdir(0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.mkdir()
        directory.chmod(0o777)
    spool = Spool(str(directory), MIB)
    spool.append(run("a"), elsewhere=False, suspect=None)
    spool.append(run("b"), elsewhere=False, suspect=None)
    assert health.take_counts() == {"spool_lost": 2}
    assert caplog.text.count("rts_spool_dir") == 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir(0o700)
    os.chown(directory, 12345, 12345)
    Spool(str(directory), MIB).append(run("a"), elsewhere=False, suspect=None)
    assert health.take_counts() == {"spool_lost": 1}


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir(0o700)
    target = tmp_path / "target"
    (directory / "current.jsonl").symlink_to(target)
    Spool(str(directory), MIB).append(run("a"), elsewhere=False, suspect=None)
    assert health.take_counts() == {"spool_lost": 1}
    assert not target.exists()


#: Files of at most 5,000 bytes: writing ends in the middle of a record, as it does
#: on a full disk.
_ON_A_FULL_DISK = """
import resource, signal, sys
from rts import health
from rts.ledger.spool import Spool
from tests.unit.test_spool import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
spool = Spool(sys.argv[1], 1 << 20)
for i in range(20):
    spool.append(run(str(i)), elsewhere=False, suspect=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append(run("later"), elsewhere=False, suspect=None)
print(health.take_counts()["spool_lost"])
"""


def test_a_full_disk_loses_only_what_does_not_fit(tmp_path: Path) -> None:
    directory = str(tmp_path / "spool")
    command = [sys.executable, "-c", _ON_A_FULL_DISK, directory]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    lost = int(done.stdout)
    assert 0 < lost < 20
    assert "rts_spool_dir" in done.stderr
    batch = Spool(directory, MIB).take()
    assert batch is not None
    sound = []
    for line in batch.lines():
        try:
            sound.append(json.loads(line)["execution"]["task_id"])
        except ValueError:
            pass
    assert sound == [str(i) for i in range(20 - lost)] + ["later"]


def test_refused_lines_are_kept_while_there_is_room(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 100 * MIB)
    spool.append(run("a"), elsewhere=False, suspect=None)
    for _ in range(3):
        spool.refuse(b"x" * (REFUSED_BYTES - 10))
    size = os.stat(os.path.join(spool.directory, "refused.jsonl")).st_size
    assert size < 2 * REFUSED_BYTES
    assert health.take_counts()["spool_refused"] == 3


def test_what_is_no_json_is_lost_and_counted(tmp_path: Path) -> None:
    from dataclasses import replace

    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append(replace(run("a"), queue=object()), elsewhere=False, suspect=None)  # type: ignore[arg-type]
    assert health.take_counts() == {"spool_lost": 1}
