"""What the processors of this machine do well."""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device has matrix instructions for bf16; elsewhere bf16 is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
