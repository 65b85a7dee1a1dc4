"""The operations with gradients; those of decoding are `NativeSparseAttention.extend`."""

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
