"""A custom masker in Python beside C++ maskers: it keeps the blocks of keys whose mean key scores best.

python examples/own_masker.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import reticle
from reticle import Mask
from reticle.maskers import LocalConfig, SinkConfig, pipeline


@reticle.register("block_means", source="examples/own_masker.py", cost="O(keys * head_dim) per query")
@dataclass(frozen=True)
class BlockMeans(reticle.Masker):
    """The blocks of keys whose mean has the highest product with the query."""

    blocks: Annotated[int, "blocks kept per query"] = 4
    block_size: Annotated[int, "keys in a block"] = 64

    def __post_init__(self):
        if self.blocks < 1:
            raise ValueError("blocks must be >= 1")
        if self.block_size < 1:
            raise ValueError("block_size must be >= 1")

    def select(self, inputs, previous, state):
        batch, heads, queries, keys = inputs.shape
        whole = keys // self.block_size  # a partial block at the end belongs to the local window
        if whole == 0:
            return Mask.empty(inputs.shape)
        # Means are kept across decode steps, so only blocks completed since the last call are computed.
        means = state.get("means", np.empty((batch, inputs.kv_heads, 0, inputs.keys.shape[3]), np.float32))
        fresh = inputs.keys[:, :, means.shape[2] * self.block_size : whole * self.block_size].astype(np.float32)
        fresh = fresh.reshape(batch, inputs.kv_heads, -1, self.block_size, fresh.shape[3]).mean(3)
        means = state["means"] = np.concatenate([means, fresh], 2)
        scores = inputs.queries.astype(np.float32) @ means.repeat(heads // inputs.kv_heads, 1).swapaxes(2, 3)
        best = np.sort(np.argsort(-scores, axis=-1, kind="stable")[..., : self.blocks], -1)
        row_ptr = np.arange(batch * heads * queries + 1) * best.shape[-1]
        begins = best.reshape(-1, 1) * self.block_size
        return Mask.runs(inputs.shape, row_ptr, np.concatenate([begins, begins + self.block_size], 1))


if __name__ == "__main__":
    data = Path(__file__).parent / "data/attention_4096.safetensors"
    tensors = reticle.load_tensors(data)
    q, k, v = (tensors[f"layers.1.{name}"] for name in ("queries", "keys", "values"))
    window = [SinkConfig(sink_size=4), LocalConfig(window_size=128)]
    for maskers in (window, [*window, BlockMeans(blocks=4)], [*window, BlockMeans(blocks=16)]):
        sparse, state = pipeline(maskers), reticle.SequenceState()
        errors, densities = [], []
        for step in range(4000, 4096):  # one query at a time, as in decoding
            tensors_of_step = q[:, :, [step - 4096 + 512]], k[:, :, : step + 1], v[:, :, : step + 1]
            _, _, measured = sparse.measure(*tensors_of_step, state, stage="generation")
            errors.append(measured["relative_error"])
            densities.append(measured["density"])
        names = ", ".join(masker.type for masker in maskers)
        print(f"{names}: {100 * np.mean(densities):.1f} % of the keys, error {np.mean(errors):.3f}")
