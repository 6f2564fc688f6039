"""The writer of the decision log: nothing waits for it, nothing is lost silently, files stay bounded."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apportion.measure.decision_log import Entry, Header, Offered, files, read, records
from apportion.serve import decision_log as module
from apportion.serve.decision_log import DecisionLog


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 60.0)


def entry(number: int) -> Entry:
    return Entry(
        id=f"dec_{number}",
        at=float(number),
        model="chat",
        options=[Offered("a" * 50, 1.0, {"usd": 1.0})],
        choice=0,
        probability=1.0,
    )


def ids(directory: Path) -> list[str]:
    return [row.entry.id for row in read([directory]).rows]


def test_what_is_added_is_read(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "new", 3)
    for number in range(100):
        log.add(entry(number))
    log.close()
    assert ids(tmp_path / "new") == [f"dec_{number}" for number in range(100)]
    assert (log.lines, log.dropped) == (100, 0)
    first = next(records([tmp_path / "new"]))
    assert isinstance(first, Header)
    assert first.worker == 3
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_full_files_are_compressed_and_nothing_is_lost(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 0, file_bytes=2000)
    for number in range(200):
        log.add(entry(number))
        if number % 20 == 19:
            log.flush()
    log.close()
    assert len(list(tmp_path.glob("*.gz"))) >= 5
    assert len(list(tmp_path.glob("*.part"))) == 0
    assert ids(tmp_path) == [f"dec_{number}" for number in range(200)]


def test_the_oldest_files_go(tmp_path: Path) -> None:
    def written(**bounds: float) -> set[str]:
        log = DecisionLog(tmp_path, 0, file_bytes=1000, **bounds)  # type: ignore[arg-type]
        for number in range(100):
            log.add(entry(number))
            if number % 10 == 9:
                log.flush()
                time.sleep(0.002)
        log.close()
        return set(ids(tmp_path))

    left = written(total_bytes=1000)
    assert "dec_99" in left
    assert "dec_0" not in left
    old = time.time() - 100
    for path in files([tmp_path]):
        os.utime(path, (old, old))
    (tmp_path / "worker-01-20200101T000000Z-0001.jsonl").write_bytes(b"")
    DecisionLog(tmp_path, 0, keep_s=50.0).close()
    assert list(tmp_path.glob("worker-00-*.gz")) == []
    assert (tmp_path / "worker-01-20200101T000000Z-0001.jsonl").exists()


def test_a_full_buffer_drops_and_counts(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 0, buffer_bytes=1000)
    for number in range(1000):
        log.add(entry(number))
    log.close()
    assert log.dropped > 0
    assert log.lines + log.dropped == 1000
    assert len(ids(tmp_path)) == log.lines


def test_half_a_line_of_a_killed_process_spoils_nothing(tmp_path: Path) -> None:
    (tmp_path / "worker-00.jsonl").write_bytes(b'{"kind":"decision","id":"dec_x')
    log = DecisionLog(tmp_path, 0)
    log.add(entry(1))
    log.close()
    found = read([tmp_path])
    assert [row.entry.id for row in found.rows] == ["dec_1"]
    assert found.broken == 1


def test_two_proxies_do_not_write_into_one_file(tmp_path: Path) -> None:
    one, other = DecisionLog(tmp_path, 0), DecisionLog(tmp_path, 0)
    one.add(entry(1))
    other.add(entry(2))
    one.close()
    other.close()
    assert ids(tmp_path) == ["dec_1", "dec_2"]
    assert len(files([tmp_path])) == 2


def test_what_cannot_be_deleted_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that vanishes while old files are looked for must not end the thread that writes."""

    def gone(self: DecisionLog) -> Iterator[tuple[Path, int, float]]:
        raise FileNotFoundError

    monkeypatch.setattr(DecisionLog, "_full", gone)
    log = DecisionLog(tmp_path, 0)
    log.add(entry(1))
    log.close()
    assert ids(tmp_path) == ["dec_1"]


@pytest.mark.filterwarnings("ignore")
def test_a_directory_that_is_gone_is_counted_and_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "log"
    log = DecisionLog(directory, 0)
    log.add(entry(1))
    log.flush()
    shutil.rmtree(directory)
    assert log._file is not None
    log._file.close()
    log._file = None
    blocked = directory
    blocked.write_text("not a directory")
    log.add(entry(2))
    log.flush()
    assert log.dropped == 1
    blocked.unlink()
    log.add(entry(3))
    log.close()
    assert ids(directory) == ["dec_3"]


def test_after_its_end_it_takes_nothing(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, 0)
    log.close()
    log.add(entry(1))
    assert (log.lines, log.dropped) == (0, 1)
