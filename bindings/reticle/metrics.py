"""The old path of reticle.research.metrics."""

from reticle._moved import give_new_module
from reticle.research.metrics import *  # noqa: F403 - for type checkers

give_new_module("metrics")
