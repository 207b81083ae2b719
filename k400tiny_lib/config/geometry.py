"""What clips each architecture is made for: its frames and pixels where the user gives none.

The numbers stand here and are not asked of torchvision because a parameter is settled, and a
mistake in it refused, without waiting for PyTorch. A test compares them with torchvision.
"""

from dataclasses import dataclass

CLIP_PARAMETERS = ("clip_len", "resize_size", "crop_size")


@dataclass(frozen=True)
class ClipSize:
    """The clips of an architecture.

    Attributes:
        clip_len: frames.
        resize_size: short side after resizing, in pixels.
        crop_size: side of the square crop, in pixels.
        min_clip_len, min_crop_size: the smallest clip that it learns from.
    """

    clip_len: int
    resize_size: int
    crop_size: int
    min_clip_len: int = 1
    min_crop_size: int = 1


CLIP_SIZES = {
    "r2plus1d_18": ClipSize(16, 128, 112),
    "r3d_18": ClipSize(16, 128, 112),
    "mc3_18": ClipSize(16, 128, 112),
    # What its head pools at once. torchvision scored its weights on 128 frames, more than the clips
    # of K400-Tiny have. Two pixels must be left for the last of its poolings (and two frames, 5 at
    # the start; but of 5 to 7 frames oneDNN computes wrong gradients for the first convolution in
    # time where a CPU has AVX-512, or writes past its memory).
    "s3d": ClipSize(16, 256, 224, min_clip_len=8, min_crop_size=17),
    "mvit_v2_s": ClipSize(16, 256, 224),
    "swin3d_t": ClipSize(32, 256, 224),
    # Frames and crop of pytorchvideo's builder (models/hub/x3d.py), resized as its hub page says:
    # https://pytorch.org/hub/facebookresearch_pytorchvideo_x3d
    "x3d_s": ClipSize(13, 182, 160),
    # Frames and crop that the head of pytorchvideo's builder pools at once (models/hub/resnet.py),
    # resized as https://pytorch.org/hub/facebookresearch_pytorchvideo_resnet says.
    "slow_r50": ClipSize(8, 256, 224),
}
