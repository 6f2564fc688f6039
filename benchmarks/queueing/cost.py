"""What a decision costs: the schedulers with many waiting, the queue with none."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from apportion.core import State, catalogue
from apportion.serve.queue import EndpointQueue, ticket
from benchmarks.queueing.sweep import policy

WAITING = (1, 10, 100, 1000)


def decisions(rounds: int) -> dict[str, Any]:
    """Microseconds of processor time of one `decide`, by method and number of waiting; and of entering and leaving."""
    found: dict[str, Any] = {"decide_us": {}, "enter_leave_us": {}}
    draw = random.Random(0)
    for name in catalogue.names("schedule"):
        scheduler = policy(name.partition("/")[2])
        found["decide_us"][name] = {}
        for n in WAITING:
            jobs = [
                ticket(
                    f"{index}",
                    arrived_s=10.0 * draw.random(),
                    value=0.01,
                    tenant=f"{index % 7}",
                    p_long=draw.random(),
                    expected_s=20.0 * draw.random(),
                    deadline_s=50.0,
                )
                for index in range(n)
            ]
            state = State(11.0, jobs, "", {"running": 1, "slots": 1})
            spent = []
            for _ in range(max(20, rounds // n)):
                began = time.thread_time()
                scheduler.decide(state)
                spent.append(time.thread_time() - began)
            spent.sort()
            found["decide_us"][name][str(n)] = 1e6 * spent[len(spent) // 2]
        found["enter_leave_us"][name] = asyncio.run(_entering(name, rounds))
    return found


async def _entering(name: str, rounds: int) -> float:
    """Microseconds to enter a queue with a free slot and leave it again."""
    queue = EndpointQueue(policy(name.partition("/")[2]), slots=4)
    job = ticket("job", arrived_s=0.0, expected_s=1.0)
    least = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(rounds):
            (await queue.enter(job)).leave(1.0)
        least = min(least, (time.thread_time() - began) / rounds)
    return 1e6 * least
