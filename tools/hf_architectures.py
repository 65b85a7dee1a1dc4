#!/usr/bin/env python3
"""Attaches dense attention to every causal architecture of the installed transformers that can be made small, and
compares the logits with those of its eager attention, or reports why it is refused. Exits with 1 if one differs or
fails in the model.

    python tools/hf_architectures.py [NAME ...]      # names of model types, such as llama; all by default
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections import Counter
from typing import Any

import reticle.hf
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Names of extents in configs, with small values; each model takes the names that it has.
SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "dim": 64,
    "embed_dim": 64,
    "embedding_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "d_ff": 96,
    "n_inner": 96,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "ffn_hidden_size": 96,
    "num_hidden_layers": 4,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "attention_head_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "initializer_range": 0.3,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "attn_pdrop": 0.0,
    "is_decoder": True,
    "use_cache": False,
}
#: Extents that configs may leave unset.
UNTOLD = (
    "head_dim",
    "num_key_value_heads",
    "num_experts_per_tok",
    "n_routed_experts",
    "n_shared_experts",
    "n_group",
    "topk_group",
)
#: Further settings that make a model type small.
TYPE_SETTINGS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        "num_expert_group": 1,
        "num_experts_per_token": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 100,
        "hidden_size_per_layer_input": 16,
        "activation_sparsity_pattern": [0.0] * 4,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {
        "vocab_size_per_layer_input": 100,
        "hidden_size_per_layer_input": 16,
        "sliding_window": 8,
        "global_head_dim": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "kimi_linear": {
        "num_experts_per_token": 2,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"moe_topk": 2, "zero_expert_num": 2, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "ministral": {"sliding_window": 8},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "output_gate_type": "sigmoid",
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 100,
        "split_ngram_parts": 4,
        "hc_lowrank": 16,
    },
    "reformer": {"axial_pos_shape": [8, 16], "axial_pos_embds_dim": [32, 32]},
    "xlm": {"emb_dim": 64},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32, "mamba_dt_rank": 8, "num_hidden_layers": 8},
}
MAX_PARAMETERS = 30_000_000
BOUND = 1e-3


def shrink(config: Any, without: frozenset[str] = frozenset()) -> Any:
    """A config of the same class with the applicable values of SMALL, also in its sub-configs."""
    kind = type(config)
    values: dict[str, Any] = {}
    for name, value in SMALL.items():
        told = vars(config).get(name) is not None or (
            name in UNTOLD and name in vars(config) and "untold" not in without
        )
        if name not in without and told:
            values[name] = int(value) if type(vars(config)[name]) is int else value
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            values[name] = shrink(value, without).to_dict()
    if "qk_rope_head_dim" in values:  # multi-head latent attention (MLA)
        values.pop("head_dim", None)
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "rotary_dim" in vars(config):
        values["rotary_dim"] = 8
    values.update(TYPE_SETTINGS.get(config.model_type, {}))
    return kind(**values)


def small_model(model_type: str) -> torch.nn.Module:
    default = CONFIG_MAPPING[model_type]()
    failure: Exception | None = None
    for without in (
        frozenset({"untold"}),
        frozenset(),
        frozenset({"head_dim"}),
        frozenset({"num_hidden_layers", "num_key_value_heads"}),
    ):
        try:
            config = shrink(default, without)
            with torch.device("meta"):
                count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if count > MAX_PARAMETERS:
                raise ValueError(f"{count / 1e6:.0f} million parameters")
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        except Exception as error:
            failure = failure or error
    raise failure or ValueError("not made")


def verdict(model_type: str) -> tuple[str, str]:
    """(verdict, note); the verdict is "equal", "refused", "not made", "DIFFERENT" or "FAILED"."""
    try:
        model: Any = small_model(model_type)
        ids = torch.randint(3, 90, (1, 24), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        if not torch.isfinite(expected).all():
            raise ValueError("its own logits are not finite")
    except Exception as error:
        return "not made", f"{type(error).__name__}: {error}"
    try:
        with torch.no_grad(), reticle.hf.attach(model):
            found = model(input_ids=ids).logits
    except (ValueError, NotImplementedError) as error:
        if "reticle" in str(error) or "expected attention" in str(error) or "not supported" in str(error):
            return "refused", str(error)
        return "FAILED", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "FAILED", f"{type(error).__name__}: {error}"
    difference = distance(found, expected)
    if difference < BOUND:
        return "equal", f"{difference:.1e}"
    try:  # a model may amplify rounding errors
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            rounding = distance(model(input_ids=ids).logits, expected)
    except ValueError:
        rounding = 0.0
    answer = "equal" if difference < 3 * rounding else "DIFFERENT"
    return answer, f"{difference:.1e}; sdpa differs by {rounding:.1e}"


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def out_of_time(*_: object) -> None:
    raise TimeoutError("took more than 60 s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model types; all causal ones by default")
    names = parser.parse_args().names or sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, out_of_time)
    counts: Counter[str] = Counter()
    for name in names:
        signal.alarm(60)
        try:
            answer, note = verdict(name)
        except TimeoutError as error:
            answer, note = "not made", str(error)
        signal.alarm(0)
        counts[answer] += 1
        print(f"{name:32} {answer:10} {(note.splitlines() or [''])[0][:150]}", flush=True)
    print(
        f"transformers {transformers.__version__}: "
        + ", ".join(f"{count} {answer}" for answer, count in counts.items())
    )
    return 1 if counts["DIFFERENT"] + counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
