"""The differentiable operations; `NativeSparseAttention.extend` does decoding."""

from reticle.nsa import (
    avgpool_compress,
    compressed_attention,
    linear_compress,
    topk_sparse_attention,
    weightedpool_compress,
)

__all__ = [
    "avgpool_compress",
    "compressed_attention",
    "linear_compress",
    "topk_sparse_attention",
    "weightedpool_compress",
]
