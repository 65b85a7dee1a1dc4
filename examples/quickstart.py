import numpy as np
import reticle

random = np.random.default_rng(0)
queries = random.standard_normal((1, 8, 1, 64), dtype=np.float32)  # (batch, heads, queries, head_dim)
keys, values = random.standard_normal((2, 1, 2, 4096, 64), dtype=np.float32)  # two KV heads; torch tensors do, too
sparse = reticle.SparseAttention.from_file("configs/sink_local_oracle_top_k.json")
output, mask = sparse.run(queries, keys, values, reticle.SequenceState(), stage="generation")
dense, _ = reticle.attention(queries, keys, values)
print(mask, "error", np.linalg.norm(output - dense) / np.linalg.norm(dense))
