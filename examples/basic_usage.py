"""A language model with sparse attention: each query attends to its most recent keys and the best of the others.

    python examples/basic_usage.py [--prompt TEXT] [--model NAME]

The default is the bundled byte-level model. Needs torch and transformers.
"""

import argparse

import torch
from reticle.research.evaluate import ByteTokenizer
from reticle.sparse_attention_decoder import AttentionConfig, SparseAttention
from transformers import AutoTokenizer

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="The quick brown fox jumps over the lazy dog. " * 4)
    parser.add_argument("--model", help="for transformers")
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--attention-window", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.model) if arguments.model else ByteTokenizer()
    input_ids = tokenizer.encode(arguments.prompt, return_tensors="pt")
    config = AttentionConfig(top_k=arguments.top_k, attention_window=arguments.attention_window)
    model = SparseAttention(config, arguments.model)
    with torch.no_grad():
        logits = model(input_ids)
        tokens = model.generate(input_ids, max_new_tokens=arguments.new_tokens)
    print("input: ", arguments.prompt)
    print("output:", tokenizer.decode(tokens[0, input_ids.shape[1] :]))
    print(f"logits {tuple(logits.shape)}; attended to {100 * model.density:.0f} % of the keys")
