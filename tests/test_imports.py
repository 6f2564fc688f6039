"""Who may import whom (the table of the design), and what importing the package pulls in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "apportion"

ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "solve": {"core"},
    "predict": {"core"},
    "measure": {"core"},
    "reason": {"core"},
    "policy": {"core", "solve"},
    "serve": {"core", "measure"},
    "simulate": {"core", "measure"},
    "plan": {"core", "solve", "predict", "simulate", "measure"},
    "compress": {"core", "solve", "measure"},
    "train": {"core", "solve", "measure"},
    "web": {"core", "measure"},
}
"""Room to the other rooms it may import. `cli` may import any, inside the command that needs it."""

CLI_ONLY = {"click", "rich"}
"""Third-party packages of the command line; `core` takes none at all."""

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever in the file; ``from a import b`` yields ``a`` and
    ``a.b``.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import in line {node.lineno}"
            yield node.module or "", node.lineno
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def rooms(module: str) -> str | None:
    """The room that a module of the package is in; None for other packages and for the package itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "apportion" and len(parts) > 1 and (SOURCE / parts[1]).is_dir() else None


def test_every_room_is_in_the_table() -> None:
    found = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found <= ALLOWED.keys() | {"cli"}
    for name in found:
        assert (SOURCE / name / "__init__.py").is_file(), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_import_table(path: Path) -> None:
    room = room_of(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    wrong = []
    for module, line in imports(tree):
        other = rooms(module)
        if other and other != room and room not in ("", "cli") and other not in ALLOWED[room]:
            wrong.append(f"{path.relative_to(SOURCE)}:{line} {room} imports {module}")
        top = module.partition(".")[0]
        if room == "core" and top not in sys.stdlib_module_names | {"apportion"}:
            wrong.append(f"{path.relative_to(SOURCE)}:{line} core imports {module}")
        if room != "cli" and top in CLI_ONLY:
            wrong.append(f"{path.relative_to(SOURCE)}:{line} only the command line imports {module}")
    assert not wrong, "\n".join(wrong)


def loaded_by(statement: str, *, site: bool = False) -> set[str]:
    """Modules that a fresh interpreter has after ``statement`` and had not before; sockets are refused.

    ``site`` makes third-party packages available (and lets their ``.pth`` files load what they like, before).
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules)\n"
        "def refuse(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.bind', 'socket.getaddrinfo'): raise RuntimeError(event)\n"
        "sys.addaudithook(refuse)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    command = [sys.executable, *(() if site else ("-S",)), "-I", "-c", code, str(SOURCE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_apportion_is_light() -> None:
    assert loaded_by("import apportion") == {"apportion"}


def test_import_cli_loads_no_room() -> None:
    """Rooms (but core, for its errors) are imported inside commands, so that `apportion --help` is quick."""
    loaded = loaded_by("import apportion.cli.app", site=True)
    assert {name for name in loaded if rooms(name) not in (None, "cli", "core")} == set()


HEAVY = {
    "asyncio",
    "socket",
    "ssl",
    "http",
    "urllib.request",
    "multiprocessing",
    "subprocess",
    "unittest",
    "doctest",
}


def test_import_core_is_standard_library_without_network() -> None:
    loaded = loaded_by("import apportion.core")
    others = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in others} == {"apportion"}
    assert {name for name in others if name.startswith("apportion.")} <= {
        f"apportion.{part}" for part in ("core", *(f"core.{p.stem}" for p in (SOURCE / "core").glob("*.py")))
    }
    assert not loaded & HEAVY


def test_names_that_core_exports_are_there() -> None:
    import apportion.core

    assert len(set(apportion.core.__all__)) == len(apportion.core.__all__)
    for name in apportion.core.__all__:
        assert hasattr(apportion.core, name), name
