"""Small Llama-like models over packed sequences: one with Native Sparse Attention, and one with full attention to
compare.

    config = ToyNSALlamaConfig(hidden_size=256, num_attention_heads=8, num_key_value_heads=2, head_dim=32, ...)
    model = ToyNSALlama(config, InferenceConfig(max_new_tokens=64))
    logits = model(input_ids, cu_seqlens)            # (tokens, vocab_size), with gradients
    tokens = model.generate(input_ids, cu_seqlens)   # (sequences, 64), greedy, through a cache

`input_ids` are all sequences concatenated, `cu_seqlens` the (sequences + 1) offsets from 0. Parameters have the names
of native-sparse-attention-triton, whose state dicts load without conversion.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from reticle._core import ConfigError, ShapeError
from reticle.native_sparse_attention.module import NativeSparseAttention, RopeConfig, SelfAttention
from reticle.nsa import checked_offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reticle.nsa import Offsets


def _llama3() -> dict[str, Any]:
    scaling = RopeConfig().rope_scaling
    return {} if scaling is None else dict(scaling)


def _require_counts(config: Any) -> None:
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if each.type == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ConfigError(f"{type(config).__name__}.{each.name} is {value!r}; expected an integer of 1 or more")


@dataclass
class ToyLlamaConfig:
    """A model's structure, named as in Hugging Face's Llama configs."""

    vocab_size: int = 128288
    max_position_embeddings: int = 131072
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128
    rope_theta: float = 500000.0
    rope_scaling: Mapping[str, Any] | None = dataclasses.field(default_factory=_llama3)

    def __post_init__(self) -> None:
        _require_counts(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads is {self.num_attention_heads}; expected a multiple of num_key_value_heads, "
                f"{self.num_key_value_heads}"
            )

    def rope(self) -> RopeConfig:
        """The rotary positions of the attention."""
        return RopeConfig(self.max_position_embeddings, self.head_dim, self.rope_theta, self.rope_scaling)


@dataclass
class ToyNSALlamaConfig(ToyLlamaConfig):
    """The structure with the sparsity parameters of `reticle.nsa.NativeSparseAttention`, which checks them."""

    compress_type: Literal["avgpool", "weightedpool", "linear"] = "weightedpool"
    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = 64
    topk: int = 16
    init_blocks: int = 1
    local_blocks: int = 2
    window_size: int = 512


@dataclass
class InferenceConfig:
    """Limits of `generate`: the number of sequences, the length of each with generated tokens, and the number
    generated."""

    max_batch_size: int = 32
    max_length: int = 8192
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        _require_counts(self)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6), in float32, times `weight` in x's dtype."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x (..., hidden_size)."""
        wide = x.float()
        normed: Tensor = self.weight * (wide * (wide.square().mean(-1, keepdim=True) + 1e-6).rsqrt()).to(x.dtype)
        return normed


class FFN(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the network to x (..., hidden_size)."""
        y: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


Attention = NativeSparseAttention | SelfAttention


class _Layer(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ToyLlamaConfig, name: str, attention: Attention) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size)
        self.add_module(name, attention)
        self.ffn_norm = RMSNorm(config.hidden_size)
        self.ffn = FFN(config.hidden_size, config.intermediate_size)
        self._name = name

    @property
    def attention(self) -> Any:
        return getattr(self, self._name)

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        x = x + attend(self.attn_norm(x))
        y: Tensor = x + self.ffn(self.ffn_norm(x))
        return y


class _Decoder(nn.Module):
    """Embedding, layers, norm and head: the parts that both models share."""

    _attention_name: str

    def __init__(self, config: ToyLlamaConfig, inference_config: InferenceConfig | None) -> None:
        super().__init__()
        self.config, self.inference_config = config, inference_config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            _Layer(config, self._attention_name, self._make_attention()) for _ in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def _make_attention(self) -> Attention:
        raise NotImplementedError

    def forward(self, input_ids: Tensor, cu_seqlens: Offsets) -> Tensor:
        """Logits (tokens, vocab_size) float32 of whole sequences input_ids (tokens); sequences may be empty. Every
        parameter has gradients.

        Raises:
            ShapeError: when cu_seqlens do not cover the tokens.
        """
        offsets = self._offsets(input_ids, cu_seqlens)
        x = self.embedding(input_ids)
        for layer in self.layers:
            attention = layer.attention
            x = layer(x, lambda normed, attention=attention: attention(normed, offsets))
        logits: Tensor = self.lm_head(self.norm(x)).float()
        return logits

    @torch.no_grad()
    def generate(self, input_ids: Tensor, cu_seqlens: Offsets, max_new_tokens: int = -1) -> Tensor:
        """The likeliest next tokens of every sequence, (sequences, max_new_tokens) int64, generated one by one with a
        cache.

        A sequence without a prompt has no logits to start from: its tokens are -1.

        Args:
            max_new_tokens: -1: the number in the inference config.

        Raises:
            ValueError: without an inference config, or when a batch or its sequences exceed its limits.
            ShapeError: when cu_seqlens do not cover the tokens.
        """
        bounds = self.inference_config
        if bounds is None:
            raise ValueError("inference_config is None; expected an InferenceConfig for generate")
        if max_new_tokens == 0 or max_new_tokens < -1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}; expected 1 or more, or -1 for the inference config's"
            )
        count = bounds.max_new_tokens if max_new_tokens == -1 else max_new_tokens
        offsets = self._offsets(input_ids, cu_seqlens)
        lengths = [end - begin for begin, end in pairwise(offsets)]
        room = max(lengths, default=0) + count - 1  # no token attends to the last one
        if len(lengths) > bounds.max_batch_size:
            raise ValueError(f"{len(lengths)} sequences; expected up to max_batch_size, {bounds.max_batch_size}")
        if room > bounds.max_length:
            raise ValueError(
                f"a sequence of {max(lengths)} tokens and {count} new ones takes {room}; expected up to max_length, "
                f"{bounds.max_length}"
            )
        rows = torch.tensor([row for row, length in enumerate(lengths) if length], device=input_ids.device)
        generated = torch.full((len(lengths), count), -1, dtype=torch.int64, device=input_ids.device)
        if len(rows) == 0:
            return generated
        layers: list[Any] = list(self.layers)
        states = [layer.attention.start(len(lengths), room) for layer in layers]
        one_each = list(accumulate((int(length > 0) for length in lengths), initial=0))
        last = torch.tensor(offsets[1:], device=input_ids.device)[rows] - 1
        tokens = input_ids
        for step in range(count):
            x = self.embedding(tokens)
            for layer, state in zip(layers, states, strict=True):
                attention, step_offsets = layer.attention, offsets if step == 0 else one_each
                x = layer(
                    x,
                    lambda normed, attention=attention, step_offsets=step_offsets, state=state: attention.extend(
                        normed, step_offsets, state
                    ),
                )
            x = x[last] if step == 0 else x
            tokens = self.lm_head(self.norm(x)).float().argmax(-1)
            generated[rows, step] = tokens
        return generated

    def _offsets(self, input_ids: Tensor, cu_seqlens: Offsets) -> list[int]:
        if input_ids.dim() != 1:
            raise ShapeError(f"input_ids is {tuple(input_ids.shape)}; expected (tokens), sequences after one another")
        return checked_offsets(cu_seqlens, input_ids)


class ToyNSALlama(_Decoder):
    """Layers with Native Sparse Attention. Parameters: embedding.weight, layers.<i>.{attn_norm, ffn_norm}.weight,
    layers.<i>.nsa.* as in `NativeSparseAttention`, layers.<i>.ffn.{gate, up, down}_proj.weight, norm.weight,
    lm_head.weight."""

    _attention_name = "nsa"
    config: ToyNSALlamaConfig

    def __init__(self, config: ToyNSALlamaConfig, inference_config: InferenceConfig | None = None) -> None:
        """
        Raises:
            TypeError: for a config of another type; ConfigError: naming the field and the rule.
        """
        if not isinstance(config, ToyNSALlamaConfig):
            raise TypeError(f"config is {type(config).__name__}; expected ToyNSALlamaConfig")
        super().__init__(config, inference_config)

    def _make_attention(self) -> Attention:
        config = self.config
        return NativeSparseAttention(
            config.compress_type,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.kernel_size,
            config.kernel_stride,
            config.block_size,
            config.topk,
            config.init_blocks,
            config.local_blocks,
            config.window_size,
            config.rope(),
        )


class ToyLlama(_Decoder):
    """Layers with full attention: parameters layers.<i>.self_attn.* instead of layers.<i>.nsa.*."""

    _attention_name = "self_attn"

    def __init__(self, config: ToyLlamaConfig, inference_config: InferenceConfig | None = None) -> None:
        """
        Raises:
            TypeError: for a config of another type.
        """
        if not isinstance(config, ToyLlamaConfig):
            raise TypeError(f"config is {type(config).__name__}; expected ToyLlamaConfig")
        super().__init__(config, inference_config)

    def _make_attention(self) -> Attention:
        config = self.config
        heads = (config.num_attention_heads, config.num_key_value_heads)
        return SelfAttention(config.hidden_size, *heads, config.head_dim, config.rope())
