"""The parameters of every step: declared once, resolved from recipe and command line."""

from k400tiny_lib.config.declaration import AUTO, IMAGENET, NONE
from k400tiny_lib.config.parameters import PARAMETERS, Config
from k400tiny_lib.config.reading import read_config
from k400tiny_lib.config.steps import CHAIN, STEPS, parameters_of, resolve

__all__ = [
    "AUTO",
    "CHAIN",
    "IMAGENET",
    "NONE",
    "PARAMETERS",
    "STEPS",
    "Config",
    "parameters_of",
    "read_config",
    "resolve",
]
