"""All benchmarks of this machine against their references, and one table of them.

    python -m benchmarks [--data ../shared/data/k400tiny_images] [--only video,inference]
    python -m benchmarks --only none        # the table alone, of the results that are there

Each runs in a process of its own, one after the other, without
`learning`, which trains for hours and runs only where `--only` names it. The table in
`benchmarks/README.md` is made of the headlines of all files in `benchmarks/results/`, of other
machines too; each has the commit that it was measured at.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from benchmarks.common import COMMIT, IN_SHORT, RESULTS, ROOT, current_commit, markdown

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def commands(data: str, annotations: str) -> dict[str, list[str]]:
    """The options of each benchmark by its name."""
    return {
        "data_loading": ["--data", data],
        "video": [],
        "training_step": [],
        "evaluation": ["--data_path", data, "--annotations", annotations],
        "inference": ["--data", data],
        "indexing": ["--clips", "2400", "24000"],
        "report": [],
        "main_overhead": [],
        "feature_cache": ["--data", data, "--gt_csv", ground_truth(data)],
        "learning": ["--data", data, "--gt_csv", ground_truth(data)],
    }


def ground_truth(data: str) -> str:
    """The table that lies beside the frame folders."""
    return str(Path(data).parent / "k400tiny_ground_truth.csv")


def prepare(data: str, folder: Path) -> str:
    """Write the annotations of the clips, for the benchmark that reads some; returns the file."""
    from k400tiny_lib.config import Config
    from k400tiny_lib.data.preparation.prepare import prepare
    from k400tiny_lib.data.sources.base import open_source

    config = Config(data_path=data, gt_csv=ground_truth(data), output_dir=str(folder))
    file = folder / "annotations.json"
    file.write_text(prepare(config, open_source(config)).annotations.to_json())
    return str(file)


def headlines(file: Path) -> list[list[str]]:
    """The rows of a result, each with its machine and commit; none in files without headlines."""
    text = file.read_text()
    table = text.partition(f"{IN_SHORT}\n\n")[2].split("\n\n")[0].splitlines()[2:]
    commit = re.search(rf"{COMMIT} (\S+)\.", text)
    machine = file.stem.partition("-")[2]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return [
        [*row, f"[{machine}](results/{file.name})", commit[1] if commit else ""] for row in cells
    ]


def table() -> str:
    """The table of all headlines, and what has no commit yet."""
    files = sorted(RESULTS.glob("*.md"))
    rows = [row for file in files for row in headlines(file)]
    header = ("", "ours", "reference", "times as good", "machine", "commit")
    others = [f"[{f.stem}](results/{f.name})" for f in files if not headlines(f)]
    note = (
        "Files without a row here were measured at earlier commits, or have tables that no single "
        f"line sums up: {', '.join(others)}."
    )
    return "\n\n".join([markdown(header, rows), note] if others else [markdown(header, rows)])


def write_table() -> None:
    """Put the table into benchmarks/README.md."""
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")


@click.command()
@click.option("--data", default="../shared/data/k400tiny_images", help="Directory of real clips.")
@click.option("--only", default="", help="Benchmarks to run, separated by commas; all without.")
def main(data: str, only: str) -> None:
    """Run, then write the table."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = [name.strip() for name in only.split(",") if name.strip()]
        annotations = prepare(data, Path(folder)) if not only or "evaluation" in wanted else ""
        options = commands(data, annotations)
        if unknown := set(wanted) - set(options) - {"none"}:
            raise click.UsageError(f"no benchmark {unknown.pop()!r} among {', '.join(options)}")
        for name in wanted or [name for name in options if name != "learning"]:
            if name != "none":
                print(f"{name}, commit {current_commit()}", flush=True)
                command = [sys.executable, "-m", f"benchmarks.{name}", *options[name]]
                subprocess.run(command, check=True, cwd=ROOT)
    write_table()


if __name__ == "__main__":
    main()
