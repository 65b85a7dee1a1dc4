"""The old path of reticle.research.evaluate."""

from reticle._moved import give_new_module
from reticle.research.evaluate import *  # noqa: F403 - for type checkers

give_new_module("evaluate")
