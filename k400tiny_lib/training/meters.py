"""Loss and accuracies of an epoch, exact over batches and processes."""

import torch
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

TOP_K = (1, 5)


class Meters:
    """Collects an epoch: mean loss and top-k accuracies over clips, not over batches."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._loss = MeanMetric().to(device)
        self._accuracy = MetricCollection(
            {
                f"acc{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                for k in TOP_K
                if k <= num_classes
            }
        ).to(device)

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits (N, K), targets int64 (N,)."""
        self._loss.update(loss.detach(), weight=len(targets))
        self._accuracy.update(logits.detach().float(), targets)

    def compute(self, prefix: str) -> dict[str, float]:
        """The values over all processes; accuracies in percent. Every process must call it."""
        values = {f"{prefix}_loss": float(self._loss.compute())}
        for name, value in self._accuracy.compute().items():
            values[f"{prefix}_{name}"] = 100 * float(value)
        return values
