"""The cache that attached models generate with."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicCache, DynamicLayer

from reticle.hf._cache import GrowingLayer, QuantisedLayer
from reticle.hf._evicting import EvictingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class SparseCache(DynamicCache):
    """transformers' DynamicCache with buffers that double when full, or that start with room for `capacity` tokens.

        cache = reticle.hf.SparseCache(config=model.config, capacity=32768)
        model.generate(**inputs, past_key_values=cache)

    Attached models create one where `generate` would create a DynamicCache. It can be cropped, reordered, repeated,
    selected from, reset and copied (`copy.deepcopy`); the masker states of its sequences follow. Layers with a sliding
    window or a recurrent state are transformers' standard layers.

    With `bits` 8 or 4, keys and values are held as codes, in about half or a quarter of the bytes of bfloat16, and attention
    is computed from the codes; the newest `recent` tokens (128) are also held as they are, and read so. For attached models, on the CPU.

    With `evict`, keys that the attached generation pattern will never attend to again are dropped, separately per KV
    head: after the prompt, and every 64 tokens. The output stays the same, bit for bit. The last 64 tokens can still be
    cropped, except those of the prompt.
    """

    def __init__(
        self,
        config: PreTrainedConfig | None = None,
        *,
        capacity: int = 0,
        evict: bool = False,
        bits: int | None = None,
        recent: int | None = None,
    ) -> None:
        if not isinstance(evict, bool):
            raise TypeError(f"evict is {evict!r}; expected True or False")
        if bits is not None and (isinstance(bits, bool) or bits not in (4, 8)):
            raise ValueError(f"bits is {bits!r}; expected 8, 4 or None")
        if bits is None and recent is not None:
            raise ValueError(f"recent is {recent!r} without bits; expected bits=8 or 4, or no recent")
        newest = 128 if recent is None else recent
        if isinstance(newest, bool) or not isinstance(newest, int) or newest < 0:
            raise ValueError(f"recent is {recent!r}; expected a number of tokens, 0 or more")
        if evict and bits is not None:
            raise ValueError(f"bits is {bits} with evict=True, which is not supported; expected one of them")
        GrowingLayer(capacity)  # validates the capacity
        if evict and capacity:
            raise ValueError(
                f"capacity is {capacity} with evict=True; expected one of them: what is evicted needs no room"
            )
        super().__init__(config=config)
        made: Any = EvictingLayer if evict else functools.partial(GrowingLayer, capacity)
        if bits is not None:
            made = functools.partial(QuantisedLayer, bits, newest, capacity)
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = made
        self.layers = [made() if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values in the layers that grow in place, unused capacity included."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, GrowingLayer))
