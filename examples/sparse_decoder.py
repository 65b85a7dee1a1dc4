"""A sparse attention decoder: local, global and recurring keys; then a comparison with dense attention.

    python examples/sparse_decoder.py [--benchmark]

Its loss and the time of a token are compared on held-out text, in percent. Needs torch and transformers.
"""

import argparse
import time
from pathlib import Path

import reticle
import reticle.hf
import torch
from reticle import evaluate
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples/data/byte-llama-3m"
CONFIG = ROOT / "configs/sparse_decoder.json"


def benchmark(model, text: torch.Tensor, length: int, new: int) -> None:
    """Loss of the last `new` tokens of an example, and seconds per generated token, prompt included, dense and sparse."""
    example = {"input_ids": text[: length + new], "output_length": new}
    found = {}
    for name, config in (("dense", None), ("sparse", str(CONFIG))):
        loss = evaluate.loss(model, [example], generation=config, progress=False)
        with reticle.hf.attach(model, generation=config):
            best = min(_seconds(model, text[None, :length], new) for _ in range(3))
        found[name] = loss.loss, best / new, loss.generation_sparsity
    (dense_loss, dense_time, _), (sparse_loss, sparse_time, left_out) = found["dense"], found["sparse"]
    print(
        f"{length:5} tokens: loss {dense_loss:.3f} -> {sparse_loss:.3f} ({100 * (sparse_loss / dense_loss - 1):+.1f} %), "
        f"{1e3 * dense_time:.2f} -> {1e3 * sparse_time:.2f} ms a token ({100 * (sparse_time / dense_time - 1):+.1f} %), "
        f"{100 * left_out:.0f} % of the keys left out"
    )


def _seconds(model, ids: torch.Tensor, new: int) -> float:
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", action="store_true", help="compare with dense attention")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 3072])
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    text = torch.from_numpy(next(iter(reticle.load_tensors(MODEL / "heldout.safetensors").values()))).long()
    if arguments.benchmark:
        for length in arguments.lengths:
            benchmark(model, text, length, 32)
    else:
        with reticle.hf.attach(model, generation=str(CONFIG)) as attached:
            ids = model.generate(text[None, :1536], max_new_tokens=64, do_sample=False)
        print(evaluate.ByteTokenizer().decode(ids[0, 1536:]))
        print(f"attended to {100 * attached.generation.density:.0f} % of the keys while generating")
