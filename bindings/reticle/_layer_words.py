"""Keyword arguments that a model's layers pass to attention beside queries, keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Keyword arguments that change nothing here: the model's bookkeeping, and facts that the mask and the cache already
#: hold.
WITHOUT_EFFECT = frozenset(
    (
        *("cache", "cache_position", "past_key_value", "past_key_values", "position_embeddings", "position_ids"),
        *("use_cache", "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "labels"),
        *("num_items_in_batch", "max_length_q", "max_length_k", "deterministic", "use_top_left_mask", "input_ids"),
    )
)


def not_understood(others: Mapping[str, Any]) -> list[str]:
    """The names of the given keyword arguments that may change what attention computes."""
    return [
        word for word, given in others.items() if word not in WITHOUT_EFFECT and not (given is None or given is False)
    ]
