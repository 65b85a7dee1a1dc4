"""What a dozen patterns attend to, drawn beside each other.

    python examples/mask_gallery.py [--output gallery.png]

Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import reticle
from reticle import maskers as m

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WINDOW = [m.SinkConfig(sink_size=8), m.LocalConfig(window_size=32)]
PATTERNS = {
    "sinks and a window": WINDOW,
    "dilated window": [m.LocalConfig(window_size=24, dilation=6)],
    "A-shape": [m.AShapeConfig(n_init=32, n_local=64)],
    "Tri-shape": [m.TriShapeConfig(n_init=32, n_local=64, n_last=60)],
    "BigBird": [m.BigBirdConfig(block_size=32, global_blocks=1, window_blocks=3, random_blocks=2)],
    "strided": [m.StridedConfig(stride=48)],
    "vertical and slash": [m.VerticalSlashConfig(vertical_size=30, slash_size=40, window_size=16, attention_sinks=8)],
    "FlexPrefill": [m.FlexPrefillConfig(gamma=0.8, block_size=32)],
    "XAttention": [m.XAttentionConfig(threshold=0.7, block_size=32)],
    "Quest": [*WINDOW, m.QuestTopKConfig(heavy_size=32, page_size=8)],
    "oracle top-k": [*WINDOW, m.OracleTopKConfig(heavy_size=24)],
    "vAttention": [
        *WINDOW,
        m.OracleTopKConfig(heavy_size=16),
        m.AdaptiveSamplingConfig(base_rate_sampling=16, epsilon=0.2, delta=0.2, init_offset=8, local_offset=32),
    ],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="gallery.png")
    arguments = parser.parse_args()
    tensors = reticle.load_tensors(Path(__file__).parent / "data/attention_4096.safetensors")
    q, k, v = (tensors[f"layers.1.{name}"][:, :, -512:] for name in ("queries", "keys", "values"))
    figure, axes = plt.subplots(3, 4, figsize=(14, 11), layout="constrained")
    for axis, (name, maskers) in zip(axes.flat, PATTERNS.items(), strict=True):
        mask = m.pipeline(maskers, causal=True).mask(q, k, v, reticle.SequenceState(), layer=1)
        mask.plot(ax=axis)
        axis.set_title(f"{name}: {100 * mask.density:.0f} %")
    figure.savefig(arguments.output, dpi=100)
    print(f"{arguments.output} written")
