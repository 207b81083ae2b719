"""Cores of this process: a process on one core starts one thread and one worker."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.helpers.export import toy_graph

pytestmark = pytest.mark.skipif(shutil.which("taskset") is None, reason="needs taskset")


def on_first_core(code: str, *arguments: str) -> str:
    """The output of a program that may use one core."""
    command = ["taskset", "-c", "0", sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_one_core_is_one_loader_worker() -> None:
    code = (
        "from k400tiny_lib.system import available_cores\n"
        "from k400tiny_lib.data.loading.loader import worker_count\n"
        "print(available_cores(), *(worker_count('auto', n) for n in (1, 2)))"
    )
    assert on_first_core(code) == "1 1 1"


def test_one_core_is_one_thread_of_onnx_runtime(tmp_path: Path) -> None:
    """Counts the process's threads before and after, not what the session was asked for."""
    model = tmp_path / "toy.onnx"
    proto = toy_graph()
    for key, value in (("class_names", '["a", "b", "c"]'), ("clip_len", "4")):
        proto.metadata_props.add(key=key, value=value)
    model.write_bytes(proto.SerializeToString())
    code = (
        "import sys\n"
        "import numpy as np\n"
        "import psutil\n"
        "from pathlib import Path\n"
        "from k400tiny_lib.serving.onnx_classifier import open_classifier\n"
        "def threads(**options):\n"
        "    before = psutil.Process().num_threads()\n"
        "    classifier = open_classifier(Path(sys.argv[1]), device='cpu', **options)\n"
        "    classifier.predict(np.zeros((1, 4, 32, 32, 3), np.uint8))\n"
        "    return psutil.Process().num_threads() - before, classifier\n"
        "print(threads()[0], threads(num_threads=3)[0])"
    )
    # The thread that calls does its share: a pool of n threads starts n - 1.
    assert on_first_core(code, str(model)) == "0 2"
