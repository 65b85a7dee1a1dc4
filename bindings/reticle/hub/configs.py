"""The configs of sparse-attention-hub, with its names, argument order and checks, over Reticle's maskers.

Objects are plain dataclasses whose fields may be set until an attention is made of them. Sizes are counts (an int) or
fractions of the keys (a float). Options of Reticle's maskers that sparse-attention-hub lacks are keyword arguments, as
are `layers` and `heads`, which restrict a masker to some of them; docs/maskers.md documents both. `search_space` is
accepted for tuners and has no effect.
"""

from __future__ import annotations

import dataclasses
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from reticle import _masker
from reticle._core import ConfigError
from reticle.research.search import Choice

Size = int | float
Places = Sequence[int | str] | None
SearchSpace = dict[str, Any]


class MaskerConfig(_masker.MaskerConfig):
    """Base of all configs; yours are dataclasses, registered with their masker by `MaskerRegistry.register`."""

    _optional: ClassVar[tuple[str, ...]] = ("layers", "heads")
    """Fields that may be None."""
    _theirs: ClassVar[tuple[str, ...]] = ()
    """Fields that choose among what sparse-attention-hub does; `_check` refuses what Reticle does not."""

    def __post_init__(self) -> None:
        self._validate()

    @classmethod
    def _is_built_in(cls) -> bool:
        """True if exactly this class is the config of a Reticle masker; other classes have rules of their authors."""
        return "type" in cls.__dict__

    def _parameters(self) -> dict[str, Any]:
        """The fields that are parameters of a Reticle masker."""
        names = [each.name for each in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if name != "search_space" and name not in self._theirs}

    def _validate(self) -> None:
        """Refuses None where a value is expected, and values that sparse-attention-hub refuses."""
        if not self._is_built_in():
            return
        for name, value in self._parameters().items():
            if value is None and name not in self._optional:
                raise ConfigError(f"{type(self).__name__}: {name} cannot be None; expected a value")
        self._check()

    def _check(self) -> None:
        """Checks the rules of one config; overridden in subclasses."""

    def _expect(self, name: str, holds: Callable[[Any], bool], rule: str) -> None:
        value = getattr(self, name)
        if isinstance(value, Choice):
            return
        try:
            held = holds(value)
        except TypeError:
            raise ConfigError(f"{name} {rule}, got {value!r}, a {type(value).__name__}") from None
        if not held:
            raise ConfigError(f"{name} {rule}, got {value}")

    def to_dict(self) -> dict[str, Any]:
        """The entry of a JSON config. For a masker registered in Python, the entry is valid in this process while this
        object lives."""
        from reticle.hub.maskers import ResearchMasker

        if not self._is_built_in():
            self._masker = ResearchMasker.create_masker_from_config(self)
            return self._masker.to_dict()
        self._validate()
        given = {name: value for name, value in self._parameters().items() if value is not None}
        return {"type": self.type, **{name: str(v) if isinstance(v, Path) else v for name, v in given.items()}}


@dataclass
class FixedMaskerConfig(MaskerConfig):
    """Config of the causal masker, as in sparse-attention-hub, and base of the configs of deterministic maskers."""

    type = "causal"
    layers: Places = field(default=None, kw_only=True)
    heads: Places = field(default=None, kw_only=True)


@dataclass
class TopKMaskerConfig(FixedMaskerConfig):
    """Base of configs of maskers that keep the `heavy_size` best keys of each query."""

    heavy_size: Size

    def _check(self) -> None:
        self._expect("heavy_size", lambda size: size > 0, "must be > 0")


@dataclass
class TopPMaskerConfig(FixedMaskerConfig):
    """Base of configs of maskers that keep the best keys up to a share `top_p` of the softmax mass."""

    top_p: float

    def _check(self) -> None:
        self._expect("top_p", lambda share: 0 <= share <= 1, "must be in range [0, 1]")


@dataclass
class SamplingMaskerConfig(MaskerConfig):
    """Base of configs of maskers that draw keys; an attention has at most one of them."""

    layers: Places = field(default=None, kw_only=True)
    heads: Places = field(default=None, kw_only=True)


@dataclass
class SinkMaskerConfig(FixedMaskerConfig):
    """Keeps the first `sink_size` keys."""

    type = "sink"
    sink_size: Size
    search_space: SearchSpace = field(default_factory=dict)

    def _check(self) -> None:
        self._expect("sink_size", lambda size: size > 0, "must be > 0")


@dataclass
class LocalMaskerConfig(FixedMaskerConfig):
    """Keeps the last `window_size` keys of each query, its own position included."""

    type = "local"
    window_size: Size
    search_space: SearchSpace = field(default_factory=dict)
    dilation: int = field(default=1, kw_only=True)

    def _check(self) -> None:
        self._expect("window_size", lambda size: size > 0, "must be > 0")


@dataclass
class CausalMaskerConfig(FixedMaskerConfig):
    """Keeps all keys up to each query's position: another name of `FixedMaskerConfig`."""

    type = "causal"


@dataclass
class OracleTopKConfig(TopKMaskerConfig):
    """Keeps the keys with the highest scores."""

    type = "oracle_top_k"
    search_space: SearchSpace = field(default_factory=dict)


@dataclass
class OracleTopPMaskerConfig(TopPMaskerConfig):
    """Keeps the keys with the most softmax mass."""

    type = "oracle_top_p"
    search_space: SearchSpace = field(default_factory=dict)


@dataclass
class QuestTopKMaskerConfig(TopKMaskerConfig):
    """Keeps the pages of keys with the highest upper bounds of their scores (Quest, Tang et al. 2024)."""

    type = "quest_top_k"
    page_size: int
    label_bits: int = 16
    search_space: SearchSpace = field(default_factory=dict)
    min_pages: int = field(default=3, kw_only=True)

    def _check(self) -> None:
        super()._check()
        self._expect("label_bits", lambda bits: 0 < bits <= 16, "must be in range (0, 16]")
        self._expect("page_size", lambda size: size > 0, "must be greater than 0")


@dataclass
class DoubleSparsityTopKMaskerConfig(TopKMaskerConfig):
    """Keeps the keys with the highest scores over a few channels (Double Sparsity, Yang et al. 2024)."""

    type = "double_sparsity_top_k"
    sorted_channel_file: str | Path
    group_factor: int = 16
    label_bits: int = 4
    channel_selection: Literal["qk_proj", "q_proj", "k_proj"] = "qk_proj"
    search_space: SearchSpace = field(default_factory=dict)

    def _check(self) -> None:
        super()._check()
        self._expect("group_factor", lambda factor: factor > 0, "must be > 0")
        self._expect("label_bits", lambda bits: 0 < bits <= 16, "must be in range (0, 16]")
        if not Path(self.sorted_channel_file).exists():
            raise ConfigError(f"sorted_channel_file does not exist: {self.sorted_channel_file}")


@dataclass
class HashAttentionTopKMaskerConfig(TopKMaskerConfig):
    """Keeps the keys whose learned hash codes agree most with the query's (HashAttention, Desai et al. 2024).

    Weights are `hat_weights`, {layer: {query_matrix, query_bias, key_matrix, key_bias}}, each a list over the linear
    maps, or `hat_weight_file`, the same as a pickle (.pkl, .pt: read as data, never executed) or as safetensors
    (`reticle convert-hat`).
    """

    type = "hash_attention_top_k"
    _optional = ("layers", "heads", "hat_weights", "hat_weight_file")
    hat_bits: int
    hat_mlp_layers: int
    hat_mlp_hidden_size: int
    hat_mlp_activation: Literal["relu", "silu", "gelu", "tanh"]
    hat_weights: Mapping[Any, Any] | None = None
    hat_weight_file: str | Path | None = None
    search_space: SearchSpace = field(default_factory=dict)

    def _check(self) -> None:
        super()._check()
        if self.hat_weights is not None and self.hat_weight_file is not None:
            raise ConfigError("Only one of hat_weights or hat_weight_file should be provided")
        if self.hat_weights is None and self.hat_weight_file is None:
            raise ConfigError("Either hat_weights or hat_weight_file must be provided")

    def to_dict(self) -> dict[str, Any]:
        entry = super().to_dict()
        weights = entry.pop("hat_weights", None)
        if weights is not None or Path(entry["hat_weight_file"]).suffix != ".safetensors":
            entry["hat_weight_file"] = self._as_safetensors(weights)
        return entry

    def _as_safetensors(self, weights: Mapping[Any, Any] | None) -> str:
        """Writes weights in the form that the masker reads, to a file that exists as long as this object; returns its
        path."""
        from safetensors.torch import save_file

        from reticle import FormatError
        from reticle.research import hat

        content = hat.read(str(self.hat_weight_file)) if weights is None else dict(weights)
        try:
            tensors = hat.tensors_of(content)
        except FormatError as error:
            raise FormatError(f"{self.hat_weight_file or 'hat_weights'}: {error}") from None
        folder = tempfile.TemporaryDirectory(prefix="reticle-hat-")
        weakref.finalize(self, folder.cleanup)
        path = Path(folder.name, "hat.safetensors")
        save_file(tensors, path)
        return str(path)


@dataclass
class PQCacheConfig(TopKMaskerConfig):
    """Keeps the keys with the highest scores by product quantisation (PQCache, Zhang et al. 2024)."""

    type = "pq_cache"
    pq_group_factor: int
    pq_bits: int
    kmeans_iter: int
    init_offset: int
    metric: Literal["euclidean", "ip"]
    search_space: SearchSpace = field(default_factory=dict)
    seed: int = field(default=0, kw_only=True)

    def _check(self) -> None:
        super()._check()
        for name in ("pq_group_factor", "pq_bits", "kmeans_iter"):
            self._expect(name, lambda value: value > 0, "must be > 0")
        self._expect("init_offset", lambda offset: offset >= 0, "must be >= 0")
        if not isinstance(self.metric, Choice) and self.metric not in ("euclidean", "ip"):
            raise ConfigError(f"metric must be 'euclidean' or 'ip', got '{self.metric}'")


@dataclass
class SocketMaskerConfig(TopKMaskerConfig):
    """Keeps the keys with the highest scores by soft hashing (SOCKET)."""

    type = "socket"
    K: int = 4
    L: int = 1
    tau: float = 0.3
    search_space: SearchSpace = field(default_factory=dict)
    seed: int = field(default=0, kw_only=True)

    def _check(self) -> None:
        super()._check()
        self._expect("K", lambda bits: bits > 0, "must be positive")
        self._expect("L", lambda tables: tables > 0, "must be positive")
        self._expect("tau", lambda tau: tau > 0, "must be positive")


@dataclass
class RandomSamplingMaskerConfig(SamplingMaskerConfig):
    """Draws keys uniformly, each with probability `sampling_rate`."""

    type = "random_sampling"
    sampling_rate: float
    search_space: SearchSpace = field(default_factory=dict)
    replacement: bool = field(default=False, kw_only=True)

    def _check(self) -> None:
        self._expect("sampling_rate", lambda rate: 0 < rate <= 1, "must be in range (0, 1]")


@dataclass
class MagicPigConfig(SamplingMaskerConfig):
    """Draws keys by locality-sensitive hashing (MagicPIG, Chen et al. 2024): `lsh_l` tables of `lsh_k` bits."""

    type = "magic_pig"
    lsh_l: int
    lsh_k: int
    center: bool = True
    packing: Literal["int64", "float32"] = "int64"
    seed: int = 42
    search_space: SearchSpace = field(default_factory=dict)
    min_collisions: int = field(default=1, kw_only=True)
    lift: bool = field(default=True, kw_only=True)
    center_query: bool = field(default=True, kw_only=True)
    mean_skips_first: int = field(default=0, kw_only=True)
    mean_skips_last: int = field(default=0, kw_only=True)

    def _check(self) -> None:
        self._expect("lsh_l", lambda tables: tables > 0, "must be positive")
        self._expect("lsh_k", lambda bits: bits > 0, "must be positive")
        self._expect("packing", lambda packing: packing in ("int64", "float32"), "must be 'int64' or 'float32'")
        if self.packing == "int64" and not isinstance(self.lsh_k, Choice) and self.lsh_k > 64:
            raise ConfigError(f"For 'int64' packing, lsh_k must be <= 64, but got {self.lsh_k}")


@dataclass
class AdaptiveSamplingMaskerConfig(SamplingMaskerConfig):
    """Draws as many keys as an (epsilon, delta) error bound requires (vAttention, Desai et al. 2025)."""

    type = "adaptive_sampling"
    base_rate_sampling: Size
    epsilon: float
    delta: float
    init_offset: Size
    local_offset: Size
    search_space: SearchSpace = field(default_factory=dict)
    sampling_mode: Literal["uniform", "gumbel", "multinomial"] = "uniform"
    temperature: float = 1.0
    replacement: bool = field(default=False, kw_only=True)
    _theirs = ("sampling_mode", "temperature")

    def _check(self) -> None:
        if self.sampling_mode != "uniform":
            named = self.sampling_mode in ("gumbel", "multinomial")
            why = "is not supported; use uniform" if named else "must be one of uniform, gumbel, multinomial"
            raise ConfigError(f"sampling_mode {why}, got {self.sampling_mode}")
        if self.temperature != 1.0:
            raise ConfigError(f"temperature is not supported: uniform samples have none, got {self.temperature}")
        self._expect_size("base_rate_sampling", lambda rate: 0 <= rate < 1, "[0, 1)")
        for name in ("epsilon", "delta"):
            self._expect(name, lambda share: 0 < share < 1, "must be in (0, 1)")
        for name in ("init_offset", "local_offset"):
            self._expect_size(name, lambda share: 0 <= share <= 1, "[0, 1]")

    def _expect_size(self, name: str, share: Callable[[Any], bool], interval: str) -> None:
        value = getattr(self, name)
        if isinstance(value, float):
            self._expect(name, share, f"must be in {interval} if float")
        elif isinstance(value, int):
            self._expect(name, lambda count: count >= 0, "must be non-negative if int")
        elif not isinstance(value, Choice):
            raise ConfigError(f"{name} must be int or float, got {type(value).__name__}")
