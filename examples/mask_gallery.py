"""What a dozen patterns attend to, drawn beside each other.

    python examples/mask_gallery.py [--output gallery.png]

Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import reticle

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent.parent
PATTERNS = (
    *("sink_local", "streaming_llm", "sink_local_oracle_top_k", "vattention", "big_bird", "longformer"),
    *("sparse_transformer", "quest", "snap_kv", "minference", "flex_prefill", "x_attention"),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="gallery.png")
    arguments = parser.parse_args()
    tensors = reticle.load_tensors(ROOT / "examples/data/attention_4096.safetensors")
    q, k, v = (tensors[f"layers.1.{name}"][:, :, -512:] for name in ("queries", "keys", "values"))
    figure, axes = plt.subplots(3, 4, figsize=(14, 11), layout="constrained")
    for axis, name in zip(axes.flat, PATTERNS, strict=True):
        sparse = reticle.SparseAttention.from_file(ROOT / "configs" / f"{name}.json")
        mask = sparse.mask(q, k, v, reticle.SequenceState(), causal=True, layer=1)
        mask.plot(ax=axis)
        axis.set_title(f"{name}: {100 * mask.density:.0f} %")
    figure.savefig(arguments.output, dpi=100)
    print(f"{arguments.output} written")
