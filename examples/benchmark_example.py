"""Sparse against dense attention in one model: text, latency, tokens per second, memory, loss.

    python examples/benchmark_example.py [--lengths 512 2048] [--model NAME --text FILE]

The default is the bundled byte-level model and its held-out text. Needs torch and transformers.
"""

import argparse
from pathlib import Path

import reticle
import torch
from reticle.research import evaluate
from reticle.sparse_attention_decoder import BUNDLED, AttentionConfig, SparseAttention, compare
from transformers import AutoTokenizer


def text_of(arguments: argparse.Namespace, tokenizer) -> torch.Tensor:
    """The tokens of the text, (length)."""
    if arguments.text:
        return tokenizer.encode(Path(arguments.text).read_text(), return_tensors="pt")[0]
    (held_out,) = reticle.load_tensors(BUNDLED / "heldout.safetensors").values()
    return torch.from_numpy(held_out).long()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="for transformers; needs --text")
    parser.add_argument("--text", help="UTF-8; default: the bundled model's held-out text")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048], help="of prompts, in tokens")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--top-k", type=int, default=32)
    parser.add_argument("--attention-window", type=int, default=128)
    arguments = parser.parse_args()
    if arguments.model and not arguments.text:
        parser.error("--model needs --text")

    tokenizer = AutoTokenizer.from_pretrained(arguments.model) if arguments.model else evaluate.ByteTokenizer()
    text = text_of(arguments, tokenizer)
    config = AttentionConfig(top_k=arguments.top_k, attention_window=arguments.attention_window)
    model = SparseAttention(config, arguments.model)
    for length in arguments.lengths:
        found = compare(model, text[None, :length], arguments.new_tokens)
        example = {"input_ids": text[: length + arguments.new_tokens], "output_length": arguments.new_tokens}
        with model.dense():  # restores the original attention, because evaluation attaches the model
            loss = {
                name: evaluate.loss(model.model, [example], prefill=pattern, generation=pattern, progress=False).loss
                for name, pattern in (("dense", None), ("sparse", config.maskers()))
            }
        print(f"{length} tokens")
        for name, measured in found.items():
            print(f"  {name:6} text: {tokenizer.decode(measured.tokens[0])!r}")
            memory = "-" if measured.peak_bytes is None else f"{measured.peak_bytes / 1e6:.0f} MB"
            print(
                f"         first token {1e3 * measured.first_token_seconds:.1f} ms, "
                f"latency {1e3 * measured.seconds_per_token:.2f} ms a token, "
                f"{measured.tokens_per_second:.0f} tokens per second, memory {memory}, "
                f"loss {loss[name]:.3f}, {100 * measured.density:.0f} % of the keys"
            )
        dense, sparse = found["dense"], found["sparse"]
        changes = {
            "first token": sparse.first_token_seconds / dense.first_token_seconds,
            "latency": sparse.seconds_per_token / dense.seconds_per_token,
            "loss": loss["sparse"] / loss["dense"],
        }
        if dense.peak_bytes and sparse.peak_bytes:
            changes["memory"] = sparse.peak_bytes / dense.peak_bytes
        print("  sparse against dense: " + ", ".join(f"{name} {100 * x - 100:+.1f} %" for name, x in changes.items()))
