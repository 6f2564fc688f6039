"""What was written to a journal is found whatever becomes of its writer; nothing else is."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.serve.ledger import journal as module
from apportion.serve.ledger.journal import (
    LONGEST,
    Abandoned,
    Journal,
    JournalError,
    JournalFullError,
    abandoned,
)


def only(directory: Path) -> Abandoned:
    [found] = abandoned(directory)
    return found


def test_what_is_open_is_found_once_the_writer_is_gone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "place", "ab12")
    first, second, third = (journal.take(b) for b in (b"one", b"two", b"three"))
    journal.settle(second, b"two cost")
    journal.settle(third, b"three cost")
    journal.free(third)
    assert journal.open_slots == 2
    assert journal.found() == [(b"one", None), (b"two", b"two cost")]
    assert list(abandoned(journal.path.parent)) == [], "its worker lives"
    journal.close()
    left = only(journal.path.parent)
    assert (left.holder, left.damaged) == ("ab12", 0)
    assert left.found == [(b"one", None), (b"two", b"two cost")]
    assert list(abandoned(journal.path.parent)) == [], "one recovers it at a time"
    left.release()
    only(journal.path.parent).remove()
    assert os.listdir(journal.path.parent) == []
    assert first == 0


def test_a_journal_with_nothing_open_goes_with_its_worker(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    journal.free(journal.take(b"x"))
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()
    journal.close()
    assert os.listdir(tmp_path) == []


def test_slots_are_reused_the_last_freed_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a", slots=3)
    assert [journal.take(b"x") for _ in range(3)] == [0, 1, 2]
    with pytest.raises(JournalFullError, match="3 reservations"):
        journal.take(b"x")
    journal.free(2)
    journal.free(1)
    assert [journal.take(b"y"), journal.take(b"z")] == [1, 2]
    assert journal.found() == [(b"x", None), (b"y", None), (b"z", None)]


def test_a_slot_that_is_reused_forgets_its_settlement(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    slot = journal.take(b"first")
    journal.settle(slot, b"cost of the first")
    journal.free(slot)
    assert journal.take(b"second") == slot
    assert journal.found() == [(b"second", None)]


def test_a_settlement_of_another_reservation_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Were the state to reach a disk before the payload, after a loss of power."""
    journal = Journal(tmp_path, "a")
    slot = journal.take(b"first")
    journal.settle(slot, b"cost of the first")
    journal.free(slot)
    journal.take(b"second")
    journal._map[4096] = 2
    journal.close()
    left = only(tmp_path)
    assert left.found == [(b"second", None)]
    assert left.damaged == 1


def test_misuse_is_an_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a")
    slot = journal.take(b"x" * LONGEST)
    journal.settle(slot, b"y" * LONGEST)
    assert journal.found() == [(b"x" * LONGEST, b"y" * LONGEST)]
    with pytest.raises(JournalError, match="settled or freed before"):
        journal.settle(slot, b"y")
    journal.free(slot)
    with pytest.raises(JournalError, match="freed before"):
        journal.free(slot)
    with pytest.raises(JournalError, match="2037 bytes does not fit"):
        journal.take(b"x" * (LONGEST + 1))
    slot = journal.take(b"x")
    with pytest.raises(JournalError, match="does not fit"):
        journal.settle(slot, b"x" * (LONGEST + 1))
    assert journal.found() == [(b"x", None)]
    assert journal.open_slots == 1
    with pytest.raises(JournalError, match="another one has its place"):
        Journal(tmp_path, "a")
    for name in ("", "../a", "a b", "ä", "a" * 65):
        with pytest.raises(JournalError, match="64 letters and digits"):
            Journal(tmp_path, name)


def test_a_place_that_cannot_hold_a_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="cannot be made: Not a directory") as caught:
        Journal(tmp_path / "file" / "journal", "a")
    assert caught.value.field == "ledger.journal"


def test_a_full_disk_refuses_a_reservation_and_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "a")
    taken = [journal.take(b"x") for _ in range(256)]

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "_claim", full)
    with pytest.raises(JournalFullError, match="cannot grow: No space left"):
        journal.take(b"y")
    journal.free(taken[7])
    assert journal.take(b"y") == 7, "what was claimed before is still good"
    monkeypatch.setattr(module, "_claim", module._write_zeros)
    assert journal.take(b"z") == 256
    journal.close()
    assert len(only(tmp_path).found) == 257


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_room_is_claimed_before_it_is_used() -> None:
    fd = os.open("/dev/full", os.O_RDWR)
    with pytest.raises(OSError, match="No space left"):
        module._write_zeros(fd, 0, 4096)
    os.close(fd)


def test_other_files_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes.journal").write_text("dear diary")
    (tmp_path / "empty.journal").write_bytes(b"")
    (tmp_path / "later.journal").write_bytes(
        module._head.pack(module._MAGIC, 2, 1, 4096, b"x").ljust(8192, b"\0")
    )
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "born.new").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert list(abandoned(tmp_path)) == []
    assert caplog.text.count("it is left as it is") == 3
    assert sorted(os.listdir(tmp_path)) == ["empty.journal", "later.journal", "notes.journal", "readme.txt"]
    assert list(abandoned(tmp_path / "nowhere")) == []


def test_a_damaged_slot_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path, "a")
    for payload in (b"one", b"two", b"three", b"four"):
        journal.take(payload)
    journal._map[4096 * 2 + 13] ^= 1
    journal._map[4096 * 3] = 77
    journal.close()
    left = only(tmp_path)
    assert left.found == [(b"one", None), (b"four", None)]
    assert left.damaged == 2
    assert "2 slots are damaged" in caplog.text


def test_a_journal_that_is_recovered_elsewhere_meanwhile_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        journal = Journal(tmp_path, name)
        journal.take(name.encode())
        journal.close()
    names = []
    for left in abandoned(tmp_path):
        if left.holder == "a":
            (tmp_path / "b.journal").unlink()
        names.append(left.holder)
        left.remove()
    assert names == ["a", "c"]


class Stores:
    """The memory of a journal that remembers each store."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self.done: list[tuple[int, bytes]] = []

    def __getitem__(self, at: int) -> int:
        return self._memory[at]

    def __setitem__(self, at: int | slice, what: int | bytes) -> None:
        if isinstance(at, slice):
            assert isinstance(what, bytes)
            self._memory[at] = what
            self.done.append((at.start, what))
        else:
            assert isinstance(what, int)
            self._memory[at] = what
            self.done.append((at, bytes([what])))


def torn(image: bytes, at: int, what: bytes) -> Iterator[bytes]:
    """The memory when a store is cut short after any number of bytes, done from its start or from its end."""
    for cut in range(len(what)):
        yield image[:at] + what[:cut] + image[at + cut :]
        yield image[: at + cut] + what[cut:] + image[at + len(what) :]


def test_a_writer_may_die_in_the_middle_of_any_store(tmp_path: Path) -> None:
    """Every store of a random course, cut short everywhere: what is found is the state before the act or after."""
    journal = Journal(tmp_path, "a", slots=4)
    rng = random.Random(5)
    held: dict[int, tuple[bytes, bytes | None]] = {}
    size = 4096 * 5
    images = 0
    for _ in range(60):
        before, image = [held[s] for s in sorted(held)], bytes(journal._map[:size])
        stores = Stores(journal._map)
        journal._map = stores  # type: ignore[assignment]
        slot = rng.choice(list(held)) if held else 0
        if len(held) < 4 and rng.random() < 0.5:
            payload = rng.randbytes(rng.randrange(1, 30))
            held[journal.take(payload)] = (payload, None)
        elif held and held[slot][1] is None:
            cost = rng.randbytes(rng.randrange(1, 30))
            journal.settle(slot, cost)
            held[slot] = (held[slot][0], cost)
        elif held:
            journal.free(slot)
            del held[slot]
        journal._map = stores._memory
        after = [held[s] for s in sorted(held)]
        for at, what in stores.done:
            for halfway in torn(image, at, what):
                (tmp_path / "dead.journal").write_bytes(halfway)
                left = only(tmp_path)
                assert left.found in (before, after)
                assert not left.damaged
                left.release()
                images += 1
            image = image[:at] + what + image[at + len(what) :]
        assert journal.found() == after
    assert images > 1000


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "settle", "free"]), st.binary(max_size=60)), max_size=80))
def test_against_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, course: list[tuple[str, bytes]]
) -> None:
    place = tmp_path_factory.mktemp("journal")
    journal = Journal(place, "a", slots=8)
    held: dict[int, tuple[bytes, bytes | None]] = {}
    for act, payload in course:
        if act == "take" and len(held) < 8:
            slot = journal.take(payload)
            assert slot not in held
            held[slot] = (payload, None)
        elif act == "settle" and any(s is None for _, s in held.values()):
            slot = next(slot for slot, (_, s) in held.items() if s is None)
            journal.settle(slot, payload)
            held[slot] = (held[slot][0], payload)
        elif act == "free" and held:
            slot, _ = held.popitem()
            journal.free(slot)
        assert journal.open_slots == len(held)
    expected = [held[slot] for slot in sorted(held)]
    assert journal.found() == expected
    journal.close()
    assert [left.found for left in abandoned(place)] == ([expected] if expected else [])
    shutil.rmtree(place)


WRITERS = r"""
import os, random, signal, struct, sys, time
from pathlib import Path
from apportion.serve.ledger.journal import Journal

place, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
said = struct.Struct("<cI")

def payload(kind, number):
    return random.Random(f"{kind}{number}").randbytes(20 + number * 7919 % 1900)

def write(name, rng):
    log = os.open(place / (name + ".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    journal, held, number = Journal(place, name, slots=64), [], 0
    while True:
        act = rng.random()
        if len(held) < 40 and act < 0.4:
            slot = journal.take(payload("reserve", number))
            os.write(log, said.pack(b"t", number))
            held.append([slot, number, False])
            number += 1
        elif held:
            one = rng.choice(held)
            if not one[2]:
                journal.settle(one[0], payload("settle", one[1]))
                os.write(log, said.pack(b"s", one[1]))
                one[2] = True
            else:
                os.write(log, said.pack(b"f", one[1]))
                journal.free(one[0])
                os.write(log, said.pack(b"F", one[1]))
                held.remove(one)

rng = random.Random(seed)
for number in range(rounds):
    name = f"w{number}"
    pid = os.fork()
    if not pid:
        write(name, random.Random(rng.random()))
    while not (place / (name + ".log")).exists():
        time.sleep(0.0005)
    time.sleep(rng.random() ** 3 * 0.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def payload(kind: str, number: int) -> bytes:
    return random.Random(f"{kind}{number}").randbytes(20 + number * 7919 % 1900)


def check_killed_writer(log: bytes, found: list[tuple[bytes, bytes | None]]) -> int:
    """Compare what a writer said it had done with what its journal holds; returns how many acts it said."""
    said = [(kind.decode(), number) for kind, number in struct.iter_unpack("<cI", log)]
    known = {kind: {number for k, number in said if k == kind} for kind in "tsfF"}
    taken = len(known["t"])
    reserved = {payload("reserve", number): number for number in range(taken + 1)}
    left = {reserved[r]: s for r, s in found}
    assert len(left) == len(found), "nothing is found twice"
    sure = known["t"] - known["f"]
    assert sure <= left.keys(), "every reservation that was taken and not freed is found"
    assert not left.keys() & known["F"], "nothing that was freed is found"
    new = left.keys() - known["t"]
    assert new <= {taken}, "at most the one that was being taken is found besides"
    dying = 0
    for number, settled in left.items():
        if number in known["s"]:
            assert settled == payload("settle", number), "every settlement that was made is found"
        elif settled is not None:
            assert settled == payload("settle", number)
            dying += 1
    assert dying + len(new) <= 1, "at most one act was under way"
    return len(said)


def kill_writers(place: Path, rounds: int, seed: int) -> None:
    subprocess.run([sys.executable, "-c", WRITERS, str(place), str(rounds), str(seed)], check=True)
    left = {each.holder: each for each in abandoned(place)}
    assert not list(place.glob("*.new"))
    acts = 0
    for number in range(rounds):
        log = (place / f"w{number}.log").read_bytes()
        log = log[: len(log) // 5 * 5]  # the last word may have been cut short, too
        journal = left.get(f"w{number}")
        assert journal is None or journal.damaged == 0
        acts += check_killed_writer(log, journal.found if journal is not None else [])
    for each in left.values():
        each.remove()
    assert acts > 20 * rounds


def test_killed_writers_lose_nothing_and_invent_nothing(tmp_path: Path) -> None:
    kill_writers(tmp_path, 80, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_many_more_killed_writers(tmp_path: Path, seed: int) -> None:
    kill_writers(tmp_path, 1000, seed)


def test_the_check_of_killed_writers_can_fail() -> None:
    said = struct.pack("<cI", b"t", 0) + struct.pack("<cI", b"t", 1) + struct.pack("<cI", b"s", 1)
    r, s = [payload("reserve", n) for n in range(4)], [payload("settle", n) for n in range(4)]
    right: list[tuple[bytes, bytes | None]] = [(r[0], None), (r[1], s[1])]
    assert check_killed_writer(said, right) == 3
    assert check_killed_writer(said, [*right, (r[2], None)]) == 3
    for wrong in (
        right[:1],
        [right[0], (r[1], None)],
        [(r[0], s[1]), right[1]],
        [*right, right[1]],
        [(r[0], s[0]), right[1], (r[2], None)],
    ):
        with pytest.raises(AssertionError):
            check_killed_writer(said, wrong)
    with pytest.raises(KeyError):
        check_killed_writer(said, [*right, (r[3], None)])
