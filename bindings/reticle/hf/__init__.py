"""Sparse attention in Hugging Face models, through transformers' attention interface.

    with reticle.hf.attach(model, generation="configs/sink_local_oracle_top_k.json") as attached:
        model.generate(**inputs, max_new_tokens=100)
    print(attached.generation.density)

A model qualifies when its attention calls transformers' attention interface, as nearly all do since transformers 4.48;
`attach` raises where one does not. Importing this module also makes "reticle" an attention implementation:
`from_pretrained(..., attn_implementation="reticle")` and `model.set_attn_implementation("reticle")` give dense
attention, or patterns where `model.config.reticle` is {"prefill": config, "generation": config}.
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

    from reticle._metrics import MetricLog
    from reticle.hf._attach import Config

__all__ = ["NAME", "Attachment", "SparseCache", "attach", "pipeline_of"]

AttentionInterface.register(NAME, forward)
# torch.compile breaks the graph here, once per forward pass, because it cannot keep the mask functions.
AttentionMaskInterface.register(NAME, torch.compiler.disable(visibility))  # type: ignore[no-untyped-call]


def attach(
    model: PreTrainedModel,
    *,
    prefill: Config = None,
    generation: Config = None,
    keep_masks: bool = False,
    metrics: MetricLog | None = None,
    evict: bool = False,
) -> Attachment:
    """Makes Reticle compute a model's attention: prompts by `prefill`, the tokens generated after them by `generation`.

    Each is a SparseAttention, a JSON file, a config as a dict, a list of reticle.maskers' configs, or None for dense
    attention. Patterns apply to causal self-attention, to each sequence separately and without its padding. Layers with
    a sliding window, chunks or another special mask attend to everything that the model lets them see, and so does
    attention that is not causal. The state of maskers follows the sequence's cache when it is cropped, reordered
    (beams), repeated, copied or continued. docs/python.md says which tokens count as the prompt, what is supported, and
    what is refused.

    Args:
        keep_masks: record every call's mask (`Attachment.masks`), for pictures.
        metrics: a logger for the density and the output error of every call, such as
            reticle.research.metrics.MetricLogger.
        evict: generate with a SparseCache that drops the keys that `generation` will never attend to again. Only some
            maskers leave such keys: snap_kv, tova, h2o, sinks and windows. The output stays the same; tokens of a
            further prompt need `stage("generation")`.

    Raises:
        ValueError: when the model is attached already, its attention does not go through transformers' interface, or
            `evict` is requested with maskers that may return to any key; the model is left unchanged.
        NotImplementedError: when the running model requests something unsupported, which the message names.
    """
    return Attachment(model, prefill, generation, keep_masks=keep_masks, metrics=metrics, evict=evict)
