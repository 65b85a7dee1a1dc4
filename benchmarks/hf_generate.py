#!/usr/bin/env python3
"""A Hugging Face model's original attention (sdpa) against Reticle's, decoding after a long prompt, on the CPU.

    PYTHONPATH=build/python python benchmarks/hf_generate.py [--keys 16384]

A randomly initialised Llama with a real model's attention shape (32 query heads, 8 KV heads of 128) and small
feed-forward layers, so that attention dominates the time. The model's original attention prefills once; every pattern
continues from a copy of its cache. Runs alternate, and median times per token are compared, with two baselines: sdpa
over transformers' DynamicCache, which copies all keys and values for every token and is the default of generate, and
sdpa over SparseCache, which grows in place. Reticle's dense output is compared with sdpa's before timing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from reticle import hf
from reticle.maskers import LocalConfig, OracleTopKConfig, QuestTopKConfig, SinkConfig
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

SDPA, GROWING = "sdpa, DynamicCache", "sdpa, in place"
WINDOW = [SinkConfig(sink_size=16), LocalConfig(window_size=64)]


def patterns(share: float) -> dict[str, object]:
    return {
        "reticle, dense": None,
        "sinks + window": [WINDOW[0], LocalConfig(window_size=share)],
        "quest_top_k": [*WINDOW, QuestTopKConfig(heavy_size=share)],
        "oracle_top_k": [*WINDOW, OracleTopKConfig(heavy_size=share)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=12, help="per repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.1, help="of the keys that patterns keep")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2 * arguments.keys,
    )
    model = LlamaForCausalLM(config).eval()
    prompt = torch.randint(1, 1000, (1, arguments.keys))

    @torch.no_grad()
    def decode(cache: object, token: torch.Tensor) -> tuple[float, torch.Tensor]:
        """(seconds per token, last logits); the first token is not timed, because it builds page bounds and the
        like."""
        start = 0.0
        for i in range(arguments.tokens + 1):
            if i == 1:
                start = time.perf_counter()
            out = model(token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / arguments.tokens, out.logits

    with torch.no_grad():
        cache = hf.SparseCache(config=config, capacity=arguments.keys + 64)
        token = model(prompt, past_key_values=cache).logits[:, -1:].argmax(-1)
        dynamic = DynamicCache(config=config)
        for index, layer in enumerate(cache.layers):
            dynamic.update(layer.keys, layer.values, index)
    _, expected = decode(copy.deepcopy(cache), token)
    with hf.attach(model):
        _, ours = decode(copy.deepcopy(cache), token)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)

    times: dict[str, list[float]] = {}
    density = {SDPA: 1.0, GROWING: 1.0}
    for _ in range(arguments.repeats):
        times.setdefault(SDPA, []).append(decode(copy.deepcopy(dynamic), token)[0])
        times.setdefault(GROWING, []).append(decode(copy.deepcopy(cache), token)[0])
        for name, pattern in patterns(arguments.share).items():
            with hf.attach(model, generation=pattern) as attached:
                times.setdefault(name, []).append(decode(copy.deepcopy(cache), token)[0])
            density[name] = attached.generation.density
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"{arguments.keys} keys, {torch.get_num_threads()} threads of torch; medians of {arguments.repeats}")
    for name, seconds in medians.items():
        print(
            f"{name:20} {1e3 * seconds:8.2f} ms per token, {medians[SDPA] / seconds:6.2f} x sdpa, "
            f"{medians[GROWING] / seconds:6.2f} x sdpa in place, density {density[name]:.3f}"
        )


if __name__ == "__main__":
    main()
