"""nano-sparse-attention's interface for patterns: one module for the prompt, one for the tokens generated after it.

    class MyNewAttention(Attention):
        def __init__(self, window_size):
            super().__init__()
            self.name = "MyNewAttention"
            self.params = {"window_size": window_size}

        def forward(self, queries, keys, values, *args, **kwargs):
            attention_mask = self.get_local_mask(queries.shape[-2], self.window_size, queries.device)
            self.sparsity_ratios.append(self.calculate_sparsity_ratio(attention_mask))
            return self.attention(queries, keys, values, attention_mask)

    handler = InferenceHandler(MyNewAttention(64), DenseAttention())
    loss = model_forward(model, examples, handler)  # of a Hugging Face model
    handler.info()["prefill"]["sparsity"]

Masks are bool and True where a connection is *pruned*, as in nano-sparse-attention; elsewhere in Reticle True keeps.
The handler processes whole sequences, as in teacher forcing; for patterns that run on a model's cache, use
`reticle.hf.attach` and `reticle.research.evaluate.loss`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import reticle
import reticle._core as _core
import reticle.torch
from reticle import maskers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Literal, TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from reticle import Mask
    from reticle.maskers import MaskerConfig

    Stage: TypeAlias = Literal["prefill", "generation"]

_ATTENTION = "reticle_nano"


class Attention(nn.Module):
    """A pattern. Subclasses override `forward`, for the prompt, `generation_forward`, for the tokens after it, or both.

    `name` and `params` identify the pattern (entries of `params` are attributes as well); `sparsity_ratios` and `masks`
    hold the records of the calls so far.
    """

    name: str
    params: dict[str, Any]
    masks: list[NDArray[np.bool_]]
    sparsity_ratios: list[float]
    layer_counter: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.init(*args, **kwargs)

    def init(self) -> None:
        """Does the work of `__init__`; nano-sparse-attention's documentation uses this name. Override either."""
        self.name = "Attention"
        self.params = {}
        self.masks = []
        self.sparsity_ratios = []
        self.layer_counter = 0

    def __getattr__(self, name: str) -> Any:
        params = self.__dict__.get("params", {})
        return params[name] if name in params else super().__getattr__(name)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Attention of a prompt; the tensors and the result are (batch, heads, tokens, head_dim). `layer_idx` is passed
        by name."""
        raise NotImplementedError(f"{type(self).__name__} has no forward: it does not serve the prefill")

    def generation_forward(
        self,
        prefilling_queries: Tensor,
        prefilling_keys: Tensor,
        prefilling_values: Tensor,
        generation_queries: Tensor,
        generation_keys: Tensor,
        generation_values: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attention of generated tokens after a prompt, (batch, heads, generated tokens, head_dim). `layer_idx` is
        passed by name."""
        raise NotImplementedError(f"{type(self).__name__} has no generation_forward: it does not serve the generation")

    # --- helpers for patterns ----------------------------------------------------------------------------------------

    @staticmethod
    def attention(
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        attention_mask: Tensor,
        return_attention_scores: bool = False,
    ) -> Any:
        """Attention over the connections that a mask keeps: output (batch, heads, queries, head_dim), and with
        `return_attention_scores` the weights, (batch, heads, queries, keys), without gradients.

        Scores are scaled by 1 / sqrt(head_dim). A query whose connections are all pruned gets 0.

        Args:
            attention_mask: bool, or 0 and 1 in an integer dtype, broadcastable to (batch, heads, queries, keys); True
                prunes.

        Raises:
            TypeError: for a floating mask, which other libraries add to the scores.
        """
        pruned = _pruned(attention_mask)
        pattern = _core.Mask.dense((~pruned[(None,) * (4 - pruned.dim())]).cpu().numpy())  # keeps shared heads
        kept = pattern.broadcast_to((*queries.shape[:3], keys.shape[2]))
        output, _ = reticle.attention(queries, keys, values, kept)
        if return_attention_scores:
            return output, reticle.torch.dense_weights(queries, keys, values, kept).to(queries.dtype)
        return output

    @staticmethod
    def get_causal_mask(seq_len: int, device: torch.device | str = "cpu") -> Tensor:
        """A mask (1, 1, seq_len, seq_len) that prunes the keys after each query."""
        return Attention.get_generation_mask(seq_len, 0, device)

    @staticmethod
    def get_local_mask(seq_len: int, window_size: int, device: torch.device | str = "cpu") -> Tensor:
        """A mask (1, 1, seq_len, seq_len) that keeps the last window_size keys up to each query's position."""
        ones = torch.ones(1, 1, seq_len, seq_len, dtype=torch.bool, device=device)
        return ~ones.tril().triu(1 - window_size)

    @staticmethod
    def get_generation_mask(gen_len: int, prefill_len: int, device: torch.device | str = "cpu") -> Tensor:
        """A mask (1, 1, gen_len, prefill_len + gen_len) that prunes the generated keys after each query."""
        ones = torch.ones(1, 1, gen_len, prefill_len + gen_len, dtype=torch.bool, device=device)
        return ones.triu(prefill_len + 1)

    @staticmethod
    def calculate_sparsity_ratio(mask: Tensor) -> float:
        """The share of causal connections that a mask (batch, heads, queries, keys) prunes; the last query is at the
        last key."""
        pruned = _pruned(mask)
        kept = (~pruned).sum((-1, -2)).double().mean().item()
        return _sparsity(kept, pruned.shape[-2], pruned.shape[-1])

    @staticmethod
    def calculate_average_sparsity_ratio(sparsity_ratios: Sequence[float]) -> float:
        """The mean of the ratios; 0 without any."""
        return sum(sparsity_ratios) / len(sparsity_ratios) if sparsity_ratios else 0

    def maybe_save_mask(self, attention_mask: Tensor, modulo_layers: int = 8) -> None:
        """Keeps the mask of the first head at every `modulo_layers`-th call, for pictures."""
        if self.layer_counter % modulo_layers == 0:
            self.masks.append(attention_mask[0, 0].cpu().numpy().copy())
        self.layer_counter += 1

    def info(self) -> dict[str, Any]:
        """{name, params, masks, sparsity}; sparsity is the mean over the calls so far."""
        sparsity = self.calculate_average_sparsity_ratio(self.sparsity_ratios)
        return {"name": self.name, "params": self.params, "masks": self.masks, "sparsity": sparsity}


def _pruned(mask: Tensor) -> Tensor:
    if mask.is_floating_point():
        raise TypeError(f"attention_mask is {mask.dtype}; expected bool, True where a connection is pruned")
    return mask.bool()


def _sparsity(kept: float, queries: int, keys: int) -> float:
    """The sparsity if a head keeps `kept` connections on average."""
    allowed = queries * (queries + 1) // 2 + (keys - queries) * queries
    return 1 - kept / allowed if allowed else 0.0


class InferenceHandler(nn.Module):
    """A pattern for the prompt and one for the tokens generated after it, over whole sequences that are known in
    advance."""

    def __init__(self, prefill_attention: Attention, generation_attention: Attention) -> None:
        super().__init__()
        self.prefill_attention = prefill_attention
        self.generation_attention = generation_attention
        self.name = f"{prefill_attention.name}_to_{generation_attention.name}"
        self.output_length: int | None = None

    def set_output_length(self, output_length: int) -> None:
        """Sets how many tokens at the end of the sequences are generated."""
        if output_length < 1:
            raise ValueError(f"output_length is {output_length}; expected 1 token or more")
        self.output_length = output_length

    def info(self) -> dict[str, Any]:
        """`Attention.info` of each stage."""
        return {"prefill": self.prefill_attention.info(), "generation": self.generation_attention.info()}

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, layer_idx: int | None = None) -> Tensor:
        """Attention of whole sequences, (batch, heads, tokens, head_dim); keys and values have as many heads as
        queries.

        Raises:
            ValueError: when no prompt is left before the output, or its length was not set.
        """
        if self.output_length is None:
            raise ValueError("output_length is not set; call set_output_length first")
        prompt = queries.shape[-2] - self.output_length
        if prompt < 1:
            raise ValueError(f"output_length is {self.output_length} of {queries.shape[-2]} tokens; expected less")
        before = [tensor[..., :prompt, :] for tensor in (queries, keys, values)]
        after = [tensor[..., prompt:, :] for tensor in (queries, keys, values)]
        prefill = self.prefill_attention.forward(*before, layer_idx=layer_idx)
        generation = self.generation_attention.generation_forward(*before, *after, layer_idx=layer_idx)
        return torch.cat([prefill, generation], -2)


# --- nano-sparse-attention's patterns, as pipelines of Reticle's maskers --------------------------------------------


class _Pattern(Attention):
    """A pipeline of maskers for the stages in `_stages`; the other stage is that of `Attention`."""

    _stages: tuple[str, ...] = ("prefill", "generation")

    def __init__(self, chosen: Sequence[MaskerConfig], **params: Any) -> None:
        super().__init__()
        self.name, self.params = type(self).__name__, params
        by_stage: dict[str, Any] = {stage: chosen for stage in self._stages}
        self._pipeline = maskers.pipeline(causal=True, **by_stage)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if "prefill" not in self._stages:
            return super().forward(queries, keys, values)
        return self._attend(queries, keys, values, _core.SequenceState(), "prefill", **kwargs)

    def generation_forward(
        self,
        prefilling_queries: Tensor,
        prefilling_keys: Tensor,
        prefilling_values: Tensor,
        generation_queries: Tensor,
        generation_keys: Tensor,
        generation_values: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        before = (prefilling_queries, prefilling_keys, prefilling_values)
        after = (generation_queries, generation_keys, generation_values)
        if "generation" not in self._stages:
            return super().generation_forward(*before, *after)
        state = _core.SequenceState()
        self._choose(*before, state, "prefill", **kwargs)  # the generation maskers observe the prompt
        keys, values = (torch.cat(pair, -2) for pair in zip(before[1:], after[1:], strict=True))
        return self._attend(generation_queries, keys, values, state, "generation", **kwargs)

    def _choose(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        state: _core.SequenceState,
        stage: Stage,
        layer_idx: int | None = None,
    ) -> Mask:
        inputs = (queries.detach(), keys.detach(), values.detach())
        return self._pipeline.mask(*inputs, state, layer=layer_idx or 0, stage=stage)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, state: _core.SequenceState, stage: Stage, **kwargs: Any
    ) -> Tensor:
        mask = self._choose(queries, keys, values, state, stage, **kwargs)
        self._record(mask, stage)
        output, _ = reticle.attention(queries, keys, values, mask)
        return output

    def _record(self, mask: Mask, stage: Stage) -> None:
        batch, heads, queries, keys = mask.shape
        self.sparsity_ratios.append(_sparsity(mask.nnz / max(1, batch * heads), queries, keys))
        self.maybe_save_mask(torch.from_numpy(mask[:1, :1].to_dense()) == 0)


class DenseAttention(_Pattern):
    """All keys up to each query's position. As in nano-sparse-attention, only masks of the prefill are recorded, no
    sparsity."""

    def __init__(self) -> None:
        super().__init__([])

    def _record(self, mask: Mask, stage: Stage) -> None:
        if stage == "prefill":
            self.maybe_save_mask(torch.from_numpy(mask[:1, :1].to_dense()) == 0)


class LocalAndSinksAttention(_Pattern):
    """The last `window_size` keys and the first `attention_sinks`, in both stages (Xiao et al. 2023)."""

    def __init__(self, window_size: int, attention_sinks: int) -> None:
        chosen: list[MaskerConfig] = [maskers.LocalConfig(window_size=window_size)]
        if attention_sinks:
            chosen.append(maskers.SinkConfig(sink_size=attention_sinks))
        super().__init__(chosen, window_size=window_size, attention_sinks=attention_sinks)


class VerticalAndSlashAttention(_Pattern):
    """The columns and diagonals that the prompt's last `approximation_window` queries attend to most, always including
    `attention_sinks` columns and a window (MInference, Jiang et al. 2024)."""

    _stages = ("prefill",)

    def __init__(
        self, window_size: int, attention_sinks: int, top_tokens: int, top_slashes: int, approximation_window: int
    ) -> None:
        chosen = maskers.VerticalSlashConfig(
            vertical_size=top_tokens,
            slash_size=top_slashes,
            approximation_window=approximation_window,
            attention_sinks=attention_sinks,
            window_size=window_size,
        )
        super().__init__(
            [chosen],
            window_size=window_size,
            attention_sinks=attention_sinks,
            top_tokens=top_tokens,
            top_slashes=top_slashes,
            approximation_window=approximation_window,
        )


class BlockSparseAttention(_Pattern):
    """For each chunk of queries: the first chunk of keys and the best ones by mean scores, `top_chunks` in all, and a
    window of one chunk."""

    _stages = ("prefill",)

    def __init__(self, chunk_size: int, top_chunks: int) -> None:
        chosen = [
            maskers.LocalConfig(window_size=chunk_size),
            maskers.BlockSparseConfig(chunk_size=chunk_size, top_chunks=top_chunks),
        ]
        super().__init__(chosen, chunk_size=chunk_size, top_chunks=top_chunks)


class SnapKVAttention(_Pattern):
    """The `token_capacity` prompt keys that the prompt's last queries attend to most, and all generated keys (SnapKV,
    Li et al. 2024)."""

    _stages = ("generation",)

    def __init__(self, token_capacity: int, approximation_window: int = 64, kernel_size: int = 7) -> None:
        chosen = maskers.SnapKvConfig(
            token_capacity=token_capacity, approximation_window=approximation_window, kernel_size=kernel_size
        )
        super().__init__(
            [chosen],
            token_capacity=token_capacity,
            approximation_window=approximation_window,
            kernel_size=kernel_size,
        )


class TOVAAttention(_Pattern):
    """`token_capacity` keys; every new key evicts the one that the newest query attends to least (TOVA, Oren et al.
    2024)."""

    _stages = ("generation",)

    def __init__(self, token_capacity: int) -> None:
        super().__init__([maskers.TovaConfig(token_capacity=token_capacity)], token_capacity=token_capacity)


# --- Hugging Face models --------------------------------------------------------------------------------------------


def update_attention(model: Any, inference_handler: InferenceHandler | None) -> None:
    """Makes every attention of a Hugging Face model call the handler; None restores the model's original attention.

    Raises:
        ValueError: when the model's attention does not go through transformers' interface, or is attached by
            `reticle.hf`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    from reticle.hf._attach import backbone_of, calls_interface
    from reticle.hf._visibility import visibility

    backbone: Any = backbone_of(model)
    layers: list[Any] = [module for module in backbone.modules() if calls_interface(module)]
    if not layers:
        raise ValueError(f"{type(model).__name__}: none of its modules calls transformers' attention interface")
    if any(getattr(layer, "_reticle", None) is not None for layer in layers):
        raise ValueError(f"{type(model).__name__}: is attached to a pattern by reticle.hf; detach it first")
    AttentionInterface.register(_ATTENTION, _attention_of_layers)
    AttentionMaskInterface.register(_ATTENTION, visibility)
    original = getattr(backbone, "_reticle_nano_before", None)
    if inference_handler is None:
        if original is not None:
            backbone.set_attn_implementation(original)
            del backbone._reticle_nano_before
        return
    if original is None:
        backbone._reticle_nano_before = backbone.config._attn_implementation
        backbone.set_attn_implementation(_ATTENTION)
    for layer in layers:
        object.__setattr__(layer, "_reticle_nano", inference_handler)  # plain assignment would make it a submodule


def _attention_of_layers(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls: output (batch, queries, heads, head_dim), no weights."""
    from reticle.hf._attention import refuse_unknown
    from reticle.hf._visibility import Visibility

    name = type(module).__name__
    refuse_unknown(name, {"dropout": dropout if module.training else None, "s_aux": None, **others})
    if scaling is not None and abs(scaling * query.shape[-1] ** 0.5 - 1) > 1e-6:
        raise NotImplementedError(f"{name}: scales scores by {scaling}; patterns here scale by 1 / sqrt(head_dim)")
    seen = attention_mask
    if query.shape[2] != key.shape[2]:
        raise NotImplementedError(
            f"{name}: continues a cache; patterns here see whole sequences, so set use_cache=False"
        )
    if seen is not None and not (isinstance(seen, Visibility) and seen.causal and seen.padding is None):
        raise NotImplementedError(
            f"{name}: its mask is not plainly causal (padding, windows); pass sequences one by one"
        )
    group = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(group, 1) for tensor in (key, value))
    output: Tensor = module._reticle_nano(query, key, value, layer_idx=getattr(module, "layer_idx", None))
    return output.transpose(1, 2).contiguous(), None


@torch.no_grad()
def model_forward(model: Any, model_inputs: Iterable[Mapping[str, Any]], inference_handler: InferenceHandler) -> float:
    """Mean over the examples of the cross entropy, in nats, of their last output_length tokens. The model's attention
    calls the handler from then on.

    Args:
        model_inputs: {input_ids, attention_mask, output_length}: tokens (length) or (1, length), which of them are
            real, and the number of tokens at the end that are generated.

    Raises:
        ValueError: without examples, or when an output_length leaves no prompt.
    """
    from reticle.research.evaluate import tokens_of

    update_attention(model, inference_handler)
    losses = []
    for number, example in enumerate(model_inputs):
        ids, output = tokens_of(example, number)
        inference_handler.set_output_length(output)
        logits = model(ids.to(model.device), use_cache=False).logits[0, -output - 1 : -1]
        losses.append(nn.functional.cross_entropy(logits.float(), ids[0, -output:].to(model.device)).item())
    if not losses:
        raise ValueError("model_inputs: has no examples")
    return sum(losses) / len(losses)
