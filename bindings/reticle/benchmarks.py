"""The old path of reticle.research.benchmarks."""

from reticle._moved import give_new_module
from reticle.research.benchmarks import *  # noqa: F403 - for type checkers

give_new_module("benchmarks")
