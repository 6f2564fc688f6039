"""Joules that the processors of this machine have taken, where its kernel tells (RAPL)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def rapl(root: Path = Path("/sys/class/powercap")) -> Callable[[], float] | None:
    """A counter of joules of all processor packages, or None where there is none that may be read.

    The kernel's counters begin again at a maximum; the returned one does not.
    """
    packages = [
        (zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
        for zone in sorted(root.glob("*-rapl:?"))
        if _readable(zone / "energy_uj") and _readable(zone / "max_energy_range_uj")
    ]
    if not packages:
        return None
    last = [int(path.read_text()) for path, _ in packages]
    total = 0.0

    def joules() -> float:
        nonlocal total
        for i, (path, wraps) in enumerate(packages):
            now = int(path.read_text())
            total += ((now - last[i]) % (wraps + 1)) * 1e-6
            last[i] = now
        return total

    return joules


def _readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True
