"""Error against density for three ways to choose keys, with their settings searched, on recorded tensors.

    python examples/quality_curves.py [--output curves.png] [--workers 2]

Needs pandas, tqdm and matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
from reticle.maskers import LocalConfig, OracleTopKConfig, QuestTopKConfig, SinkConfig, SocketConfig
from reticle.research import search

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHARES = search.choice(0.01, 0.02, 0.05, 0.1, 0.2)
WINDOW = [SinkConfig(sink_size=4), LocalConfig(window_size=64)]
SPACES = {
    "the best keys (oracle)": [*WINDOW, OracleTopKConfig(heavy_size=SHARES)],
    "pages by their bounds (Quest)": [
        *WINDOW,
        QuestTopKConfig(heavy_size=SHARES, page_size=search.choice(16, 64)),
    ],
    "soft hashing (SOCKET)": [*WINDOW, SocketConfig(heavy_size=SHARES, K=8, L=search.choice(20, 60))],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="curves.png")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--queries", type=int, default=16)
    arguments = parser.parse_args()
    data = Path(__file__).parent / "data/attention_4096.safetensors"
    measure = search.TensorMeasure(data, queries=arguments.queries)
    plt.style.use("reticle.pictures")
    figure, axes = plt.subplots(layout="constrained")
    for name, space in SPACES.items():
        trials = search.run(space, measure, objective=search.at_density(10), workers=arguments.workers)
        front = search.pareto(trials)
        axes.plot(100 * front["density"], front["error"], "o-", label=name)
        best = trials.iloc[0]
        print(f"{name}: at most 10 % of the keys: error {best['error']:.3f} with {100 * best['density']:.1f} %")
    axes.set_xlabel("keys attended, %")
    axes.set_ylabel("relative output error")
    axes.legend()
    figure.savefig(arguments.output)
    print(f"{arguments.output} written")
