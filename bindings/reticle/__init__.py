"""Mask algebra and sparse attention: masks as values, attention over just their entries."""

from reticle._core import (
    AttentionPlan,
    ConfigError,
    DeviceError,
    Error,
    FormatError,
    Mask,
    PluginError,
    SequenceState,
    ShapeError,
    SparseAttention,
    ValueError,
    attention,
    get_num_threads,
    plan,
    set_num_threads,
)
from reticle._core import __version__ as __version__

__all__ = [
    "AttentionPlan",
    "ConfigError",
    "DeviceError",
    "Error",
    "FormatError",
    "Mask",
    "PluginError",
    "SequenceState",
    "ShapeError",
    "SparseAttention",
    "ValueError",
    "attention",
    "get_num_threads",
    "plan",
    "set_num_threads",
]
