"""Helper functions of sparse-attention-hub's maskers, for programs that call them: repeated heads, pages, codes, masks
of samples, hash weights. Reticle's maskers do not use them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

import reticle._core as _core
from reticle import FormatError
from reticle.hub.mask import Mask
from reticle.research import hat

HatWeights = dict[int, dict[str, list[Tensor]]]
_NAME = re.compile(r"hat\.\d+\.(query|key)_(matrix|bias)\.\d+")


# --- keys and values ------------------------------------------------------------------------------------------------


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    """Repeats each head of (batch, kv_heads, length, head_dim) `n_rep` times: (batch, kv_heads * n_rep, length,
    head_dim)."""
    return hidden_states if n_rep == 1 else hidden_states.repeat_interleave(n_rep, dim=1)


def pseudo_quantize(tensor: Tensor, q_bit: int) -> Tensor:
    """Each row of the last dimension, rounded to 2 ** q_bit values spaced evenly from its minimum to its maximum."""
    levels = 2**q_bit - 1
    least, largest = tensor.amin(-1, keepdim=True), tensor.amax(-1, keepdim=True)
    step = torch.where(largest == least, 1.0, largest - least) / levels
    steps = torch.round((tensor - least) / step).clamp(0, levels)
    return torch.add(least, steps * step)


# --- pages (Quest) --------------------------------------------------------------------------------------------------


def _by_page(tensor: Tensor, dim: int, page_size: int, num_pages: int, filler: float) -> Tensor:
    """Splits `dim` into (pages, page_size); missing elements of the last page are `filler`."""
    missing = num_pages * page_size - tensor.shape[dim]
    if missing < 0:
        raise ValueError(
            f"num_pages: {num_pages} pages of {page_size} hold fewer than {tensor.shape[dim]} keys; "
            f"expected at least {-(-tensor.shape[dim] // page_size)}"
        )
    shape = list(tensor.shape)
    shape[dim] = missing
    filled = torch.cat([tensor, tensor.new_full(shape, filler)], dim) if missing else tensor
    return filled.reshape(*shape[:dim], num_pages, page_size, *shape[dim + 1 :])


def compute_page_min_max(keys_rep: Tensor, page_size: int, num_pages: int) -> tuple[Tensor, Tensor]:
    """The minimum and the maximum of each channel in each page of keys.

    Args:
        keys_rep: (batch, heads, keys, head_dim).

    Returns:
        Two tensors (batch, heads, pages, head_dim).

    Raises:
        ValueError: when the pages are too few for the keys.
    """
    least = _by_page(keys_rep, 2, page_size, num_pages, float("inf")).amin(3)
    return least, _by_page(keys_rep, 2, page_size, num_pages, float("-inf")).amax(3)


def quest_page_scores(queries: Tensor, page_min: Tensor, page_max: Tensor) -> Tensor:
    """An upper bound of the scores of the keys in each page, (batch, heads, queries, pages): the sum over channels of
    max(q * min, q * max)."""
    by_query = queries.unsqueeze(3)
    return torch.maximum(by_query * page_min.unsqueeze(2), by_query * page_max.unsqueeze(2)).sum(-1)


def attention_mask_to_allowed_prob(attention_mask: Tensor, K: int) -> Tensor:
    """1 where a mask allows a key and 0 where it forbids it, float32. True forbids in bool masks, a negative number in
    others.

    Args:
        attention_mask: (..., keys); keys beyond `K` are dropped, and missing ones are forbidden. A mask of three
            dimensions gets a heads dimension.
    """
    mask = attention_mask[..., :K]
    allowed = (~mask if mask.dtype == torch.bool else mask >= 0).float()
    allowed = torch.nn.functional.pad(allowed, (0, K - allowed.shape[-1]))
    return allowed.unsqueeze(1) if allowed.dim() == 3 else allowed


def pages_valid(allowed_prob: Tensor, page_size: int, num_pages: int) -> Tensor:
    """True if any key of a page is allowed, (batch, queries, pages); allowed_prob is (batch, 1, queries, keys)."""
    return (_by_page(allowed_prob, 3, page_size, num_pages, 0.0) > 0).any(-1).squeeze(1)


def pages_to_token_mask(
    topk_pages: Tensor, K: int, page_size: int, device: torch.device | str, dtype: torch.dtype
) -> Tensor:
    """1 at the keys of the named pages, (batch, heads, queries, K); topk_pages holds page numbers, (batch, heads,
    queries, n)."""
    pages = -(-K // page_size)
    named = torch.zeros((*topk_pages.shape[:3], pages), dtype=dtype, device=device)
    named.scatter_(-1, topk_pages.to(device, torch.long), 1.0)
    return named.repeat_interleave(page_size, -1)[..., :K]


# --- inner products as distances (PQCache) --------------------------------------------------------------------------


def ip2l2_augment(xb: Tensor) -> tuple[Tensor, Tensor]:
    """Appends a coordinate that makes all vectors of a group equally long, so that the nearest vector by distance is
    the one with the largest inner product.

    Args:
        xb: (groups, vectors, dim).

    Returns:
        (groups, vectors, dim + 1), and the largest squared length in each group, (groups, 1, 1).
    """
    squares = xb.square().sum(-1, keepdim=True)
    largest = squares.amax(1, keepdim=True)
    return torch.cat([xb, (largest - squares).clamp_min(0).sqrt()], -1), largest


def ip2l2_augment_queries(xq: Tensor, phi: Tensor) -> Tensor:
    """Appends a coordinate 0 to queries (groups, queries, dim), to match `ip2l2_augment`'s vectors. `phi` is not
    used."""
    return torch.nn.functional.pad(xq, (0, 1))


# --- samples --------------------------------------------------------------------------------------------------------


def create_sampling_mask_with_per_head_budget(
    budgets: Tensor,
    sampling_probability: Tensor,
    seq_len_keys: int,
    start_idx: int,
    end_idx: int,
    dtype: torch.dtype = torch.float32,
) -> Mask:
    """A mask of keys drawn uniformly with replacement from [start_idx, end_idx), with a budget per query; a key that is
    drawn twice counts once.

    Args:
        budgets: integers (batch, heads, queries, 1), the number of draws.
        sampling_probability: (batch, heads, queries, 1), the p of the drawn keys in the mask.

    Raises:
        ValueError: when the range is empty.
    """
    rows = budgets.flatten().long()
    if int(rows.sum()) and not 0 <= start_idx < end_idx <= seq_len_keys:
        raise ValueError(f"[start_idx, end_idx) is [{start_idx}, {end_idx}); expected a range in [0, {seq_len_keys})")
    row = torch.arange(rows.numel(), device=rows.device).repeat_interleave(rows)
    drawn = torch.randint(start_idx, max(end_idx, start_idx + 1), row.shape, device=rows.device)
    return Mask.create_mask_from_indices(
        (*budgets.shape[:3], seq_len_keys),
        row * seq_len_keys + drawn,
        torch.nn.functional.pad(rows.cumsum(0), (1, 0)),
        sampling_probability.flatten()[row],
        dtype,
    )


# --- hash weights (HashAttention) -----------------------------------------------------------------------------------


def load_hat_weights(hat_weights_path: str | Path, device: torch.device | str = "cpu") -> HatWeights:
    """The weights in a file, {layer: {query_matrix, query_bias, key_matrix, key_bias}}, each a list over the linear
    maps.

    Args:
        hat_weights_path: a pickle, read as data and never executed, or safetensors as `reticle convert-hat` writes
            them.

    Raises:
        FormatError: naming the file, for any other content.
    """
    path = Path(hat_weights_path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors = load_file(path)
    else:
        content = hat.read(path)
        try:
            tensors = hat.tensors_of(content)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None
    weights: HatWeights = {}
    parts = {name: _NAME.fullmatch(name) for name in tensors}
    strangers = [name for name, match in parts.items() if match is None]
    if strangers or not tensors:
        raise FormatError(
            f"{path}: has a tensor {strangers[0]!r}; expected hat.<layer>.<query|key>_<matrix|bias>.<number>"
            if strangers
            else f"{path}: has no tensors"
        )
    for name in sorted(tensors, key=lambda name: (*name.split(".")[:3], int(name.rpartition(".")[2]))):
        _, layer, kind, _ = name.split(".")
        weights.setdefault(int(layer), {}).setdefault(kind, []).append(tensors[name].to(device))
    return weights


def convert_usa_weights_to_hash_attention(
    usa_checkpoint_path: str | Path,
    num_layers: int = 32,
    num_heads: int = 32,
    num_mlp_layers: int = 3,
    device: torch.device | str = "cpu",
) -> HatWeights:
    """Converts the training code's state dict to the form of `load_hat_weights`. `reticle convert-hat` writes
    safetensors.

    Raises:
        FormatError: when the file has another form, or other numbers of layers, heads or linear maps.
    """
    weights = load_hat_weights(usa_checkpoint_path, device)
    expected = (num_layers, num_heads, num_mlp_layers)
    first = next(iter(weights.values()))["query_matrix"]
    found = (len(weights), first[0].shape[0], len(first))
    if found != expected:
        raise FormatError(
            f"{usa_checkpoint_path}: has (layers, heads, linear maps) {found}; expected {expected}, as the arguments say"
        )
    return weights


def create_hat_weights_file_from_usa(
    usa_checkpoint_path: str | Path,
    target_hat_path: str | Path,
    num_layers: int = 32,
    num_heads: int = 32,
    num_mlp_layers: int = 3,
    device: torch.device | str = "cpu",
) -> None:
    """Writes the result of `convert_usa_weights_to_hash_attention` as a pickle. `reticle convert-hat` writes
    safetensors, which Reticle's configs read without a copy."""
    sizes = (num_layers, num_heads, num_mlp_layers)
    weights = convert_usa_weights_to_hash_attention(usa_checkpoint_path, *sizes, device)
    _core.write_file(target_hat_path, pickle.dumps(weights))
