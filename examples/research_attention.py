"""sparse-attention-hub's interface: four research attentions over the same recorded tensors.

    python examples/research_attention.py

Needs torch.
"""

from pathlib import Path

import reticle
import torch
from reticle.hub import (
    AdaptiveSamplingMaskerConfig,
    LocalMaskerConfig,
    MagicPigConfig,
    OracleTopKConfig,
    OracleTopPMaskerConfig,
    ResearchAttention,
    ResearchAttentionConfig,
    SinkMaskerConfig,
)
from reticle.research.metrics import MetricLogger, summary

WINDOW = [SinkMaskerConfig(sink_size=16), LocalMaskerConfig(window_size=64)]
ATTENTIONS = {
    "oracle top-k": [*WINDOW, OracleTopKConfig(heavy_size=0.05)],
    "oracle top-p": [*WINDOW, OracleTopPMaskerConfig(top_p=0.8)],
    "vAttention": [
        *WINDOW,
        OracleTopKConfig(heavy_size=0.02),
        AdaptiveSamplingMaskerConfig(base_rate_sampling=0.02, epsilon=0.1, delta=0.1, init_offset=16, local_offset=64),
    ],
    "MagicPIG": [*WINDOW, MagicPigConfig(lsh_l=75, lsh_k=8)],
}

if __name__ == "__main__":
    import tempfile

    tensors = reticle.load_tensors(Path(__file__).parent / "data/attention_4096.safetensors")
    q, k, v = (torch.from_numpy(tensors[f"layers.2.{name}"]) for name in ("queries", "keys", "values"))
    for name, maskers in ATTENTIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "metrics.jsonl")
            with MetricLogger(log) as metrics:
                attention = ResearchAttention.create_from_config(ResearchAttentionConfig(maskers), metrics)
                attention.custom_attention(
                    None, q[:, :, -1:], k, v, None, q.shape[-1] ** -0.5, sparse_meta_data={}, layer_idx=2
                )
            found = summary(log)
        print(f"{name:14} {100 * found['density']:5.1f} % of the keys, error {found['output_error']:.3f}")
