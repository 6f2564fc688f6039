"""What the future says of each request, for methods that are told (S289); bounds are in `apportion.simulate.bounds`."""

from __future__ import annotations

from collections.abc import Sequence


def phases(keys: Sequence[int], capacity: int) -> list[bool]:
    """For each request whether its key is not asked for in the phase after its own (S289)."""
    numbers, seen, phase = list[int](), set[int](), 0
    for key in keys:
        if key not in seen and len(seen) == capacity:
            seen, phase = set(), phase + 1
        seen.add(key)
        numbers.append(phase)
    asked = set(zip(numbers, keys, strict=True))
    return [(phase + 1, key) not in asked for phase, key in zip(numbers, keys, strict=True)]
