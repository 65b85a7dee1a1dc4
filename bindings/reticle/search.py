"""The old path of reticle.research.search."""

from reticle._moved import give_new_module
from reticle.research.search import *  # noqa: F403 - for type checkers

give_new_module("search")
