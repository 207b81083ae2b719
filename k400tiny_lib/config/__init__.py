"""The parameters of every step: declared once, settled from recipe and command line."""

from k400tiny_lib.config.parameters import AUTO, NONE, Config
from k400tiny_lib.config.steps import CHAIN, STEPS, Step, parameters_of, resolve

__all__ = ["AUTO", "CHAIN", "NONE", "STEPS", "Config", "Step", "parameters_of", "resolve"]
