"""A language model in which every query attends to its most recent keys and the best of the others.

    from reticle.sparse_attention_decoder import AttentionConfig, SparseAttention

    model = SparseAttention(AttentionConfig(top_k=32, attention_window=512))  # the bundled byte-level model, or yours
    logits = model(input_ids)
    tokens = model.generate(input_ids, max_new_tokens=64)
    print(model.density)

The names are those of the Sparse Attention Decoder for LLMs, which cannot run as published. Here `reticle.hf` computes
what it promises: keys and values are cached, and `compare` measures against the model's original dense attention.
"""

from __future__ import annotations

import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import reticle.hf
from reticle.maskers import LocalConfig, OracleTopKConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reticle.maskers import MaskerConfig

BUNDLED = Path(__file__).resolve().parents[2] / "examples/data/byte-llama-3m-retrieval"

# Linux reports the peak memory of a process in the first file; writing to the second resets it.
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

#: Settings of the published configuration that are not supported, and what to do instead.
_OTHERS = {
    "position_persistence": "it has no effect there; keys are chosen for every query",
    "min_attention_score": "keys are chosen by their number, top_k",
    "recompute_threshold": "keys are chosen for every query",
    "use_token_reselection": "it has no effect there; keys are chosen for every query",
    "reselection_interval": "keys are chosen for every query",
}


@dataclass
class AttentionConfig:
    """The keys that a query attends to: the last `attention_window` keys, its position included, and the `top_k` others
    with the highest scores. A context no longer than both together has dense attention."""

    top_k: int = 64
    attention_window: int = 1024
    position_persistence: None = None
    min_attention_score: None = None
    recompute_threshold: None = None
    use_token_reselection: None = None
    reselection_interval: None = None

    def __post_init__(self) -> None:
        self.maskers()

    def maskers(self) -> list[MaskerConfig]:
        """The equivalent configs of Reticle's maskers.

        Raises:
            ValueError: for numbers that are not counts of 1 or more, and for unsupported settings, by name.
        """
        for name in ("top_k", "attention_window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a count of 1 or more keys")
        for name, instead in _OTHERS.items():
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is not supported: {instead}")
        return [LocalConfig(window_size=self.attention_window), OracleTopKConfig(heavy_size=self.top_k)]


class SparseAttention(nn.Module):
    """A causal language model whose prompts and answers attend as a config says. Its parameters are the given
    model's."""

    def __init__(self, config: AttentionConfig, model: Any = None) -> None:
        """
        Args:
            model: a model of transformers, which stays attached until `detach`; a name or folder of one, loaded in
                float32; or None for the bundled byte-level model.

        Raises:
            TypeError: for a config of another type. ValueError: when the model's attention does not call transformers'
                interface.
        """
        super().__init__()
        if not isinstance(config, AttentionConfig):
            raise TypeError(f"config is {type(config).__name__}; expected AttentionConfig")
        if model is None and not BUNDLED.exists():
            raise ValueError(
                "model is None, and this installation has no bundled one; expected a model, a name or a folder"
            )
        if model is None or isinstance(model, (str, Path)):
            from transformers import AutoModelForCausalLM

            load: Any = AutoModelForCausalLM.from_pretrained
            model = load(str(model or BUNDLED), dtype=torch.float32).eval()
        self.config = config
        self.model: Any = model
        self._attach()

    def _attach(self) -> None:
        chosen = self.config.maskers()
        self._attached = reticle.hf.attach(self.model, prefill=chosen, generation=chosen)

    def detach(self) -> None:
        """Restores the model's original attention permanently."""
        self._attached.detach()

    @contextmanager
    def dense(self) -> Iterator[None]:
        """A context in which the model has its original attention."""
        self._attached.detach()
        try:
            yield
        finally:
            self._attach()

    @property
    def density(self) -> float:
        """Attended keys over causally visible keys, for the last prompt and the tokens generated after it."""
        stages = (self._attached.prefill, self._attached.generation)
        visible = sum(stage.visible for stage in stages)
        return sum(stage.entries for stage in stages) / visible if visible else 1.0

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (batch, tokens, vocabulary) of whole sequences input_ids (batch, tokens), with gradients.

        Raises:
            ValueError: for another shape, or for tokens outside the model's vocabulary.
        """
        logits: Tensor = self.model(self._checked(input_ids), use_cache=False).logits
        return logits

    def generate(self, input_ids: Tensor, max_new_tokens: int = 64, **options: Any) -> Tensor:
        """Tokens (batch, tokens + generated), greedily decoded unless `options`, those of transformers' generate,
        override it."""
        ids = self._checked(input_ids)
        settings = {"do_sample": False, "attention_mask": torch.ones_like(ids), **options}
        tokens: Tensor = self.model.generate(ids, max_new_tokens=max_new_tokens, **settings)
        return tokens

    def _checked(self, input_ids: Tensor) -> Tensor:
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids is {tuple(input_ids.shape)}; expected (batch, tokens)")
        ids = input_ids.to(self.model.device)
        vocabulary = self.model.config.get_text_config().vocab_size
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"input_ids has tokens {int(ids.min())} to {int(ids.max())}; the model has {vocabulary}: use its own tokenizer"
            )
        return ids


@dataclass(frozen=True)
class Measurement:
    """The result of one way to generate."""

    tokens: Tensor
    """(batch, generated), without the prompt."""
    first_token_seconds: float
    """Of a prompt and its first token."""
    seconds_per_token: float
    """Of those after the first, of all sequences together."""
    density: float
    peak_bytes: int | None
    """The most memory: of the GPU, or of the process, weights included. None where the system does not tell."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all sequences together, after the first token."""
        return self.tokens.shape[0] / self.seconds_per_token if self.seconds_per_token else 0.0


def compare(
    model: SparseAttention, input_ids: Tensor, max_new_tokens: int = 64, *, repeats: int = 3
) -> dict[str, Measurement]:
    """ "dense" and "sparse" generation of the same number of tokens: the fastest times of `repeats` alternating runs.

    Raises:
        ValueError: for fewer than 2 new tokens, because the first is timed separately, or for no repeats.
    """
    if max_new_tokens < 2 or repeats < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens} and repeats {repeats}; expected 2 and 1 at least")
    runs: dict[str, list[Measurement]] = {"dense": [], "sparse": []}
    for _ in range(repeats):
        with model.dense():
            runs["dense"].append(_measure(model, input_ids, max_new_tokens, None))
        runs["sparse"].append(_measure(model, input_ids, max_new_tokens, model))
    return {
        name: Measurement(
            found[0].tokens,
            min(run.first_token_seconds for run in found),
            min(run.seconds_per_token for run in found),
            found[0].density,
            found[0].peak_bytes,
        )
        for name, found in runs.items()
    }


def _measure(model: SparseAttention, ids: Tensor, new: int, sparse: SparseAttention | None) -> Measurement:
    def seconds(count: int) -> tuple[float, Tensor]:
        _wait()
        began = time.perf_counter()
        tokens = model.generate(ids, count, min_new_tokens=count)
        _wait()
        return time.perf_counter() - began, tokens[:, ids.shape[1] :]

    first, _ = seconds(1)
    _reset_peak()
    whole, tokens = seconds(new)
    # On a busy machine the run with one token may take longer than the run with all of them.
    later = (whole - first) / (new - 1) if whole > first else whole / new
    density = 1.0 if sparse is None else sparse.density
    return Measurement(tokens, first, later, density, _peak())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        with suppress(OSError):  # some containers forbid writing
            _CLEAR.write_text("5")


def _peak() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()) if _STATUS.exists() else None
    return 1024 * int(found[1]) if found else None
