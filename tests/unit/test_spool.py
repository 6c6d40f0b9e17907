"""The spool: what is appended is in a file of its writer, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rts import health
from rts.ledger.spool import Spool
from rts.ledger.spool_folder import REFUSED_BYTES, opened, read_all, read_counts, try_lock
from rts.records import Execution
from rts.settings import Settings
from tests.conftest import printed, python
from tests.forked import in_child
from tests.records import as_line, run

MIB = 1 << 20


def lines_of(path: str) -> list[bytes]:
    with opened(path) as fd:
        return read_all(fd).splitlines()


def ids(spool: Spool) -> list[str]:
    """Return the task ids of all whole lines, oldest file first."""
    found = []
    for path in spool.files():
        for line in lines_of(path):
            try:
                found.append(Execution.from_json(line).task_id)
            except ValueError:
                pass
    return found


def test_lines_are_appended_in_order(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "deep" / "spool"), MIB)
    assert spool.files() == []
    for i in range(10):
        spool.append_line(as_line(run(str(i))))
    (path,) = spool.files()
    assert [Execution.from_json(line) for line in lines_of(path)] == [
        run(str(i)) for i in range(10)
    ]
    assert os.stat(spool.directory).st_mode & 0o777 == 0o700
    assert os.stat(path).st_mode & 0o777 == 0o600
    spool.append_counts({"refused_plan": 2})
    assert json.loads(lines_of(path)[-1]) == {"counts": {"refused_plan": 2}}


def test_a_folder_whose_name_is_given_with_a_slash_at_its_end_is_private(
    tmp_path: Path,
) -> None:
    directory = Settings.from_conf({"rts_spool_dir": f"{tmp_path}/new/spool/"}).spool_dir
    mask = os.umask(0o002)
    try:
        Spool(directory, MIB).append_line(as_line(run("a")))
    finally:
        os.umask(mask)
    assert os.stat(directory).st_mode & 0o777 == 0o700


def test_a_file_is_locked_while_its_writer_lives(tmp_path: Path) -> None:
    directory = str(tmp_path / "spool")
    root = Path(__file__).parents[2]
    code = (
        "import time\n"
        "from rts.ledger.spool import Spool\n"
        "from tests.records import as_line, run\n"
        f"Spool({directory!r}, 1 << 20).append_line(as_line(run('a')))\n"
        "print(flush=True)\n"
        "time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
    try:
        writer.stdout.readline()
        (path,) = Spool(directory, MIB).files()
        with opened(path) as fd:
            assert not try_lock(fd)
            writer.kill()
            writer.wait()
            assert try_lock(fd)
            assert read_all(fd).count(b"\n") == 1
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    with opened(path + ".gone") as fd:
        assert fd == -1


def test_a_writer_starts_a_new_file_now_and_then(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB, file_bytes=1000)
    for i in range(20):
        spool.append_line(as_line(run(str(i))))
    files = spool.files()
    assert len(files) == 4
    assert ids(spool) == [str(i) for i in range(20)]
    for path in files[:-1]:
        with opened(path) as fd:
            assert try_lock(fd), "only the last is written to"


def test_a_process_that_ends_with_a_spool_says_nothing(tmp_path: Path) -> None:
    code = (
        "from rts.ledger.spool import Spool\n"
        f"spools = [Spool({str(tmp_path)!r}, 1 << 20)]\n"
        "def use(): return spools\n"  # so that Python comes late to destroy it
    )
    ended = python("-c", code)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_forked_child_writes_a_file_of_its_own(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append_line(as_line(run("parent")))
    in_child(lambda: spool.append_line(as_line(run("child"))))
    spool.append_line(as_line(run("parent again")))
    first, second = spool.files()
    assert [len(lines_of(path)) for path in (first, second)] == [2, 1]
    with opened(second) as fd:
        assert try_lock(fd)
    with opened(first) as fd:
        assert not try_lock(fd), "the child's end did not unlock the parent's"


def test_a_forked_child_that_writes_nothing_keeps_no_file_locked(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append_line(as_line(run("parent")))
    until, ends = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ends)
        os.read(until, 1)
        os._exit(0)
    spool.close()
    (path,) = spool.files()
    with opened(path) as fd:
        assert try_lock(fd)
    os.close(ends)
    os.waitpid(child, 0)
    os.close(until)


def test_a_forked_child_that_outlives_its_parent_keeps_no_file_locked(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    until, ends = os.pipe()
    begun, begins = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(ends)
        spool.append_line(as_line(run("parent")))
        if os.fork() == 0:
            os.write(begins, b".")
            os.read(until, 1)
            os._exit(0)
        os.read(begun, 1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    (path,) = spool.files()
    with opened(path) as fd:
        assert try_lock(fd)
    for pipe in (until, ends, begun, begins):
        os.close(pipe)


def test_a_forked_child_does_not_close_its_parents_file(tmp_path: Path) -> None:
    """The parent would be killed by its next record, in memory that has no file."""
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append_line(as_line(run("a")))
    in_child(spool.close)
    (path,) = spool.files()
    assert os.stat(path).st_size > 10_000, "its room is reserved"
    with opened(path) as fd:
        assert not try_lock(fd)


def test_the_file_of_a_process_that_was_killed_ends_with_its_last_record(
    tmp_path: Path,
) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)

    def act() -> None:
        for i in range(3):
            spool.append_line(as_line(run(str(i))))
        os.kill(os.getpid(), signal.SIGKILL)

    in_child(act)
    (path,) = spool.files()
    assert ids(spool) == ["0", "1", "2"]
    with opened(path) as fd:
        assert try_lock(fd)
        whole = read_all(fd)
        assert whole.endswith(b"]\n")
        assert read_all(fd, len(whole)) == b""


def test_a_file_that_is_closed_is_as_long_as_its_records(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append_line(as_line(run("a")))
    (path,) = spool.files()
    assert os.stat(path).st_size > 10_000, "its room is reserved"
    spool.close()
    assert Path(path).read_bytes() == run("a").to_json().encode() + b"\n"


def test_a_line_longer_than_a_file_gets_its_own(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB, file_bytes=1000)
    for task_id in ("a", "x" * 2000, "b", "c"):
        spool.append_line(as_line(run(task_id)))
    assert ids(spool) == ["a", "x" * 2000, "b", "c"]
    assert [len(lines_of(path)) for path in spool.files()] == [1, 1, 2]


def test_bytes_that_are_not_visible_yet_are_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"[1]\n[2\0\0\n[3]\n" + bytes(100))
    with opened(str(path)) as fd:
        assert read_all(fd) == b"[1]\n[2"


def _append_many(directory: str, name: str, n: int) -> None:
    spool = Spool(directory, 100 * MIB, file_bytes=20_000)
    for i in range(n):
        spool.append_line(as_line(run(f"{name}-{i}")))


def test_processes_and_threads_append_concurrently(tmp_path: Path) -> None:
    directory = str(tmp_path / "spool")
    context = multiprocessing.get_context("spawn")
    workers = [
        *(context.Process(target=_append_many, args=(directory, f"p{i}", 300)) for i in (0, 1)),
        *(
            threading.Thread(target=_append_many, args=(directory, f"t{i}", 300))
            for i in (0, 1)
        ),
    ]
    shared = Spool(directory, 100 * MIB, file_bytes=20_000)

    def append_to_the_same(name: str) -> None:
        for i in range(300):
            shared.append_line(as_line(run(f"{name}-{i}")))

    workers += [threading.Thread(target=append_to_the_same, args=(f"s{i}",)) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = ids(shared)
    expected = {f"{kind}{i}-{n}" for kind in "pts" for i in (0, 1) for n in range(300)}
    assert len(found) == len(expected)
    assert set(found) == expected


def test_the_oldest_files_are_dropped_when_it_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(str(tmp_path / "spool"), 40_000, file_bytes=4000)
    for i in range(300):
        spool.append_line(as_line(run(f"{i:04d}")))
        assert sum(os.stat(path).st_size for path in spool.files()) < 41_000
    dropped = health.take_counts()["spool_dropped"]
    assert dropped > 0
    assert ids(spool) == [f"{i:04d}" for i in range(dropped, 300)]
    assert caplog.text.count("rts_spool_max_bytes") == 1
    for path in spool.files():  # as a shipper does
        os.unlink(path)
    for i in range(300):
        spool.append_line(as_line(run(f"{i:04d}")))
    assert caplog.text.count("rts_spool_max_bytes") == 2


def test_a_small_spool_that_is_full_keeps_most_of_it(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), 40_000)
    for i in range(300):
        spool.append_line(as_line(run(f"{i:04d}")))
        assert not i > 120 or len(ids(spool)) > 60


def test_what_was_counted_is_not_dropped_with_the_oldest_files(tmp_path: Path) -> None:
    """Else the counter would tell of what was dropped last only."""
    health.take_counts()
    spool = Spool(str(tmp_path / "spool"), 40_000, file_bytes=4000)
    for i in range(900):
        if health.pending():
            spool.append_counts(health.take_counts())
        spool.append_line(as_line(run(f"{i:04d}")))
    spool.close()
    found = [line for path in spool.files() for line in lines_of(path)]
    counts = [read_counts(line) for line in found if line.startswith(b"{")]
    dropped = sum(each.get("spool_dropped", 0) for each in [*counts, health.take_counts()])
    assert dropped == 900 - len(ids(spool))


def test_what_another_process_writes_or_ships_is_not_dropped(tmp_path: Path) -> None:
    other = Spool(str(tmp_path / "spool"), 40_000)
    other.append_line(as_line(run("first")))
    spool = Spool(str(tmp_path / "spool"), 40_000, file_bytes=4000)
    for i in range(300):
        spool.append_line(as_line(run(str(i))))
    assert ids(other)[0] == "first"
    other.append_line(as_line(run("second")))
    assert "second" in ids(spool)


def test_a_file_that_a_shipper_removes_before_it_is_locked_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shipper may lock and remove a file between its making and its locking."""
    spool = Spool(str(tmp_path / "spool"), MIB)
    flock, taken = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not taken:
            taken.extend(spool.files())
            os.unlink(taken[0])
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    spool.append_line(as_line(run("a")))
    assert ids(spool) == ["a"]
    assert spool.files() != taken


def test_a_file_system_without_locks_costs_no_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    spool = Spool(str(tmp_path / "spool"), MIB)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(OSError, match="No locks available"):
            spool.append_line(as_line(run("a")))
    assert spool.files() == []
    with spool.lease() as mine:
        assert not mine
    assert len(os.listdir("/proc/self/fd")) == before
    assert "this host's spool is not shipped" in caplog.text


@pytest.mark.parametrize("kind", ["file", "link", "writable"])
def test_a_folder_that_is_not_exclusively_ours_is_refused(tmp_path: Path, kind: str) -> None:
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
    why = "can be written by other" if kind == "writable" else "is not a folder"
    for _ in range(2):
        with pytest.raises(OSError, match=f"spool {why}"):
            spool.append_line(as_line(run("a")))
        with spool.lease() as mine:
            assert not mine
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_pipe_in_the_folder_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.jsonl")
    with opened(str(tmp_path / "1.jsonl")) as fd:
        assert fd >= 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of another user")
def test_the_folder_of_another_user_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spool"
    directory.mkdir(0o700)
    os.chown(directory, 12345, 12345)
    spool = Spool(str(directory), MIB)
    with pytest.raises(PermissionError, match="another user"):
        spool.append_line(as_line(run("a")))
    with spool.lease() as mine:
        assert not mine, "what a stranger has put there would be taken for ours"
    assert "this host's spool is not shipped" in caplog.text
    assert "another user" in caplog.text


#: Files of at most 2,500 bytes: writing ends in the middle of a record, as it does
#: on a full disk.
_ON_A_FULL_DISK = """
import resource, signal, sys
from rts.ledger.spool import Spool
from tests.records import as_line, run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, resource.RLIM_INFINITY))
spool = Spool(sys.argv[1], 1 << 20)
for i in range(20):
    try:
        spool.append_line(as_line(run(str(i))))
    except OSError:
        print(i)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
spool.append_line(as_line(run("later")))
"""


def test_a_full_disk_loses_only_what_does_not_fit(tmp_path: Path) -> None:
    directory = str(tmp_path / "spool")
    refused = printed(_ON_A_FULL_DISK, directory).split()
    assert 0 < len(refused) < 20
    expected = [str(i) for i in range(20) if str(i) not in refused] + ["later"]
    assert ids(Spool(directory, MIB)) == expected


def test_refused_lines_are_kept_while_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(str(tmp_path / "spool"), 100 * MIB)
    spool.append_line(as_line(run("a")))
    for _ in range(3):
        spool.refuse(b"x" * (REFUSED_BYTES - 10))
    size = os.stat(os.path.join(spool.directory, "refused.jsonl")).st_size
    assert size < 2 * REFUSED_BYTES
    assert health.take_counts()["spool_refused"] == 3
    assert caplog.text.count("refused.jsonl") == 1
    assert len(spool.files()) == 1, "it is not a file of records"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "spool"), MIB)
    spool.append_line(as_line(run("a")))
    target = tmp_path / "target"
    os.symlink(target, os.path.join(spool.directory, "refused.jsonl"))
    spool.refuse(b"x")
    assert not target.exists()
