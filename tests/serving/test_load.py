"""A real server under load: nobody's video costs it its memory, or others their answers.

K400TINY_LOAD_MINUTES=2 python -m pytest -m slow tests/serving/test_load.py
"""

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import mlflow
import pytest
import torch

from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.registry.video_log import log_video_classifier
from tests.helpers import hostile_videos as hostile
from tests.helpers.server import Server, in_base64, post, request_for, serving
from tests.helpers.store import make_store, tracking

MINUTES = float(os.environ.get("K400TINY_LOAD_MINUTES", "10"))
NUM_CLIENTS, NUM_GOOD = 10, 4
MOST_MEGABYTES = 2500
TIMEOUT = 60  # seconds, of MLflow's scoring server


@pytest.fixture(scope="module")
def model_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An R(2+1)D-18 of its usual size, untrained, as a video classifier."""
    folder = tmp_path_factory.mktemp("load")
    torch.manual_seed(0)
    module = FramesToProbabilities(build_model("r2plus1d_18", 400), Geometry(16, (128,), 112))
    facts = {"class_names": [f"class {number}" for number in range(400)], "clip_len": 16}
    (folder / "model.onnx").write_bytes(export_graph(module.eval(), 18, facts).SerializeToString())
    with tracking(make_store(folder)):
        experiment = mlflow.create_experiment("load", f"file:{folder}/store")
        with mlflow.start_run(experiment_id=experiment):
            uri = log_video_classifier(folder / "model.onnx")
        yield uri


def bad_requests() -> dict[str, bytes]:
    """Bodies by kind."""
    one_by_one = {
        "thin": hostile.thin(16, 16000),
        "thinner": hostile.thin(2, 16000),
        "tall": hostile.thin(16000, 64),
        "huge": hostile.many_pixels(300),
        "endless": hostile.many_pixels(36_000),
        "streams": hostile.many_streams(40),
        "samples": hostile.many_samples(30_000_000),
        "fragment": hostile.many_samples(30_000_000, fragmented=True),
        "boxes": hostile.many_boxes(100_000),
        "cut": hostile.ordinary()[:-3000],
        "zeros": bytes(10_000_000),
    }
    bodies = {name: request_for(in_base64(video)) for name, video in one_by_one.items()}
    endless = in_base64(one_by_one["endless"])
    return bodies | {
        "many endless": request_for(*[endless] * 4),
        "no base64": request_for("/etc/passwd"),
        "no JSON": b'{"dataframe_records": [{"video": "',
        "no rows": request_for(),
    }


class Load:
    """Ten clients that send one request after another, and what came back."""

    def __init__(self, server: Server, seconds: float) -> None:
        self.server, self.end = server, time.monotonic() + seconds
        self.bad = bad_requests()
        self.good = request_for(in_base64(hostile.ordinary(250, (336, 448))), top_k=3)
        status, self.expected = post(server.address, self.good, TIMEOUT)
        assert status == 200
        self.seconds: list[float] = []  # of each good request
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.problems: list[str] = []
        self.megabytes = [server.megabytes()]

    def run(self) -> None:
        """Send requests from all clients until the time is over."""
        kinds = itertools.cycle(self.bad)
        turn = threading.Lock()

        def next_kind() -> str:
            with turn:
                return next(kinds)

        jobs: list[Callable[[], None]] = [self._send_good] * NUM_GOOD
        jobs += [lambda: self._send_bad(next_kind())] * (NUM_CLIENTS - NUM_GOOD)
        threads = [threading.Thread(target=self._repeat, args=(job,)) for job in jobs]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.megabytes.append(self.server.megabytes())
            time.sleep(0.05)

    def _repeat(self, job: Callable[[], None]) -> None:
        while time.monotonic() < self.end:
            try:
                job()
            except OSError as error:
                self.problems.append(repr(error))

    def _send_good(self) -> None:
        start = time.monotonic()
        status, answer = post(self.server.address, self.good, TIMEOUT)
        self.seconds.append(time.monotonic() - start)
        self.statuses["good", status] += 1
        if answer != self.expected:
            self.problems.append(f"good: {status} {str(answer)[-300:]}")
        time.sleep(0.1)

    def _send_bad(self, kind: str) -> None:
        status, answer = post(self.server.address, self.bad[kind], 2 * TIMEOUT)
        self.statuses[kind, status] += 1
        if status >= 500 or "stack_trace" in answer:
            self.problems.append(f"{kind}: {status} {str(answer)[-300:]}")


@pytest.mark.slow
def test_good_requests_are_answered_whatever_others_send(model_uri: str, tmp_path: Path) -> None:
    with serving(model_uri, tmp_path) as server:
        load = Load(server, 60 * MINUTES)
        load.run()
        slowest, usual = max(load.seconds), median(load.seconds)
        print(f"{MINUTES:g} minutes, {load.statuses.total()} requests: {dict(load.statuses)}")
        print(f"{len(load.seconds)} good ones, median {usual:.1f} s, slowest {slowest:.1f} s")
        print(f"memory: {load.megabytes[0]:.0f} MB before, {max(load.megabytes):.0f} MB at most")
        deadline = time.monotonic() + 60
        while server.megabytes() > load.megabytes[0] + 300 and time.monotonic() < deadline:
            time.sleep(1)
        after = server.megabytes()
        print(f"{after:.0f} MB when all was over")
    assert load.problems == []
    assert slowest < TIMEOUT
    assert max(load.megabytes) < MOST_MEGABYTES
    assert after < load.megabytes[0] + 300
