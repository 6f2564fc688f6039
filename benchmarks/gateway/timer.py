"""A kernel timer that wakes an epoll loop within microseconds; epoll's own time-out counts milliseconds."""

from __future__ import annotations

import ctypes
import os

_CLOCK_MONOTONIC = 1
_NONBLOCK = 0o4000
_ABSOLUTE = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("at_s", ctypes.c_long),
        ("at_ns", ctypes.c_long),
    )


class Timer:
    """Readable on `fd` from the moment set by `arm`, on the clock of `time.monotonic_ns`."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _Spec()
        self._pointer = ctypes.byref(self._spec)

    def arm(self, at_ns: int) -> None:
        """Ring at this time; at once when it is past. Replaces the time set before."""
        self._spec.at_s, self._spec.at_ns = divmod(at_ns, 1_000_000_000)
        _libc.timerfd_settime(self.fd, _ABSOLUTE, self._pointer, None)

    def clear(self) -> None:
        """Stop being readable."""
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            pass
