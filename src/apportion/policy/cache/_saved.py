"""State as JSON: containers with keys of any kind keep their kind and order, bytes and arrays are base64."""

from __future__ import annotations

import base64
import random
from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any

import numpy as np


class Part:
    """A piece of a method's state with attributes of its own, all of them saved."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `encode` made of another one."""
        for name, value in saved["part"].items():
            current = getattr(self, name)
            if isinstance(current, Part):
                current.restore(value)
            else:
                setattr(self, name, decode(value))


def encode(value: Any) -> Any:
    """``value`` as JSON; everything but plain values and lists becomes an object whose one key is its kind."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list():
            return [encode(item) for item in value]
        case tuple():
            return {"tuple": [encode(item) for item in value]}
        case OrderedDict():
            return {"ordered": [[key, encode(item)] for key, item in value.items()]}
        case dict():
            return {"mapping": [[key, encode(item)] for key, item in value.items()]}
        case set():
            return {"set": list(value)}
        case deque():
            return {"queue": [encode(item) for item in value]}
        case bytearray():
            return {"bytes": base64.b64encode(value).decode()}
        case array():
            return {"doubles": base64.b64encode(value.tobytes()).decode()}
        case np.ndarray():
            return {"array": [value.dtype.str, list(value.shape), base64.b64encode(value.tobytes()).decode()]}
        case random.Random():
            version, internal, gauss = value.getstate()
            return {"random": [version, list(internal), gauss]}
        case Part():
            return {"part": {name: encode(item) for name, item in vars(value).items()}}
        case _:
            raise TypeError(f"JSON cannot carry a {type(value).__name__}")


def decode(value: Any) -> Any:
    """What `encode` was given; a `Part` is restored by its owner instead."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    ((kind, body),) = value.items()
    match kind:
        case "tuple":
            return tuple(decode(item) for item in body)
        case "ordered":
            return OrderedDict((key, decode(item)) for key, item in body)
        case "mapping":
            return {key: decode(item) for key, item in body}
        case "set":
            return set(body)
        case "queue":
            return deque(decode(item) for item in body)
        case "bytes":
            return bytearray(base64.b64decode(body))
        case "doubles":
            return array("d", base64.b64decode(body))
        case "array":
            kept, shape, data = body
            return np.frombuffer(base64.b64decode(data), dtype=np.dtype(kept)).reshape(shape).copy()
        case "random":
            generator = random.Random()
            generator.setstate((body[0], tuple(body[1]), body[2]))
            return generator
        case _:
            raise TypeError(f"saved state of an unknown kind {kind!r}")
