"""The cache that attached models generate with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicCache, DynamicLayer

from reticle.hf._cache import GrowingLayer
from reticle.hf._evicting import EvictingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class SparseCache(DynamicCache):
    """transformers' DynamicCache with buffers that grow by doubling (or have `capacity` tokens from the start).

        cache = reticle.hf.SparseCache(config=model.config, capacity=32768)
        model.generate(**inputs, past_key_values=cache)

    Attached models make one where `generate` would make a DynamicCache. It can be cropped, reordered, repeated, selected
    from, reset and copied (`copy.deepcopy`); what maskers keep of its sequences follows. Layers with a sliding window or a
    recurrent state are transformers' own.

    With `evict` keys that the attached generation pattern will never attend to again are dropped, each KV head's own: after
    the prompt, and every 64 tokens. The output stays the same, bit for bit. It can then be cropped by the tokens since.
    """

    def __init__(self, config: PreTrainedConfig | None = None, *, capacity: int = 0, evict: bool = False) -> None:
        if not isinstance(evict, bool):
            raise TypeError(f"evict is {evict!r}; expected True or False")
        GrowingLayer(capacity)  # or its error
        if evict and capacity:
            raise ValueError(
                f"capacity is {capacity} with evict=True; expected one of them: what is evicted needs no room"
            )
        super().__init__(config=config)
        made: Any = EvictingLayer if evict else functools.partial(GrowingLayer, capacity)
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = made
        self.layers = [made() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, room for more included, of the layers that are ours."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, GrowingLayer))
