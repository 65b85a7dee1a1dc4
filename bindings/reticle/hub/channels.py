"""Files of sorted channels for `double_sparsity_top_k`: JSON, {"model.layers.<N>.self_attn.<projection>": a list of
channels per query head, the most important first}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Channels = dict[str, list[list[int]]]


@dataclass
class ChannelConfig:
    """sparse-attention-hub's name for channel statistics. It is empty, as in sparse-attention-hub: configs name a file
    (`sorted_channel_file`), which `load_sorted_channels_from_file` reads."""


def validate_channel_data(data: Any) -> None:
    """
    Raises:
        ValueError: naming the part that does not have this form.
    """
    if not isinstance(data, dict):
        raise ValueError("Channel data must be a dictionary")
    for key, heads in data.items():
        if not isinstance(heads, list):
            raise ValueError(f"Channel data for {key} must be a list")
        for i, channels in enumerate(heads):
            if not isinstance(channels, list):
                raise ValueError(f"Channel data for {key}[{i}] must be a list")
            if any(not isinstance(channel, int) or isinstance(channel, bool) for channel in channels):
                raise ValueError(f"Channel indices for {key}[{i}] must be integers")


def load_sorted_channels_from_file(file_path: str | Path) -> Channels:
    """The content of a file of sorted channels.

    Raises:
        ValueError: when the file is missing or does not have this form.
    """
    path = Path(file_path)
    if not path.exists():
        raise ValueError(f"Channel file not found: {path}")
    try:
        data: Channels = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid JSON in channel file: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("Channel file must contain a JSON object")
    validate_channel_data(data)
    return data


def extract_layer_channels(
    sorted_channels: Channels,
    layer_idx: int,
    projection_type: Literal["qk_proj", "q_proj", "k_proj"],
    device: torch.device | str = "cpu",
) -> Tensor:
    """A layer's channels, (heads, channels) int64.

    Raises:
        ValueError: when the file has none for it.
    """
    key = f"model.layers.{layer_idx}.self_attn.{projection_type}"
    if key not in sorted_channels:
        raise ValueError(f"No sorted channels found for {key}")
    if not sorted_channels[key]:
        raise ValueError(f"Empty channel data for {key}")
    return torch.tensor(sorted_channels[key], dtype=torch.long, device=device)
