"""Signals wait while a step starts, and end it in an orderly way afterwards."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from k400tiny_lib.workflow import signals
signals.defer()
print("deferred", flush=True)
time.sleep(1)
try:
    signals.arm()
    print("armed", flush=True)
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.5)  # a second signal must not disturb this
    print("cleaned up", flush=True)
"""


def start() -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "deferred\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait_until_armed", [False, True])
def test_one_signal_or_two_end_in_one_orderly_way(number: int, wait_until_armed: bool) -> None:
    process = start()
    assert process.stdout is not None
    if wait_until_armed:
        assert process.stdout.readline() == "armed\n"
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "cleaned up\n"
    assert process.returncode == 0


def test_a_signal_during_a_finalizer_whose_exceptions_python_ignores_ends_the_step() -> None:
    script = """
import os, signal, time
from k400tiny_lib.workflow import signals
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
signals.defer()
signals.arm()
try:
    finalized = Finalized()
    del finalized
    time.sleep(10)
except KeyboardInterrupt:
    print("cleaned up")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("cleaned up\n", "")


def test_a_step_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SCRIPT!r}], stdout=sys.stdout)
child.wait()
""",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "deferred\n"
    assert parent.stdout.readline() == "armed\n"
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.stdout.readline() == "cleaned up\n"


def test_a_step_whose_main_is_gone_before_it_looks_or_behind_a_shell_ends() -> None:
    # The shell outlives what started it, as that of `conda activate && python ...` does.
    script = f"""
import subprocess, sys, time
from k400tiny_lib.workflow import signals
signals.watch_in_children()
child = [sys.executable, "-c", {SCRIPT!r}]
shell = "sleep 2; " * (sys.argv[1] == "late") + '"$@"; true'
subprocess.Popen(["bash", "-c", shell, "bash", *child])
print("started", flush=True)
time.sleep(60)
"""
    for moment in ("late", "at once"):
        command = [sys.executable, "-c", script, moment]
        main = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert main.stdout is not None
        assert main.stdout.readline() == "started\n"
        if moment == "at once":
            assert main.stdout.readline() == "deferred\n"
        main.kill()
        assert main.stdout.read().endswith("cleaned up\n")
        main.stdout.close()
        main.wait()
