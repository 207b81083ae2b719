"""pytorchvideo's transforms, importable with current versions of torchvision.

pytorchvideo 0.1.5 imports `torchvision.transforms.functional_tensor`, a module that torchvision
0.17 made private (pytorchvideo#258). Register it under its former name before the import.
"""

import sys
import warnings

import torchvision.transforms._functional_tensor as functional_tensor

sys.modules.setdefault("torchvision.transforms.functional_tensor", functional_tensor)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its TorchScript decorators are deprecated
    from pytorchvideo.transforms.functional import uniform_crop, uniform_temporal_subsample
    from pytorchvideo.transforms.mix import MixVideo
    from pytorchvideo.transforms.rand_augment import RandAugment

__all__ = ["MixVideo", "RandAugment", "uniform_crop", "uniform_temporal_subsample"]
