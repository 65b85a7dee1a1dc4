"""Attention from an installed wheel equals numpy's."""

import numpy as np
import reticle

random = np.random.default_rng(0)
queries, keys, values = (random.standard_normal((1, 2, n, 16), np.float32) for n in (5, 40, 40))
sparse = reticle.SparseAttention.from_json(
    '{"maskers": [{"type": "sink", "sink_size": 2}, {"type": "oracle_top_k", "heavy_size": 6}]}'
)
output, mask = sparse.run(queries, keys, values, reticle.SequenceState())
scores = queries @ keys.swapaxes(2, 3) / 4
scores[mask.to_dense() == 0] = -np.inf
weights = np.exp(scores - scores.max(-1, keepdims=True))
expected = weights / weights.sum(-1, keepdims=True) @ values
assert np.abs(output - expected).max() < 1e-5, np.abs(output - expected).max()
assert mask.nnz == 8 * 10
print(reticle.__version__, reticle.__file__)
