"""The child process: one llama.cpp server on a loopback port, alive exactly as long as its parent wants it.

`python -m apportion.serve.local.child` reads ``EngineSettings`` from its standard input and answers with
one ``Report``. When its standard input ends, by the parent's wish or by the parent's death, it exits at
once: open connections break, as they must, for llama.cpp's own shutdown ends a running stream as if it were
complete.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from apportion.serve.local.settings import EngineSettings, Report

_PR_SET_PDEATHSIG = 1
_MIB = 1 << 20
_GENERATION_BATCH_TOKENS = 512
_LAST_WORDS_S = 10


def main() -> NoReturn:
    """Serve until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code may print; only the report belongs on the pipe
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineSettings)
    _tie_to(settings.parent_pid)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    _go_first_when_memory_ends()
    try:
        import xllamacpp
    except ImportError as error:
        _refuse(out, Report(error=str(error), missing=True))
    try:
        server = xllamacpp.Server(_parameters(xllamacpp, settings))
    except RuntimeError as error:
        _refuse(out, Report(error=str(error)))
    out.write(msgspec.json.encode(Report(address=server.listening_address)) + b"\n")
    out.close()
    while True:
        signal.pause() if hasattr(signal, "pause") else threading.Event().wait()


def _parameters(xllamacpp: Any, settings: EngineSettings) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = settings.path
    params.model_alias = {settings.alias}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [settings.api_key]
    params.cors_origins = ""
    params.cors_credentials = False
    params.ui = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.n_parallel = settings.slots
    params.n_ctx = settings.slots * settings.context_tokens
    # Threads spin at barriers for the slowest of them: with one on every core, anything else that runs stalls
    # all (measured on two cores under load: 3 tokens/s with two threads, 30 with one; idle: 70 and 41).
    params.cpuparams.n_threads = settings.threads or max(
        1, min(params.cpuparams.n_threads, usable_cores() - 1)
    )
    # A thread serves one connection for as long as it is open, health probes included.
    params.n_threads_http = settings.connections
    params.cache_prompt = settings.reuse_prompts
    params.cache_ram_mib = settings.prompt_cache_bytes // _MIB if settings.reuse_prompts else 0
    # Between two batches every stream gets its next token, so a long prompt delays the others by one batch;
    # an embedding's whole input has to fit in one.
    params.n_batch = params.n_ubatch = _GENERATION_BATCH_TOKENS
    if settings.embeddings:
        params.embedding = True
        params.n_batch = params.n_ubatch = max(settings.context_tokens, _GENERATION_BATCH_TOKENS)
        if settings.pooling != "model":
            kind = f"LLAMA_POOLING_TYPE_{settings.pooling.upper()}"
            params.pooling_type = getattr(xllamacpp.llama_pooling_type, kind)
    return params


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may really use: its affinity, and a container's CPU quota where there is one."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = cgroup.read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def _tie_to(parent_pid: int) -> None:
    """Linux: have the kernel end this process with its parent, even while the model loads."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if sys.platform != "win32" and os.getppid() != parent_pid:
        os._exit(0)


def _exit_with_parent() -> NoReturn:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)


def _go_first_when_memory_ends() -> None:
    """Linux: when memory runs out, the kernel shall take the model, which comes back, and not the proxy."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _refuse(out: BinaryIO, report: Report) -> NoReturn:
    """Report, and end as programs do: only then does the thread that writes llama.cpp's log get to its end, where the
    reason stands. Should that hang, the alarm ends it.
    """
    out.write(msgspec.json.encode(report) + b"\n")
    if hasattr(signal, "alarm"):
        signal.alarm(_LAST_WORDS_S)
    sys.exit(1)


if __name__ == "__main__":
    main()
