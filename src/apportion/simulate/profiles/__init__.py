"""Profiles by name or path: those that come with the package, your own, and rooflines of data sheets."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from apportion.simulate.profile import Profile, ProfileError, read
from apportion.simulate.profiles.machines import machine
from apportion.simulate.profiles.roofline import roofline
from apportion.simulate.profiles.shapes import shape

SHIPPED: Final = Path(__file__).parent / "shipped"
_ROOFLINE: Final = re.compile(r"roofline:([^/]+)/([^/]+)(?:/tp(\d+))?(?:/(4|8|16)bit)?")


def directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where a person's own profiles are kept: ``apportion/profiles`` in ``$XDG_DATA_HOME`` (``~/.local/share``)."""
    environ = os.environ if environ is None else environ
    base = environ.get("XDG_DATA_HOME") or environ.get("LOCALAPPDATA") or ""
    home = environ.get("HOME")
    root = Path(base) if os.path.isabs(base) else (Path(home) if home else Path.home()) / ".local" / "share"
    return root / "apportion" / "profiles"


def places(beside: Path | None = None) -> list[Path]:
    """Where names are looked up: ``profiles`` beside the configuration, a person's own folder, the package's."""
    near = Path.cwd() if beside is None else beside
    return [near / "profiles", directory(), SHIPPED]


def names(beside: Path | None = None) -> dict[str, Path]:
    """All profiles that can be named, with their files; the nearer folder hides the farther."""
    found: dict[str, Path] = {}
    for place in places(beside):
        for path in sorted(place.glob("*.json")):
            found.setdefault(path.stem, path)
    return found


def load(ref: str | Path, *, beside: Path | None = None) -> Profile:
    """The profile that ``ref`` names.

    A path (it ends in .json or has a separator) is relative to ``beside``, the folder of the configuration, by default
    the current one; `roofline:MACHINE/MODEL/tpN/Bbit` is computed from data sheets; anything else is a name of `names`.

    Raises:
        ProfileError: saying which names are near.
    """
    text = str(ref)
    if text.startswith("roofline:"):
        return _from_data_sheets(text)
    if text.endswith(".json") or "/" in text or os.sep in text:
        return read((Path.cwd() if beside is None else beside) / Path(text).expanduser())
    known = names(beside)
    if text not in known:
        near = difflib.get_close_matches(text, known, n=4, cutoff=0.4)
        hint = f"Near ones: {', '.join(near)}." if near else "`apportion profiles` lists them."
        raise ProfileError(
            f"There is no profile {text!r}.",
            field="profile",
            fix=f"{hint} `apportion calibrate` measures one.",
        )
    return read(known[text])


def _from_data_sheets(text: str) -> Profile:
    match = _ROOFLINE.fullmatch(text)
    if match is None:
        raise ProfileError(
            f"{text!r} is no roofline.",
            field="profile",
            fix="Write it as roofline:h100-sxm/llama3.1-8b/tp1, with /8bit for weights of 8 bits.",
        )
    tp, bits = int(match[3] or 1), int(match[4] or 16)
    return roofline(machine(match[1]), shape(match[2]), tp=tp, weight_bits=bits, name=text)
