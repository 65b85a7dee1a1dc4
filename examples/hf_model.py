"""A Hugging Face model with sparse attention: a dense prompt, then tokens generated with Quest's pages.

    python examples/hf_model.py [--model NAME] [--prompt TEXT]

The default is the bundled byte-level model with 3M parameters. Needs torch and transformers.
"""

import argparse
from pathlib import Path

import reticle.hf
import torch
from reticle.maskers import LocalConfig, QuestTopKConfig, SinkConfig
from reticle.research.evaluate import ByteTokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

BUNDLED = Path(__file__).parent / "data/byte-llama-3m-retrieval"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--prompt", default="It is a truth universally acknowledged, that " * 12)
    parser.add_argument("--new-tokens", type=int, default=48)
    arguments = parser.parse_args()

    tokenizer = ByteTokenizer() if arguments.model == str(BUNDLED) else AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(arguments.prompt)])

    def generate() -> str:
        new = model.generate(ids, max_new_tokens=arguments.new_tokens, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(new)

    print("dense: ", generate())
    pattern = [SinkConfig(sink_size=4), LocalConfig(window_size=64), QuestTopKConfig(heavy_size=0.1, page_size=16)]
    with reticle.hf.attach(model, generation=pattern) as attached:
        print("sparse:", generate())
    print(f"attended to {100 * attached.generation.density:.1f} % of the keys while generating")
