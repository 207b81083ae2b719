"""How large the report of an evaluation is, and how long a browser takes to open it.

    python -m benchmarks.report

Reports of random predictions on a thousand clips of 10, 100 and 400 classes are opened in headless
Chromium; the time is from the start of the navigation to the page's `load` event, by the page's
own clock. Printed and written to `benchmarks/results/`.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import click
import numpy as np

from benchmarks.common import Headline, markdown, write_result
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.evaluation.evaluation import evaluate_predictions
from k400tiny_lib.evaluation.predictions import table_of_probabilities
from k400tiny_lib.evaluation.report import Fact, Provenance, render_report
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import Geometry, LoadedModel
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.system import cpu_name

CLIPS = 1000
CLASSES = (10, 100, 400)
_CLOCK = "<script>onload = () => {document.title = `${performance.now()} ms`}</script>"


def report_of(num_classes: int) -> str:
    """The report of random predictions, three in ten of them right."""
    rng = np.random.default_rng(0)
    targets = np.arange(CLIPS) % num_classes
    probabilities = rng.dirichlet(np.full(num_classes, 0.02), size=CLIPS) + 1e-6
    probabilities[np.arange(CLIPS), targets] += 0.3
    probabilities /= probabilities.sum(1, keepdims=True)
    names = [f"class number {n}" for n in range(num_classes)]
    clips = [Clip(f"clip{n}", (0, 39), int(t), f"source{n // 2}") for n, t in enumerate(targets)]
    categories = {name: number for number, name in enumerate(names)}
    model = LoadedModel(
        build_model("r2plus1d_18", 1), "r2plus1d_18", Geometry(16, (128,), 112), names, "epoch 30"
    )
    evaluation = evaluate_predictions(
        "test",
        {"test": table_of_probabilities(clips, probabilities)},
        Annotations(categories, {"train": [], "val": [], "test": clips}),
        model,
        ViewProtocol(1, 1),
    )
    return render_report(evaluation, Provenance([Fact("commit", "none")], {}))


def milliseconds_to_open(file: Path) -> float:
    """From the start of the navigation to the end of loading, in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    page = subprocess.run(
        [browser, *options, file.as_uri()], check=True, capture_output=True, text=True
    ).stdout
    found = re.search(r"<title>([\d.]+) ms</title>", page)
    assert found, "the page did not load"
    return float(found[1])


@click.command()
@click.option("--rounds", default=5, help="Times that each report is opened, for a median.")
def main(rounds: int) -> None:
    """Measure, print and write the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for num_classes in CLASSES:
            text = report_of(num_classes)
            file = Path(folder) / f"{num_classes}.html"
            # The policy of the page forbids scripts.
            timed = text.replace("default-src 'none';", "").replace("</head>", f"{_CLOCK}</head>")
            file.write_text(timed)
            size = len(text.encode()) / 1e6
            took = median(milliseconds_to_open(file) for _ in range(rounds))
            rows.append((str(num_classes), f"{size:.2f}", f"{took:.0f}"))
    text = (
        f"# The report of an evaluation in a browser\n\n{cpu_name()}, headless Chromium, {CLIPS} "
        f"clips; medians of {rounds} times.\n\n"
    )
    _, size_, took_ = rows[-1]
    limits = "at most 5 MB, 1000 ms"
    headline = Headline(
        f"the report of {CLASSES[-1]} classes", f"{size_} MB, {took_} ms to open", limits, ""
    )
    table = markdown(("classes", "MB", "ms to open"), rows)
    write_result("report", cpu_name(), text + table, [headline])


if __name__ == "__main__":
    main()
