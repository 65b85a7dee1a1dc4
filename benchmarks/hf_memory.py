#!/usr/bin/env python3
"""Memory of a Hugging Face model's cache after a long prompt, with all keys and with those an evicting pattern leaves.

    PYTHONPATH=build/python python benchmarks/hf_memory.py [--keys 32768] [--share 0.1]

A randomly initialised Llama with a real model's attention shape (32 query heads, 8 KV heads of 128, float32) and small
feed-forward layers. Every pattern runs in a separate process: a prompt in one call, then a few tokens. The report has
the bytes of the cache, and the resident memory of the process beyond what it had before the prompt: the peak, which
includes the activations and the keys and values of one layer, and the value at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def patterns(kept: int) -> dict[str, list[dict[str, object]]]:
    return {
        "all keys": [],
        "sinks + window": [{"type": "sink", "sink_size": 16}, {"type": "local", "window_size": kept - 16}],
        "snap_kv, by KV head": [
            {"type": "snap_kv", "token_capacity": kept, "approximation_window": 64, "share_within_group": True}
        ],
        "ada_snap_kv": [
            {"type": "ada_snap_kv", "token_capacity": kept, "approximation_window": 64, "local_window": 64}
        ],
        "tova": [{"type": "tova", "token_capacity": kept}],
    }


def memory(kind: str) -> int:
    """Resident memory of this process in bytes: VmRSS is the current value, VmHWM the peak since it was reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{kind}:")[1].split()[0])


def measure(name: str, keys: int, kept: int, layers: int) -> None:
    import torch
    from reticle import hf
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2 * keys,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, 1000, (1, keys))
    evict = name != "all keys"
    cache = hf.SparseCache(config=config, evict=evict)
    pattern = {"maskers": patterns(kept)[name]} if evict else None
    # The prompt has a window too, because a dense prompt of 32k keys takes minutes and only memory is measured.
    prefill = {"maskers": [{"type": "sink", "sink_size": 16}, {"type": "local", "window_size": 512}]}
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    with torch.no_grad(), hf.attach(model, prefill=prefill, generation=pattern, evict=evict):
        token = model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1:].argmax(-1)
        for _ in range(4):
            token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
    found = {"cache": cache.nbytes, "peak": memory("VmHWM") - before, "resident": memory("VmRSS") - before}
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=32768)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.1, help="of the keys that patterns keep")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    kept = int(arguments.share * arguments.keys)
    if arguments.measure:
        measure(arguments.measure, arguments.keys, kept, arguments.layers)
        return
    print(f"{arguments.keys} keys, {arguments.layers} layers of 8 KV heads of 128, float32; {kept} keys kept")
    whole: dict[str, float] = {}
    for name in patterns(kept):
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        whole = whole or found
        figures = (f"{kind} {found[kind] / 2**20:7.0f} MiB ({found[kind] / whole[kind]:5.3f})" for kind in found)
        print(f"{name:20} {', '.join(figures)}")


if __name__ == "__main__":
    main()
