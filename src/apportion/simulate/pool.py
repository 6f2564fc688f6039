"""Many runs at once: one after the other, on a process pool, or on Ray. The answers are the same.

What all runs share is sent once to each worker. A run that fails is named; nothing is left running when the caller
stops listening, be it by an error or by an interrupt.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context, resource_tracker
from typing import Any, Final, Literal, NamedTuple

from apportion.core.errors import ApportionError

Engine = Literal["serial", "processes", "ray"]
Work = Callable[[Any, Any], Any]
"""From what all runs share and one job to its answer: a function of a module, so that it can be sent."""
Answers = Generator[tuple[int, Any], None, None]
_EACH: Final = 4
"""Runs that are handed out at most for each worker."""


class RunError(ApportionError):
    """A run among many has failed, or the workers cannot be had."""

    code = "run"


class _Failed(NamedTuple):
    """An error as it comes back from a worker."""

    message: str
    field: str | None
    fix: str | None
    traceback: str


def run(
    work: Work,
    common: Any,
    jobs: Sequence[Any],
    *,
    engine: Engine = "processes",
    workers: int | None = None,
    named: Callable[[Any], str] = str,
) -> Answers:
    """The answers ``work(common, job)`` as they come, each with the place of its job. Who stops listening before the
    end closes it.

    Raises `RunError` with the name of the job that failed.
    """
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if engine == "ray":
        source: Answers = _on_ray(work, common, jobs)
    elif engine == "serial" or workers < 2:
        source = ((place, _attempt(work, common, job)) for place, job in enumerate(jobs))
    else:
        source = _on_processes(work, common, jobs, workers)
    with closing(source):  # at once: a traceback that is kept would keep it, and its workers
        for place, answer in source:
            if isinstance(answer, _Failed):
                error = RunError(
                    f"{named(jobs[place])}: {answer.message}", field=answer.field, fix=answer.fix
                )
                error.add_note(answer.traceback)
                raise error
            yield place, answer


def _attempt(work: Work, common: Any, job: Any) -> Any:
    try:
        return work(common, job)
    except ApportionError as error:
        return _Failed(error.message, error.field, error.fix, traceback.format_exc())
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        return _Failed(message, None, "This is a bug: please report it.", traceback.format_exc())


_shared: tuple[Work, Any] | None = None


def _begin(work: Work, common: Any) -> None:
    """In a worker: what it works on. An interrupt is for the caller, who ends the workers."""
    global _shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared = work, common


def _answer(job: Any) -> Any:
    assert _shared is not None  # noqa: S101
    return _attempt(*_shared, job)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here do not hear interrupts, from their first moment on. One that comes meanwhile is
    held back, not lost.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_processes(work: Work, common: Any, jobs: Sequence[Any], workers: int) -> Answers:
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # it lets interrupts through when it starts
    executor = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (work, common))
    waiting = iter(enumerate(jobs))
    places: dict[Any, int] = {}
    try:
        while True:
            while len(places) < _EACH * workers and (job := next(waiting, None)) is not None:
                with _deaf():
                    places[executor.submit(_answer, job[1])] = job[0]
            if not places:
                break
            for future in wait(places, return_when=FIRST_COMPLETED).done:
                place = places.pop(future)
                yield place, future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "A worker process was ended from outside.",
            fix="Perhaps memory was short: ask for fewer --workers.",
        ) from error
    finally:
        if places:
            for process in [*(executor._processes or {}).values()]:
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)


def _on_ray(work: Work, common: Any, jobs: Sequence[Any]) -> Answers:
    try:
        import ray
    except ImportError as error:
        raise RunError(
            "Ray is not installed.", field="--engine", fix="pip install 'apportion[ray]'"
        ) from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    remote = ray.remote(_attempt)
    places: dict[Any, int] = {}
    try:
        shared = ray.put(common)
        places = {remote.remote(work, shared, job): place for place, job in enumerate(jobs)}
        while places:
            done, _ = ray.wait([*places])
            for reference in done:
                place = places.pop(reference)
                yield place, ray.get(reference)
    finally:
        for reference in places if ray.is_initialized() else ():  # cancel would start it anew
            ray.cancel(reference, force=True)
        if ours:
            ray.shutdown()
