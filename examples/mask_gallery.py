"""A picture of a dozen patterns that shows which masker chose each key: sinks blue, windows orange, others by masker.

    python examples/mask_gallery.py [--output gallery.png] [--dark]

Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import reticle
from reticle import maskers as m

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DARK = {
    "axes.facecolor": "#0d1117",
    "axes.labelcolor": "white",
    "axes.titlecolor": "white",
    "figure.facecolor": "#0d1117",
    "text.color": "white",
}

WINDOW = [m.SinkConfig(sink_size=8), m.LocalConfig(window_size=32)]
PATTERNS = {
    "sinks and a window": WINDOW,
    "dilated window": [m.LocalConfig(window_size=24, dilation=6)],
    "A-shape": [m.AShapeConfig(n_init=32, n_local=64)],
    "Tri-shape": [m.TriShapeConfig(n_init=32, n_local=64, n_last=60)],
    "BigBird": [m.BigBirdConfig(block_size=32, global_blocks=1, window_blocks=3, random_blocks=2)],
    "strided": [m.StridedConfig(stride=48)],
    "vertical and slash": [m.VerticalSlashConfig(vertical_size=30, slash_size=40, window_size=16, attention_sinks=8)],
    "FlexPrefill": [m.FlexPrefillConfig(gamma=0.95, block_size=32)],
    "XAttention": [m.XAttentionConfig(threshold=0.9, block_size=32)],
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
    parser.add_argument("--output", default="gallery.png", help="PNG file to write")
    parser.add_argument("--dark", action="store_true", help="dark ground")
    arguments = parser.parse_args()
    plt.style.use("reticle.pictures")
    plt.rcParams.update(DARK if arguments.dark else {})
    tensors = reticle.load_tensors(Path(__file__).parent / "data/attention_4096.safetensors")
    queries = tensors["layers.1.queries"][:, :, :512]
    keys, values = (tensors[f"layers.1.{name}"][:, :, -512:] for name in ("keys", "values"))
    figure, axes = plt.subplots(3, 4, figsize=(14, 11.2), layout="constrained")
    for axis, (name, maskers) in zip(axes.flat, PATTERNS.items(), strict=True):
        pipeline = m.pipeline(maskers, causal=True)
        inputs = (queries, keys, values)
        reticle.plot_contributions(
            pipeline.contributions(*inputs, reticle.SequenceState(), layer=1), head=1, ax=axis, legend=False
        )
        density = pipeline.mask(*inputs, reticle.SequenceState(), layer=1).density
        axis.set(xlabel="", ylabel="", xticks=[], yticks=[])
        axis.set_title(f"{name}  {100 * density:.0f} %", fontsize=15)
        axis.grid(visible=False)
    figure.savefig(arguments.output, dpi=80)
    print(f"{arguments.output} written")
