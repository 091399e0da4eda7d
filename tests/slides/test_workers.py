"""Worker processes: order, errors, and sudden ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from histoloom.errors import UserError
from histoloom.slides.workers.workers import Workers


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_the_order_of_the_jobs(count):
    with Workers(count) as workers:
        assert workers.run(abs, jobs=[-3, 1, -2], label="a") == [3, 1, 2]
        assert workers.run(len, jobs=["ab", ""], label="b") == [2, 0]


@pytest.mark.parametrize("count", [1, 2])
def test_errors_reach_the_caller(count):
    with Workers(count) as workers, pytest.raises(TypeError):
        workers.run(abs, jobs=[1, "x", 2], label="a")  # type: ignore[arg-type]


def ignores_ctrl_c(_job):
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_ctrl_c_is_left_to_the_process_that_started_them():
    with Workers(2) as workers:
        assert workers.run(ignores_ctrl_c, jobs=[1, 2], label="x") == [True, True]


def test_a_process_that_dies_gets_one_line():
    with Workers(2) as workers, pytest.raises(UserError, match=r"runtime\.workers=1"):
        workers.run(os._exit, jobs=[1, 1], label="a")


def test_a_script_without_a_main_guard_gets_one_line(tmp_path):
    script = tmp_path / "script.py"
    head = "from histoloom.slides.workers.workers import Workers\n"
    work = "with Workers(2) as w: print(w.run(abs, jobs=[-1, -2], label='a'))\n"
    script.write_text(head + work, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    script.write_text(head + 'if __name__ == "__main__":\n    ' + work, encoding="utf-8")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "[1, 2]\n"
