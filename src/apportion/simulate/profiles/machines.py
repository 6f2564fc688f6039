"""What common accelerators can do, from their makers' public data sheets (dense rates, without sparsity)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from apportion.simulate.profile import ProfileError

_GB: Final = 1e9
_TERA: Final = 1e12


@dataclass(frozen=True, slots=True)
class Machine:
    """One accelerator: memory, its bandwidth, floating-point rates by bits of a number, board power, and the bandwidth
    to its neighbours in one direction.
    """

    name: str
    memory_bytes: float
    bytes_per_s: float
    flops: dict[int, float]
    watts: float
    link_bytes_per_s: float

    def rate(self, bits: int) -> float:
        """Operations a second on numbers of ``bits``: of the narrowest kind that it has and that holds them."""
        return self.flops[min((b for b in self.flops if b >= bits), default=max(self.flops))]


def _gpu(
    name: str, gb: float, gb_s: float, t16: float, t8: float, t4: float, watts: float, link: float
) -> Machine:
    rates = {16: t16 * _TERA, 8: t8 * _TERA, 4: t4 * _TERA}
    return Machine(name, gb * _GB, gb_s * _GB, {b: r for b, r in rates.items() if r}, watts, link * _GB)


# name, memory GB, GB/s, TFLOP/s at 16, 8 and 4 bits (0: no floating-point numbers of that width), W, link GB/s
MACHINES: Final = {
    each.name: each
    for each in (
        _gpu("t4", 16, 320, 65, 0, 0, 70, 16),
        _gpu("v100-sxm", 32, 900, 125, 0, 0, 300, 150),
        _gpu("a10", 24, 600, 125, 0, 0, 150, 32),
        _gpu("a40", 48, 696, 149.7, 0, 0, 300, 56),
        _gpu("a100-pcie", 80, 1935, 312, 0, 0, 300, 32),
        _gpu("a100-sxm-40gb", 40, 1555, 312, 0, 0, 400, 300),
        _gpu("a100-sxm", 80, 2039, 312, 0, 0, 400, 300),
        _gpu("l4", 24, 300, 121, 242, 0, 72, 32),
        _gpu("l40s", 48, 864, 362, 733, 0, 350, 32),
        _gpu("h100-pcie", 80, 2000, 756, 1513, 0, 350, 64),
        _gpu("h100-sxm", 80, 3350, 989, 1979, 0, 700, 450),
        _gpu("h200-sxm", 141, 4800, 989, 1979, 0, 700, 450),
        _gpu("b200-sxm", 180, 7700, 2250, 4500, 9000, 1000, 900),
        _gpu("mi300x", 192, 5300, 1307, 2615, 0, 750, 448),
        _gpu("rtx-4090", 24, 1008, 165, 330, 0, 450, 32),
    )
}
_SHORT: Final = {
    "v100": "v100-sxm",
    "a100": "a100-sxm",
    "h100": "h100-sxm",
    "h200": "h200-sxm",
    "b200": "b200-sxm",
}


def machine(name: str) -> Machine:
    """The accelerator called ``name``; raises `ProfileError` with near names."""
    found = MACHINES.get(_SHORT.get(name.lower(), name.lower()))
    if found is None:
        near = difflib.get_close_matches(name.lower(), [*MACHINES, *_SHORT], n=3) or list(MACHINES)
        raise ProfileError(
            f"There is no data sheet of {name!r}.", field="machine", fix=f"Known: {', '.join(near)}."
        )
    return found
