"""Loss and accuracies of an epoch, exact over batches and processes."""

import torch
import torch.distributed as dist
from torch import Tensor

TOP_K = (1, 5)


class Meters:
    """Mean loss and top-k accuracies over the clips of an epoch, not over its batches.

    Attributes:
        sums: float64 (2 + number of accuracies,): number of clips, sum of their losses, hits per
            accuracy; of this process alone. An interrupted epoch continues from them.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._top_k = [k for k in TOP_K if k <= num_classes]
        self.sums = torch.zeros(2 + len(self._top_k), dtype=torch.float64, device=device)

    def update(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: its mean loss (scalar), logits (N, K), targets int64 (N,)."""
        best = logits.detach().float().topk(self._top_k[-1]).indices  # (N, largest k)
        hits = (best == targets[:, None]).double()
        count = torch.full((), len(targets), dtype=torch.float64, device=self.sums.device)
        values = [count, loss.detach().double() * count, *(hits[:, :k].sum() for k in self._top_k)]
        self.sums += torch.stack(values)

    def compute(self, prefix: str) -> dict[str, float]:
        """The values over all processes; accuracies in percent. Every process must call it."""
        sums = self.sums.clone()
        if dist.is_initialized():
            dist.all_reduce(sums)
        clips, loss, *hits = sums.tolist()
        accuracies = {
            f"{prefix}_acc{k}": 100 * n / clips for k, n in zip(self._top_k, hits, strict=True)
        }
        return {f"{prefix}_loss": loss / clips} | accuracies
