"""Many runs: the same answers wherever they are made, failures by name, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_scenarios as made
import pytest

from apportion.simulate import pool
from apportion.simulate.pool import RunError

HERE = Path(__file__).parent


def test_one_after_the_other_and_on_processes_is_the_same() -> None:
    expected = {place: 7 + place * place for place in range(20)}
    assert dict(pool.run(made.square, 7, range(20), engine="serial")) == expected
    assert dict(pool.run(made.square, 7, range(20), workers=2)) == expected


ON_RAY = """
import sys
import made_scenarios as made
import ray
from apportion.simulate import pool
try:
    runtime = {"env_vars": {"PYTHONPATH": sys.argv[1]}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=runtime)
except Exception as error:  # its own servers need what a sandbox may not give, and time
    print(repr(error), file=sys.stderr)
    sys.exit(77)
print(sorted(pool.run(made.square, 7, range(20), engine="ray")))
try:
    list(pool.run(made.failing, 0, range(5), engine="ray", named=lambda job: f"run {job}"))
except pool.RunError as error:
    print(error)
ray.shutdown()
"""


@pytest.mark.slow
def test_on_ray_it_is_the_same(tmp_path: Path) -> None:
    """In a process of its own: it changes signals, the environment and where modules are found."""
    pytest.importorskip("ray")
    script = tmp_path / "main.py"
    script.write_text(ON_RAY)
    run = subprocess.run(
        [sys.executable, str(script), str(HERE)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    if run.returncode == 77:
        pytest.skip(f"Ray does not start here: {run.stderr[-500:]}")
    expected = [(place, 7 + place * place) for place in range(20)]
    assert run.stdout.splitlines()[-2:] == [f"{expected}", "run 3: It broke. Mend it."], run.stderr


def test_nothing_to_do_is_done() -> None:
    assert list(pool.run(made.square, 7, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_names_the_run_and_keeps_the_fix(workers: int) -> None:
    with pytest.raises(RunError) as caught:
        list(pool.run(made.failing, 0, range(5), workers=workers, named=lambda job: f"run {job}"))
    assert str(caught.value) == "run 3: It broke. Mend it."
    assert caught.value.field == "there"
    assert "failing" in "".join(caught.value.__notes__)


def test_a_failure_ends_the_others_while_its_traceback_is_still_held(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        list(pool.run(made.failing_beside_slow, str(tmp_path), [0, 1], workers=2))
    assert caught.tb is not None
    for worker in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name), 0)


def test_who_stops_listening_ends_the_others(tmp_path: Path) -> None:
    answers = pool.run(made.slow_but_the_first, str(tmp_path), [0, 1], workers=2)
    assert next(answers) == (0, 0)
    answers.close()
    for worker in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name), 0)


def test_an_error_that_nobody_meant_is_said_to_be_a_bug() -> None:
    with pytest.raises(RunError, match="5: ZeroDivisionError: by nought This is a bug"):
        list(pool.run(made.failing, 0, [4, 5], engine="serial"))


def test_a_worker_that_is_killed_ends_it() -> None:
    with pytest.raises(RunError, match="ended from outside"):
        list(pool.run(made.failing, 0, [7, 7], workers=2))


def test_ray_that_is_not_there_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"apportion\[ray\]"):
        list(pool.run(made.square, 7, [1], engine="ray"))


def test_an_interrupt_while_workers_are_started_is_held_back_and_not_lost() -> None:
    reached: list[bool] = []

    def start() -> None:
        with pool._deaf():
            signal.raise_signal(signal.SIGINT)
            reached.append(True)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may have it ignored in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert reached


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    code = (
        "import signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "import made_scenarios as made\n"
        "from apportion.simulate import pool\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # as above
        "    try:\n"
        "        list(pool.run(made.slow, sys.argv[2], range(8), workers=2))\n"
        "    except KeyboardInterrupt:\n"
        "        print('stopped')\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    began = tmp_path / "began"
    began.mkdir()
    command = [sys.executable, str(script), str(HERE), str(began)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len(list(began.iterdir())) < 2 and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=600)
    assert out == "stopped\n", error
    for worker in began.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(worker.name), 0)
