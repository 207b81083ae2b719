"""Fine-tuning that leaves the backbone alone at first."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from k400tiny_lib.models.weights import architecture_of_model


def freeze_backbone(model: nn.Module, frozen: bool) -> None:
    """Let only the head learn, or everything again; call it after `model.train()`.

    A new head's first gradients are noise that would spoil pretrained features. The statistics of
    BatchNorm stay, too: they are the backbone's as much as its weights.

    Args:
        model: the plain model, not wrapped.
        frozen: whether the backbone rests.
    """
    head = f"{architecture_of_model(model).head}."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or name.startswith(head))
    if frozen:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
