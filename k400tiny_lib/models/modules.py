"""Modules that replace parts of published models: for clips of any size, or many processes."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.video import MViT


class FittingPool(nn.AvgPool3d):
    """The average pooling of a published head; its window shrinks to fit a smaller clip.

    Identical to the published pooling for every clip that the published model accepts.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool features (N, C, T, H, W)."""
        assert isinstance(self.kernel_size, tuple)
        window = [min(size) for size in zip(self.kernel_size, x.shape[2:], strict=True)]
        return F.avg_pool3d(x, window, stride=1)

    @classmethod
    def like(cls, pool: nn.AvgPool3d) -> "FittingPool":
        """With the window of another pooling, at stride 1."""
        return cls(pool.kernel_size, stride=1)


class AnySizeMViT(MViT):
    """torchvision's MViT for clips of any size.

    The grid of tokens follows the clip. torchvision interpolates the table of relative positions
    to the grid; the table keeps the shape of the published weights, made for 16 x 224 x 224.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips, float32 (N, 3, T, H, W)."""
        x = self.conv_proj(x)
        grid = tuple(x.shape[2:])
        x = self.pos_encoding(x.flatten(2).transpose(1, 2))  # (N, C, T, H, W) -> (N, tokens, C)
        for block in self.blocks:
            x, grid = block(x, grid)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def share_batch_statistics(model: nn.Module) -> nn.Module:
    """Replace every BatchNorm of a model by one over the clips of all processes.

    Args:
        model: its modules are replaced in place.

    Returns:
        The model.
    """
    # PyTorch's own conversion drops the activations that timm's BatchNorm holds.
    from timm.layers.norm_act import convert_sync_batchnorm

    converted: nn.Module = convert_sync_batchnorm(model)
    return converted
