"""What a person looks at after an evaluation: the confusion matrix and one page."""

import base64
import html
import io
from string import Template

import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .2rem .7rem; text-align: right }
tr:nth-child(even) { background: #f4f4f6 } td:first-child, th:first-child { text-align: left }
.big { font-size: 2.2rem; margin: 0 } img { max-width: 100% }
</style>
<h1>$title</h1>
<p class="big">top-1 $acc1 %</p>
<p>95 % interval $low to $high %, resampling the $groups sources of $clips clips. $protocol</p>
<h2>Scores</h2>$scores
<h2>Confusion matrix</h2><img alt="confusion matrix" src="data:image/png;base64,$matrix">
<h2>Classes, worst first</h2>$classes
<h2>Mistakes, most confident first</h2>$mistakes
</html>
""")
_MISTAKES = 20


def plot_confusion(table: pd.DataFrame, class_names: list[str]) -> Figure:
    """Confusion matrix over the classes that occur or are predicted; rows are true classes."""
    present = sorted(set(table["target"]) | set(table["predicted"]))
    matrix = confusion_matrix(table["target"], table["predicted"], labels=present)
    size = 2.5 + 0.42 * len(present)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(matrix, cmap="Blues")
    names = [class_names[index] for index in present]
    axes.set_xticks(range(len(present)), names, rotation=90)
    axes.set_yticks(range(len(present)), names)
    axes.set(xlabel="predicted", ylabel="true")
    for row, column in zip(*matrix.nonzero(), strict=True):
        dark = matrix[row, column] > matrix.max() / 2
        axes.text(
            column, row, matrix[row, column], ha="center", va="center",
            color="white" if dark else "black",
        )  # fmt: skip
    return figure


def render_report(
    table: pd.DataFrame,
    scores: dict[str, float],
    classes: pd.DataFrame,
    class_names: list[str],
    split: str,
    protocol: str,
) -> str:
    """One self-contained HTML page about an evaluation."""
    mistakes = table[table["predicted"] != table["target"]].nlargest(_MISTAKES, "confidence")
    shown = pd.DataFrame(
        {
            "clip": mistakes["video"],
            "true": [class_names[index] for index in mistakes["target"]],
            "predicted": [class_names[index] for index in mistakes["predicted"]],
            "confidence": mistakes["confidence"],
        }
    )
    picture = io.BytesIO()
    plot_confusion(table, class_names).savefig(picture, format="png", dpi=80)
    return _PAGE.substitute(
        title=f"Evaluation on {html.escape(split)}",
        acc1=f"{scores[f'{split}_acc1']:.1f}",
        low=f"{scores[f'{split}_acc1_ci_low']:.1f}",
        high=f"{scores[f'{split}_acc1_ci_high']:.1f}",
        groups=table["group"].nunique(),
        clips=len(table),
        protocol=html.escape(protocol),
        scores=pd.DataFrame(scores.items(), columns=["metric", "value"]).to_html(
            index=False, border=0, float_format="%.4g"
        ),
        matrix=base64.b64encode(picture.getvalue()).decode(),
        classes=classes.sort_values("f1").to_html(index=False, border=0, float_format="%.3f"),
        mistakes=shown.to_html(index=False, border=0, float_format="%.3f")
        if len(shown)
        else "<p>None.</p>",
    )


def protocol_text(num_clips: int, num_crops: int) -> str:
    """The protocol behind a number, in words."""
    clips = "one clip" if num_clips == 1 else f"{num_clips} clips"
    crops = "the centre crop" if num_crops == 1 else f"{num_crops} crops"
    mean = "" if num_clips * num_crops == 1 else ", probabilities averaged"
    return f"Protocol: {clips} per video over its whole segment, {crops}{mean}."
