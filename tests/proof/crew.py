"""Workers as processes: hired, killed, told to stop. Forked from a server that has everything imported: quick."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from .worker import Plan, main

PATIENCE_S = 300.0

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(
    ["proof.worker", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql", "psycopg"]
)
# The server takes its path from here only; without it, it would import nothing beforehand and be slow, in silence.
with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    multiprocessing.forkserver.ensure_running()


class Hand:
    """One worker process."""

    def __init__(self, plan: Plan, seed: int) -> None:
        ours, theirs = _fork.Pipe()
        self.boss: Connection = ours
        self.process = _fork.Process(target=main, args=(plan, seed, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.ready = False

    def wait_ready(self) -> None:
        """Until it has recovered what others left, and works."""
        if not self.ready:
            assert self._hear() == "ready"
            self.ready = True

    def _hear(self) -> object:
        assert self.boss.poll(PATIENCE_S), f"worker {self.process.pid} says nothing"
        return self.boss.recv()

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self.process.kill()
        self.process.join(PATIENCE_S)
        self.process.close()
        self.boss.close()

    def pause(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def stop(self) -> Counter[str]:
        """Let it finish what is under way and return everything. Its counts."""
        self.wait_ready()
        self.boss.send("stop")
        return self.wait()

    def wait(self) -> Counter[str]:
        """The counts of one that ends by itself."""
        self.wait_ready()
        counts = self._hear()
        assert isinstance(counts, Counter), counts
        self.process.join(PATIENCE_S)
        assert self.process.exitcode == 0
        self.process.close()
        self.boss.close()
        return counts


class Crew:
    """The workers of one test. None is left at the end."""

    def __init__(self, plan: Plan, size: int, rng: random.Random) -> None:
        self.plan = plan
        self.rng = rng
        self.size = size
        self.hands: list[Hand] = []
        self.killed = 0

    def __enter__(self) -> Self:
        for _ in range(self.size):
            self.hire()
        for hand in self.hands:
            hand.wait_ready()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for hand in self.hands:
            hand.kill()
        self.hands.clear()

    def hire(self) -> Hand:
        self.hands.append(Hand(self.plan, self.rng.getrandbits(32)))
        return self.hands[-1]

    def wait_for(self, bills: int) -> None:
        """Until the upstream has sent so many bills: all is under way."""
        until = time.monotonic() + PATIENCE_S
        while self.plan.meter.read_bytes().count(b"\n") < bills:
            assert time.monotonic() < until, "hardly anything was asked of the upstream"
            time.sleep(0.01)

    def kill_one(self) -> None:
        """SIGKILL to one, and another in its place."""
        self.hands.pop(self.rng.randrange(len(self.hands))).kill()
        self.killed += 1
        self.hire().wait_ready()

    def stop(self) -> Counter[str]:
        """All finish. The sum of their counts."""
        hands, counts = list(self.hands), Counter[str]()
        for hand in hands:
            hand.wait_ready()
            hand.boss.send("stop")
        for hand in hands:
            counts += hand.wait()
            self.hands.remove(hand)
        return counts
