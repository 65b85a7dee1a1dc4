"""Sparse attention in Hugging Face models, through transformers' attention interface.

    with reticle.hf.attach(model, generation="configs/sink_local_oracle_top_k.json") as attached:
        model.generate(**inputs, max_new_tokens=100)
    print(attached.generation.density)

A model qualifies when its attention calls transformers' attention interface, as nearly all do since transformers 4.48;
`attach` raises where one does not. Importing this module also makes "reticle" an attention implementation:
`from_pretrained(..., attn_implementation="reticle")` and `model.set_attn_implementation("reticle")` give dense attention,
or patterns where `model.config.reticle` is {"prefill": config, "generation": config}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from reticle.hf._attach import NAME, Attachment, pipeline_of
from reticle.hf._attention import forward
from reticle.hf._sparse_cache import SparseCache
from reticle.hf._visibility import visibility

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reticle.hf._attach import Config
    from reticle.metrics import MetricLogger

__all__ = ["NAME", "Attachment", "SparseCache", "attach", "pipeline_of"]

AttentionInterface.register(NAME, forward)
# torch.compile breaks its graph here, once to a forward pass: masks are functions that it cannot keep.
AttentionMaskInterface.register(NAME, torch.compiler.disable(visibility))  # type: ignore[no-untyped-call]


def attach(
    model: PreTrainedModel,
    *,
    prefill: Config = None,
    generation: Config = None,
    keep_masks: bool = False,
    metrics: MetricLogger | None = None,
    evict: bool = False,
) -> Attachment:
    """Computes a model's attention by Reticle: prompts by `prefill`, what is generated after them by `generation`.

    Each is a SparseAttention, a JSON file, a config as a dict, a list of reticle.maskers' configs, or None for dense
    attention. Patterns apply to causal self-attention, sequence by sequence and without their padding; layers with a sliding
    window, chunks or another mask of their own attend to all that the model lets them see, as does attention that is not
    causal. What maskers keep follows a sequence's cache: cropped, reordered (beams), repeated, copied or continued.
    docs/python.md says which tokens count as the prompt, what is supported, and what is refused.

    Args:
        keep_masks: record every call's mask (`Attachment.masks`), for pictures.
        metrics: gets the density and output error of every call.
        evict: generate with a SparseCache that drops the keys that `generation` will never attend to again, as snap_kv, tova,
            h2o, sinks and windows leave some. The output stays the same; tokens of a further prompt need
            `stage("generation")`.

    Raises:
        ValueError: when the model is attached already, its attention does not go through transformers' interface, or `evict`
            is asked for with maskers that may come back to any key; the model is left as it was.
        NotImplementedError: when the model runs and asks for what is not supported, by name.
    """
    return Attachment(model, prefill, generation, keep_masks=keep_masks, metrics=metrics, evict=evict)
