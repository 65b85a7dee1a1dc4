"""The old path of reticle.research.report."""

from reticle._moved import give_new_module
from reticle.research.report import *  # noqa: F403 - for type checkers

give_new_module("report")
