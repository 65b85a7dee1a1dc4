"""The old path of reticle.research.hat."""

from reticle._moved import give_new_module
from reticle.research.hat import *  # noqa: F403 - for type checkers

give_new_module("hat")
