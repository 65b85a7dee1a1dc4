"""Code of the documents that Reticle was founded on, copied verbatim except for import lines.

Sizes are reduced where the originals need a large GPU. Results are compared with formulas in plain torch.
"""

import csv
import importlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import types
import typing
from itertools import pairwise
from pathlib import Path

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
pytest.importorskip("safetensors", reason="safetensors is not installed; ./bootstrap test --torch does")
hub = pytest.importorskip("reticle.hub")

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])
MODEL = SOURCE / "examples/data/byte-llama-3m-retrieval"


def run(snippet, imports, **names):
    """The names that a snippet defines, after replacing its imports according to a table."""
    for theirs, ours in imports.items():
        snippet = snippet.replace(theirs, ours)
    exec(compile(snippet, "<seed>", "exec"), names)
    return types.SimpleNamespace(**names)


# --- sparse-attention-hub -------------------------------------------------------------------------------------------

HUB = {"from sparse_attention_hub.": "from reticle.hub."}

HASH_ATTENTION = """
import torch
from sparse_attention_hub.sparse_attention.research_attention import (
    ResearchAttention,
    ResearchAttentionConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import (
    HashAttentionTopKMaskerConfig,
    LocalMaskerConfig,
    SinkMaskerConfig
)

# Create HashAttention configuration (Desai et al. 2024)
# Note: Requires pre-trained HashAttention weights file (.pkl format)
# it can be obtained from https://github.com/xAlg-ai/HashAttention-1.0/tree/main/artifacts/ for some models
config = ResearchAttentionConfig(
    masker_configs=[
        SinkMaskerConfig(sink_size=128),                         # Sink tokens for long sequences
        LocalMaskerConfig(window_size=128),                      # Local attention window
        HashAttentionTopKMaskerConfig(
            heavy_size=0.1,                                      # HashAttention top-K selection
            hat_bits=32,                                         # Hash attention bits
            hat_mlp_layers=3,                                    # MLP layers
            hat_mlp_hidden_size=128,                             # Hidden size
            hat_mlp_activation='silu',                           # Activation function
            hat_weight_file='path/to/hat_weights.pkl'            # Pre-trained weights file
        ),
    ]
)

# Create ResearchAttention instance
hash_attention = ResearchAttention.create_from_config(config)

# Use in attention computation
attention_output, attention_weights = hash_attention.custom_attention(
    module=attention_module,
    queries=queries,
    keys=keys,
    values=values,
    attention_mask=attention_mask,
    scaling=1.0,
    dropout=0.1,
    sparse_meta_data={},
    layer_idx=0
)
"""

MAGIC_PIG = """
from sparse_attention_hub.sparse_attention.research_attention import (
    ResearchAttention,
    ResearchAttentionConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import (
    SinkMaskerConfig,
    LocalMaskerConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.sampling.implementations import (
    MagicPigConfig
)

# Create MagicPig configuration (Chen et al. 2024)
config = ResearchAttentionConfig(
    masker_configs=[
        SinkMaskerConfig(sink_size=128),                         # Sink tokens for long sequences
        LocalMaskerConfig(window_size=128),                      # Local attention window
        # MagicPig with LSH parameters for similarity-based sampling
        MagicPigConfig(
            lsh_l=8,                  # 8 LSH tables
            lsh_k=8,                  # 8 bits per table
            center=True,              # Center keys and queries
            packing="int64",          # Use int64 packing for efficiency
            seed=42                   # Reproducible results
        )
    ]
)

magic_pig_attention = ResearchAttention.create_from_config(config)
"""

VATTENTION = """
from sparse_attention_hub.sparse_attention.research_attention import (
    ResearchAttention,
    ResearchAttentionConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import (
    SinkMaskerConfig,
    LocalMaskerConfig,
    OracleTopKConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.sampling.implementations import (
    AdaptiveSamplingMaskerConfig
)

# Create vAttention adaptive sampling configuration (Desai et al. 2025)
# Combines OracleTopK with AdaptiveSampling
config = ResearchAttentionConfig(
    masker_configs=[
        SinkMaskerConfig(sink_size=128),                         # Sink tokens for long sequences
        LocalMaskerConfig(window_size=128),                      # Local attention window
        OracleTopKConfig(heavy_size=0.1),                        # Oracle top-K selection (research only)
        AdaptiveSamplingMaskerConfig(
            base_rate_sampling=0.1,      # Base sampling rate
            epsilon=0.25,                # Error bound
            delta=0.25,                  # Confidence bound
            init_offset=128,             # Start index for sampling
            local_offset=128             # End offset for sampling
        )
    ]
)

vattention_adaptive = ResearchAttention.create_from_config(config)
"""

MULTI_MASKER = """
from sparse_attention_hub.sparse_attention.research_attention import (
    ResearchAttention,
    ResearchAttentionConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.fixed.implementations import (
    SinkMaskerConfig,
    LocalMaskerConfig,
    HashAttentionTopKMaskerConfig
)
from sparse_attention_hub.sparse_attention.research_attention.maskers.sampling.implementations import (
    MagicPigConfig
)

# Combine multiple maskers for complex attention patterns
# This example demonstrates a comprehensive sparse attention setup
config = ResearchAttentionConfig(
    masker_configs=[
        SinkMaskerConfig(sink_size=128),             # Sink tokens for long sequences
        LocalMaskerConfig(window_size=128),          # Local attention window
        HashAttentionTopKMaskerConfig(               # HashAttention top-K selection
            heavy_size=0.1,
            hat_bits=32,
            hat_mlp_layers=3,
            hat_mlp_hidden_size=128,
            hat_mlp_activation='silu',
            hat_weight_file='/data/apdesai/code/HashAttention-1.0/artifacts/llama3.1-8b-patch.64K.v1.pt'
        ),
        MagicPigConfig(                              # LSH-based sampling
            lsh_l=75,
            lsh_k=8
        )
    ]
)

complex_attention = ResearchAttention.create_from_config(config)
"""

BATCH, HEADS, KV_HEADS, QUERIES, KEYS, DIM = 2, 4, 2, 3, 900, 64


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((HEADS, QUERIES), (KV_HEADS, KEYS), (KV_HEADS, KEYS))
    return tuple(torch.randn(BATCH, heads, n, DIM, generator=generator) for heads, n in shapes)


def causal_bias():
    """The bias that hides keys after each query; the last query is at the last key."""
    hidden = torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(KEYS - QUERIES + 1)
    return torch.zeros(1, 1, QUERIES, KEYS).masked_fill(hidden, torch.finfo(torch.float32).min)


def scores_of(q, k, scaling=1.0):
    return q @ k.repeat_interleave(HEADS // KV_HEADS, 1).mT * scaling


def sinks_and_window():
    """The first 128 keys, and the last 128 up to each query's position."""
    position = torch.arange(KEYS - QUERIES, KEYS)[:, None]
    key = torch.arange(KEYS)
    return ((key < 128) | ((key <= position) & (key > position - 128))).expand(BATCH, HEADS, -1, -1)


def probabilities(attention, q, k, v, bias=None, scaling=1.0):
    """The probabilities after each masker of an attention, one after another."""
    mask, meta, found = hub.Mask.create_empty_mask((BATCH, HEADS, QUERIES, KEYS), device=q.device), {}, []
    for masker in attention.maskers:
        mask = masker.add_mask(k, q, v, bias, scaling, 0.0, meta, mask, layer_idx=0)
        found.append(mask.get_dense_mask())
    return found


def expected_output(q, k, v, p, bias=None, scaling=1.0):
    """Attention in which every key counts 1 / p times."""
    scores = scores_of(q, k, scaling) if bias is None else scores_of(q, k, scaling) + bias
    weights = (scores - torch.where(p > 0, scores, -torch.inf).amax(-1, keepdim=True)).exp()
    weights = torch.where(p > 0, weights / p.clamp_min(1e-30), 0)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights @ v.repeat_interleave(HEADS // KV_HEADS, 1)).transpose(1, 2), weights


def hash_weights(path):
    """Random weights in the shapes of the documents, from the script that makes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    script = [sys.executable, SOURCE / "tools/make_hash_weights.py", "--layers", "1", "--output", path]
    subprocess.run(script, check=True, capture_output=True)


def agreements(weights, q, k):
    """Agreeing minus disagreeing bits of the codes of queries and keys: (batch, heads, queries, keys)."""

    def code(x, side):
        maps = list(zip(weights[f"{side}_matrix"], weights[f"{side}_bias"], strict=True))
        for i, (matrix, bias) in enumerate(maps):
            x = x @ torch.as_tensor(matrix) + torch.as_tensor(bias)[:, None]
            x = torch.nn.functional.silu(x) if i + 1 < len(maps) else x
        return x.sign()

    return code(q, "query") @ code(k.repeat_interleave(HEADS // KV_HEADS, 1), "key").mT


def check_best(chosen, before, scores, count):
    """Checks that `count` keys per row were chosen from the remaining ones, and that no better one is left."""
    new = chosen & ~before
    assert (new.sum(-1) == count).all()
    least = torch.where(new, scores, torch.inf).amin(-1)
    left = torch.where(~chosen, scores, -torch.inf).amax(-1)
    assert (least >= left).all()


def test_hub_hash_attention_keeps_sinks_a_window_and_the_keys_of_the_closest_codes(tmp_path, monkeypatch):
    hash_weights(tmp_path / "path/to/hat_weights.pkl")
    monkeypatch.chdir(tmp_path)
    q, k, v = tensors()
    bias = causal_bias()
    module = torch.nn.Module().eval()
    seed = run(HASH_ATTENTION, HUB, attention_module=module, queries=q, keys=k, values=v, attention_mask=bias)
    p = probabilities(seed.hash_attention, q, k, v, bias)
    assert torch.equal(p[1] > 0, sinks_and_window())
    weights = pickle.loads((tmp_path / "path/to/hat_weights.pkl").read_bytes())[0]
    check_best(p[2] > 0, p[1] > 0, agreements(weights, q, k) + bias, KEYS // 10)
    output, expected_weights = expected_output(q, k, v, p[2], bias)
    torch.testing.assert_close(seed.attention_output, output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seed.attention_weights, expected_weights, atol=1e-6, rtol=1e-4)


def test_hub_dropout_drops_weights_while_the_module_trains(tmp_path, monkeypatch):
    hash_weights(tmp_path / "path/to/hat_weights.pkl")
    monkeypatch.chdir(tmp_path)
    q, k, v = tensors()
    q.requires_grad_()
    inputs = {"queries": q, "keys": k, "values": v, "attention_mask": None}
    torch.manual_seed(3)
    seed = run(HASH_ATTENTION, HUB, attention_module=torch.nn.Module().train(), **inputs)
    torch.manual_seed(3)
    kept = torch.nn.functional.dropout(torch.ones(BATCH, HEADS, QUERIES, KEYS), 0.1) > 0
    p = probabilities(seed.hash_attention, q, k, v)[2] * kept
    output, weights = expected_output(q, k, v, p)
    torch.testing.assert_close(seed.attention_output, output, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seed.attention_weights, weights.detach(), atol=1e-6, rtol=1e-4)
    (gradient,) = torch.autograd.grad(seed.attention_output.square().sum(), q)
    (expected,) = torch.autograd.grad(output.square().sum(), q)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-3)


def collision_probability(q, k, tables, bits):
    """The probability that a key shares a bucket with the query in at least one table (simple LSH, centred)."""
    k = k.repeat_interleave(HEADS // KV_HEADS, 1)
    mean = k.mean(2, keepdim=True)
    q, k = q - mean, k - mean
    longest = k.norm(dim=-1).amax((1, 2))[:, None, None, None]
    lifted = torch.cat([k / longest, (1 - (k.norm(dim=-1, keepdim=True) / longest) ** 2).clamp_min(0).sqrt()], -1)
    q = torch.nn.functional.pad(q / q.norm(dim=-1, keepdim=True), (0, 1))
    angle = (q @ (lifted / lifted.norm(dim=-1, keepdim=True)).mT).clamp(-1, 1).acos()
    return 1 - (1 - (1 - angle / torch.pi) ** bits) ** tables


def check_samples(p, before, expected):
    """Checks that sampled keys have their collision probability, and that their number agrees with it."""
    sampled = (p > 0) & ~before
    torch.testing.assert_close(p[sampled], expected[sampled], atol=2e-4, rtol=2e-3)
    assert sampled.sum().item() == pytest.approx(expected[~before].sum().item(), rel=0.25)


def test_hub_magic_pig_samples_by_hash_collisions():
    q, k, v = tensors()
    attention = run(MAGIC_PIG, HUB).magic_pig_attention
    p = probabilities(attention, q, k, v)
    before = sinks_and_window()
    assert torch.equal(p[1] > 0, before) and (p[2][before] == 1).all()
    check_samples(p[2], before, collision_probability(q, k, 8, 8))
    output, weights = attention.custom_attention(None, q, k, v, None, DIM**-0.5, 0.0, sparse_meta_data={}, layer_idx=0)
    expected = expected_output(q, k, v, p[2], scaling=DIM**-0.5)
    torch.testing.assert_close(output, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=1e-4)


def test_hub_vattention_keeps_the_heaviest_keys_and_meets_its_bound_by_a_sample():
    q, k, v = tensors()
    attention, scaling = run(VATTENTION, HUB).vattention_adaptive, DIM**-0.5
    certain = probabilities(attention, q, k, v, scaling=scaling)[2] > 0
    scores = scores_of(q, k, scaling)
    check_best(certain, sinks_and_window(), scores, KEYS // 10)
    output, weights = attention.custom_attention(None, q, k, v, None, scaling, 0.0, sparse_meta_data={}, layer_idx=0)
    sampled = (weights > 0) & ~certain
    assert sampled[..., 128 : KEYS - 128].sum() == sampled.sum() > 0, "nothing is drawn within the offsets"
    # A row's keys are drawn without replacement, so p is the share of the candidates that was drawn.
    share = sampled.sum(-1, keepdim=True) / (~certain)[..., 128 : KEYS - 128].sum(-1, keepdim=True)
    p = torch.where(certain, 1, torch.where(sampled, share, 0))
    expected = expected_output(q, k, v, p, scaling=scaling)
    torch.testing.assert_close(output, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=1e-4)
    estimate = torch.where(p > 0, scores.exp() / p.clamp_min(1e-30), 0).sum(-1)
    within = (estimate / scores.exp().sum(-1) - 1).abs() < 0.25
    assert within.float().mean() >= 0.75


def test_hub_hashed_keys_and_a_sample_of_the_others_add_up(tmp_path):
    hash_weights(tmp_path / "weights.pkl")
    place = "/data/apdesai/code/HashAttention-1.0/artifacts/llama3.1-8b-patch.64K.v1.pt"
    q, k, v = tensors()
    attention = run(MULTI_MASKER.replace(place, str(tmp_path / "weights.pkl")), HUB).complex_attention
    p = probabilities(attention, q, k, v)
    before = p[2] > 0
    weights = pickle.loads((tmp_path / "weights.pkl").read_bytes())[0]
    check_best(before, sinks_and_window(), agreements(weights, q, k), KEYS // 10)
    check_samples(p[3], before, collision_probability(q, k, 75, 8))
    output, _ = attention.custom_attention(None, q, k, v, None, 1.0, 0.0, sparse_meta_data={}, layer_idx=0)
    torch.testing.assert_close(output, expected_output(q, k, v, p[3])[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hash_attention", "magic_pig", "vattention", "multi_masker"])
def test_hub_examples_are_json_configs_too(name, tmp_path, monkeypatch):
    """The document's maskers and numbers as a config, which the command runs over the bundled tensors."""
    hash_weights(tmp_path / "path/to/hat_weights.pkl")
    monkeypatch.chdir(tmp_path)
    snippets = {"hash_attention": HASH_ATTENTION, "magic_pig": MAGIC_PIG, "vattention": VATTENTION}
    snippet = snippets.get(name, MULTI_MASKER).partition("# Create ResearchAttention instance")[0]
    place = "/data/apdesai/code/HashAttention-1.0/artifacts/llama3.1-8b-patch.64K.v1.pt"
    configs = run(snippet.replace(place, "path/to/hat_weights.pkl"), HUB).config.masker_configs
    text = (SOURCE / f"configs/research/{name}.json").read_text()
    maskers = json.loads(text)["maskers"]
    for entry, config in zip(maskers, configs, strict=True):
        made = {**config.to_dict(), "hat_weight_file": "hat_weights.safetensors"}
        assert all(made[key] == value for key, value in entry.items())
    command = Path(reticle.__file__).parents[2] / "tools/reticle"  # from the build of this package
    if not command.exists():
        pytest.skip("this build has no command")
    (tmp_path / f"{name}.json").write_text(text)
    script = [sys.executable, SOURCE / "tools/make_hash_weights.py", "--output", tmp_path / "hat_weights.safetensors"]
    subprocess.run(script, check=True, capture_output=True)
    options = [
        "--queries",
        "2",
        "--layers",
        "0",
        "--json",
        "--input",
        SOURCE / "examples/data/attention_4096.safetensors",
    ]
    done = subprocess.run([command, "run", tmp_path / f"{name}.json", *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["layers"][0]
    assert [masker["type"] for masker in found["maskers"]] == [entry["type"] for entry in maskers]
    assert 0.06 < found["density"] < 0.6


NEW_MASKER = '''
from dataclasses import dataclass, field
from typing import Any, Dict
from sparse_attention_hub.sparse_attention.research_attention.maskers.base import (
    MaskerConfig,
    MaskerRegistry
)

@dataclass
class MyCustomMaskerConfig(MaskerConfig):
    """Configuration for MyCustomMasker."""
    
    custom_param: float
    another_param: int = 10
    search_space: Dict[str, Any] = field(default_factory=dict)

from sparse_attention_hub.sparse_attention.research_attention.maskers.base import (
    ResearchMasker,
    AttentionTensorDimensions
)
from sparse_attention_hub.sparse_attention.utils.mask import Mask
import torch

@MaskerRegistry.register(MyCustomMaskerConfig)
class MyCustomMasker(ResearchMasker):
    """Custom masker implementation."""
    
    def __init__(self, config: MyCustomMaskerConfig) -> None:
        """Initialize custom masker."""
        super().__init__(config)
        self.custom_param = config.custom_param
        self.another_param = config.another_param
    
    def add_mask(
        self,
        keys: torch.Tensor,
        queries: torch.Tensor,
        values: torch.Tensor,
        attention_mask: torch.Tensor,
        scaling: float,
        dropout: float,
        sparse_meta_data: Dict[Any, Any],
        previous_mask: Mask,
        **kwargs: Dict[str, Any]
    ) -> Mask:
        """Implement your custom masking logic here."""
        
        # Extract tensor dimensions
        dims = self._extract_tensor_dimensions(keys, queries)
        
        # If previous mask is full, return it (optimization)
        if previous_mask.is_full_mask():
            return previous_mask
        
        # Implement your masking logic
        # Example: Create a custom attention pattern
        mask_shape = (dims.batch_size, dims.num_heads, 
                     dims.seq_len_queries, dims.seq_len_keys)
        
        # Your custom logic here...
        # For example, create a custom mask based on your parameters
        custom_mask = self._create_custom_mask(dims, keys, queries)
        
        # Merge with previous mask
        return previous_mask.merge_mask(custom_mask, inplace=False)
    
    def _create_custom_mask(
        self, 
        dims: AttentionTensorDimensions, 
        keys: torch.Tensor, 
        queries: torch.Tensor
    ) -> Mask:
        """Create your custom mask pattern."""
        # Implement your specific masking logic
        # This is where you define how your masker works
        
        # Example: Create a simple pattern
        mask_shape = (dims.batch_size, dims.num_heads, 
                     dims.seq_len_queries, dims.seq_len_keys)
        
        # Your implementation here...
        # Return a Mask object
        pass
    
    @classmethod
    def create_from_config(cls, config: MaskerConfig) -> "MyCustomMasker":
        """Create masker from configuration."""
        if not isinstance(config, MyCustomMaskerConfig):
            raise ValueError(f"Expected MyCustomMaskerConfig, got {type(config)}")
        return cls(config)
'''

USE_OF_NEW_MASKER = """
# Import your masker module to register it
from your_module import MyCustomMasker, MyCustomMaskerConfig

# Use in ResearchAttention configuration
config = ResearchAttentionConfig(
    masker_configs=[
        MyCustomMaskerConfig(custom_param=0.5, another_param=20)
    ]
)

research_attention = ResearchAttention.create_from_config(config)
"""

PATTERN = """
        # Every another_param-th key; of the others in the first custom_param of the keys, every second.
        key = torch.arange(dims.seq_len_keys)
        first = self._calculate_effective_size(self.custom_param, dims.seq_len_keys)
        kept = (key % self.another_param == 0) | ((key < first) & (key % 2 == 1))
        return Mask.create_mask_from_dense_mask(mask_shape, kept.expand(mask_shape), dtype=queries.dtype)
"""


def new_masker(pattern=PATTERN):
    """The document's module with its pattern filled in, importable as in its last step."""
    return run(NEW_MASKER.replace("        pass\n", pattern), HUB)


def pattern_mask(every=20, first=KEYS // 2):
    key = torch.arange(KEYS)
    return ((key % every == 0) | ((key < first) & (key % 2 == 1))).expand(BATCH, HEADS, QUERIES, KEYS)


def test_hub_a_new_masker_is_registered_and_used(monkeypatch):
    module = new_masker()
    monkeypatch.setitem(sys.modules, "your_module", module)
    names = {"ResearchAttention": hub.ResearchAttention, "ResearchAttentionConfig": hub.ResearchAttentionConfig}
    attention = run(USE_OF_NEW_MASKER, {}, **names).research_attention
    assert type(attention.maskers[0]) is module.MyCustomMasker
    q, k, v = tensors()
    output, weights = attention.custom_attention(None, q, k, v, None, 0.125, 0.0, sparse_meta_data={}, layer_idx=0)
    expected = expected_output(q, k, v, pattern_mask().float(), scaling=0.125)
    torch.testing.assert_close(output, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights, expected[1], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="Expected MyCustomMaskerConfig"):
        module.MyCustomMasker.create_from_config(hub.SinkMaskerConfig(1))


EXPORTS = """
# In maskers/__init__.py or implementations/__init__.py
from .my_custom_masker import MyCustomMasker, MyCustomMaskerConfig

__all__ = [
    # ... existing exports ...
    "MyCustomMasker",
    "MyCustomMaskerConfig",
]
"""


def test_hub_a_new_masker_is_exported_by_a_package(tmp_path, monkeypatch):
    (tmp_path / "maskers").mkdir()
    (tmp_path / "maskers/__init__.py").write_text(EXPORTS)
    code = NEW_MASKER.replace("from sparse_attention_hub.", "from reticle.hub.").replace("        pass\n", PATTERN)
    (tmp_path / "maskers/my_custom_masker.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    package = importlib.import_module("maskers")
    assert package.__all__ == ["MyCustomMasker", "MyCustomMaskerConfig"]
    made = hub.ResearchMasker.create_masker_from_config(package.MyCustomMaskerConfig(0.25))
    assert type(made) is package.MyCustomMasker and (made.custom_param, made.another_param) == (0.25, 10)


CORE_FUNCTION = '''
def add_mask(
    self,
    keys: torch.Tensor,           # Key tensor (b, h, sq, d)
    queries: torch.Tensor,        # Query tensor (b, h, sk, d)  
    values: torch.Tensor,         # Value tensor (b, h, sq, d)
    attention_mask: torch.Tensor, # Optional attention mask
    scaling: float,               # Attention scaling factor
    dropout: float,               # Dropout probability
    sparse_meta_data: Dict,       # Additional metadata
    previous_mask: Mask,          # Mask from previous masker
    **kwargs: Dict[str, Any]      # Additional arguments
) -> Mask:
    """Apply masking logic and return new mask."""
'''


@pytest.mark.parametrize(
    "masker", sorted(set(hub.MaskerRegistry.get_all_masker_types().values()), key=lambda m: m.__name__)
)
def test_hub_every_masker_is_called_as_the_document_writes_it(masker):
    theirs = run(CORE_FUNCTION, {}, torch=torch, Dict=dict, Any=typing.Any, Mask=hub.Mask).add_mask
    parameters = lambda function: [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]
    assert parameters(masker.add_mask) == parameters(theirs)


def test_hub_a_new_masker_stands_between_others():
    module = new_masker()
    q, k, v = tensors()
    custom = module.MyCustomMaskerConfig(0.5, 20)
    configs = [hub.SinkMaskerConfig(4), custom, hub.OracleTopKConfig(30), hub.MagicPigConfig(8, 8)]
    attention = hub.ResearchAttention.create_from_config(hub.ResearchAttentionConfig(configs))
    p = probabilities(attention, q, k, v, scaling=0.125)
    before = pattern_mask() | (torch.arange(KEYS) < 4)
    assert torch.equal(p[1] > 0, before)
    check_best(p[2] > 0, before, scores_of(q, k), 30)
    output, _ = attention.custom_attention(None, q, k, v, None, 0.125, sparse_meta_data={})
    torch.testing.assert_close(output, expected_output(q, k, v, p[3], scaling=0.125)[0], atol=1e-5, rtol=1e-4)
    # After a sampler, the pattern adds to probabilities, up to 1.
    late = hub.ResearchAttention.create_from_config(hub.ResearchAttentionConfig([configs[3], custom]))
    sampled, both = probabilities(late, q, k, v)
    torch.testing.assert_close(both, (sampled + pattern_mask()).clamp(max=1))
    output, _ = late.custom_attention(None, q, k, v, None, 1.0, sparse_meta_data={})
    torch.testing.assert_close(output, expected_output(q, k, v, both)[0], atol=1e-5, rtol=1e-4)


def test_hub_a_new_masker_is_told_of_the_call():
    heard = []

    class Listener(new_masker().MyCustomMasker):
        def add_mask(self, **call):
            heard.append(call)
            return super().add_mask(**call)

    attention = hub.ResearchAttention(None, [Listener(new_masker().MyCustomMaskerConfig(0.5))])
    q, k, v = tensors()
    bias, meta = causal_bias(), {"mine": 1}
    attention.custom_attention(None, q, k, v, bias, 0.5, 0.25, sparse_meta_data=meta, layer_idx=7, of_mine="word")
    (call,) = heard
    assert torch.equal(call["queries"], q) and torch.equal(call["keys"], k) and torch.equal(call["values"], v)
    assert torch.equal(call["attention_mask"], bias) and (call["scaling"], call["dropout"]) == (0.5, 0.25)
    assert call["sparse_meta_data"] is meta and call["layer_idx"] == 7 and call["of_mine"] == "word"
    assert call["previous_mask"].is_empty_mask() and call["previous_mask"].shape == (BATCH, HEADS, QUERIES, KEYS)


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("        pass\n", TypeError, "merge_mask got NoneType; expected a Mask"),
        ("        return Mask.create_empty_mask((1, 2), device='cpu')\n", ValueError, "different shapes"),
    ],
)
def test_hub_a_masker_that_is_not_filled_in_is_named(pattern, error, message):
    module = new_masker(pattern)
    config = hub.ResearchAttentionConfig([module.MyCustomMaskerConfig(0.5)])
    q, k, v = tensors()
    with pytest.raises(error, match=message):
        hub.ResearchAttention.create_from_config(config).custom_attention(None, q, k, v, None, 1.0, sparse_meta_data={})


def test_hub_a_masker_that_drops_what_was_chosen_is_refused():
    class Forgetful(new_masker().MyCustomMasker):
        def add_mask(self, previous_mask, **_):
            return hub.Mask.create_empty_mask(previous_mask.shape, device="cpu")

    q, k, v = tensors()
    maskers = [hub.SinkMasker(hub.SinkMaskerConfig(3)), Forgetful(new_masker().MyCustomMaskerConfig(0.5))]
    count = 3 * BATCH * HEADS * QUERIES
    with pytest.raises(ValueError, match=f"Forgetful.add_mask dropped {count} positions of previous_mask"):
        hub.ResearchAttention(None, maskers).custom_attention(None, q, k, v, None, 1.0, sparse_meta_data={})


# --- nano-sparse-attention ------------------------------------------------------------------------------------------

# As printed: the page's markup removed the underscores of __init__ and the asterisks of *args and **kwargs.
SKELETON = """
class MyNewAttention(Attention):
    def init(self, window_size):
        super().init()
        self.name = 'MyNewAttention'
        self.params = {"window_size": window_size}

    def forward(self, queries, keys, values, args, kwargs):
        # Create your attention mask
        attention_mask = ...

        # Track sparsity
        self.sparsity_ratios.append(self.calculate_sparsity_ratio(attention_mask))

        # Compute attention
        return self.attention(queries, keys, values, attention_mask)
"""

FILLED_IN = {
    "attention_mask = ...": "attention_mask = self.get_local_mask(queries.shape[-2], self.window_size, queries.device)"
}

DATA_SET = """
def load_my_dataset(tokenizer, kwargs):
    # Load your data
    dataset = ...
    examples = []

    for item in dataset:
        # Format your prompt
        input_text = f"Your prompt: {item['input']}"

        # Tokenize (with or without chat template)
        tokens = tokenizer(
            input_text,
            return_tensors="pt",
        )

        # Get output length for loss calculation
        output_length = ...
        examples.append({
            'input_ids': tokens['input_ids'],
            'attention_mask': tokens['attention_mask'],
            'output_length': output_length,
        })

    return examples 
"""

TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife."


def model_of_bytes():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def loss_by_mask(model, ids, output, seen):
    """Cross entropy of the last tokens with torch's attention, where `seen` (queries, keys) applies on top of
    causality."""
    seen = seen & torch.ones_like(seen).tril()
    bias = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model(ids, attention_mask=bias).logits[0, -output - 1 : -1]
    return torch.nn.functional.cross_entropy(logits, ids[0, -output:]).item()


def windows(tokens, width):
    """A bool matrix: True where a query sees a key, if all see the last `width` keys up to their position."""
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)
    return (j <= i) & (j > i - width)


def pruned_share(seen):
    """The share of causal connections that is pruned."""
    return 1 - seen.sum().item() / torch.ones_like(seen).tril(seen.shape[1] - seen.shape[0]).sum().item()


@pytest.mark.parametrize("written", [{}, {"def init": "def __init__", "super().init": "super().__init__"}])
def test_nano_a_new_pattern_attends_and_counts_its_sparsity(written):
    nano = pytest.importorskip("reticle.nano")
    made = run(SKELETON, {**FILLED_IN, **written}, Attention=nano.Attention).MyNewAttention(window_size=4)
    q, k, v = (torch.randn(1, 2, 10, 8) for _ in range(3))
    output = made.forward(q, k, v, (), {})
    weights = (q @ k.mT / 8**0.5).masked_fill(~windows(10, 4), -torch.inf).softmax(-1)
    torch.testing.assert_close(output, weights @ v, atol=1e-5, rtol=1e-4)
    assert made.sparsity_ratios == pytest.approx([pruned_share(windows(10, 4))])
    assert made.info() == {
        "name": "MyNewAttention",
        "params": {"window_size": 4},
        "masks": [],
        "sparsity": made.sparsity_ratios[0],
    }


def test_nano_a_handler_switches_a_model_between_a_new_pattern_and_its_generation():
    nano, evaluate = pytest.importorskip("reticle.nano"), pytest.importorskip("reticle.research.evaluate")
    model = model_of_bytes()
    whole = {"args, kwargs": "*args, **kwargs"}
    pattern = run(SKELETON, {**FILLED_IN, **whole}, Attention=nano.Attention).MyNewAttention(window_size=16)
    places = {"dataset = ...": "dataset = kwargs['items']", "output_length = ...": "output_length = 12"}
    load_my_dataset = run(DATA_SET, places).load_my_dataset
    examples = load_my_dataset(evaluate.ByteTokenizer(), {"items": [{"input": TEXT}, {"input": TEXT[::-1]}]})
    handler = nano.InferenceHandler(pattern, nano.LocalAndSinksAttention(window_size=5, attention_sinks=2))
    assert handler.name == "MyNewAttention_to_LocalAndSinksAttention"
    loss = nano.model_forward(model, examples, handler)
    nano.update_attention(model, None)
    ids = [example["input_ids"] for example in examples]
    n = ids[0].shape[1]
    assert bytes(ids[0][0].tolist()).decode() == f"Your prompt: {TEXT}" and ids[1].shape[1] == n
    few = windows(n, 5) | (torch.arange(n) < 2)
    seen = torch.where(torch.arange(n)[:, None] < n - 12, windows(n, 16), few)
    expected = [loss_by_mask(model, each, 12, seen) for each in ids]
    assert loss == pytest.approx(sum(expected) / 2, abs=1e-4)
    info = handler.info()
    assert info["prefill"]["sparsity"] == pytest.approx(pruned_share(seen[:-12, :-12]), abs=1e-6)
    assert info["generation"]["sparsity"] == pytest.approx(pruned_share(few[-12:].tril(n - 12)), abs=1e-6)
    # The same examples with configs and the model's cache.
    pattern = {"causal": True, "maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 5}]}
    prefill = {"causal": True, "maskers": [{"type": "local", "window_size": 16}]}
    cached = evaluate.loss(model, examples, prefill=prefill, generation=pattern, progress=False)
    assert cached.loss == pytest.approx(loss, abs=1e-4)
    assert cached.generation_sparsity == pytest.approx(info["generation"]["sparsity"], abs=1e-6)


def test_nano_losses_sparsities_and_pictures_of_a_text_come_by_one_command(tmp_path):
    pytest.importorskip("reticle.research.report")
    pytest.importorskip("matplotlib")
    (tmp_path / "text.txt").write_text(TEXT)
    config = {"causal": True, "maskers": [{"type": "local", "window_size": 10}]}
    (tmp_path / "window.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "reticle", "evaluate", tmp_path / "window.json", "--text", tmp_path / "text.txt"]
    command += ["--plot", tmp_path / "report", "--model", MODEL, "--window", "50", "--output-length", "8"]
    command += ["--stage", "generation"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dense, window = list(csv.DictReader((tmp_path / "report/losses.csv").open(newline="")))
    assert (dense["name"], window["name"]) == ("dense", "window") and dense["examples"] == "2"
    model, ids = model_of_bytes(), torch.tensor([list(TEXT.encode())])
    pieces, seen = (ids[:, :50], ids[:, 50:100]), windows(50, 10)
    late = torch.where(torch.arange(50)[:, None] < 42, True, seen)
    for row, mask in ((dense, torch.ones_like(late)), (window, late)):
        expected = sum(loss_by_mask(model, piece, 8, mask) for piece in pieces) / 2
        assert float(row["loss"]) == pytest.approx(expected, abs=1e-4)
    assert float(window["generation_sparsity"]) == pytest.approx(pruned_share(seen[-8:]), abs=1e-6)
    assert float(window["prefill_sparsity"]) == float(dense["generation_sparsity"]) == 0
    assert f"{float(window['loss']):.4f}" in done.stdout
    for name in ("losses", "masks_dense", "masks_window"):
        assert (tmp_path / f"report/{name}.png").read_bytes().startswith(b"\x89PNG")


class ChatTokenizer:
    """Bytes with a chat template."""

    chat_template = "..."

    def encode(self, text, *, add_special_tokens):
        assert not add_special_tokens, "templates write them"
        return list(text.encode())

    def decode(self, tokens):
        return bytes(tokens).decode()

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<user>{turns[0]['content']}<assistant>"


def test_nano_examples_of_a_text_stand_in_a_chat_template_or_not():
    report = pytest.importorskip("reticle.research.report")
    options = {"window": 20, "output_length": 5}
    plain = report.text_examples(ChatTokenizer(), TEXT, **options)
    assert len(plain) == len(TEXT) // 20
    assert bytes(plain[1]["input_ids"][0].tolist()).decode() == TEXT[20:40]
    chat = report.text_examples(
        ChatTokenizer(), TEXT, **options, chat_template=True, prompt="Go on: {text}", examples=2
    )
    assert len(chat) == 2 and all(example["output_length"] == 5 for example in chat)
    text = bytes(chat[1]["input_ids"][0].tolist()).decode()
    assert text == f"<user>Go on: {TEXT[20:35]}<assistant>{TEXT[35:40]}"
    for wrong, message in (
        ({"window": 4, "output_length": 4}, "output_length is 4; expected at least 1 and less than the window, 4"),
        ({"window": 500, "output_length": 4}, "expected at least a window, 500"),
        ({**options, "prompt": "Go on"}, "expected {text} in it"),
    ):
        with pytest.raises(ValueError, match=message):
            report.text_examples(ChatTokenizer(), TEXT, **wrong)
    with pytest.raises(ValueError, match="the tokenizer has none"):
        report.text_examples(
            pytest.importorskip("reticle.research.evaluate").ByteTokenizer(), TEXT, **options, chat_template=True
        )


# --- Sparse Attention Decoder for LLMs ------------------------------------------------------------------------------

DECODER = """
from sparse_attention_decoder import AttentionConfig, SparseAttention
from transformers import AutoTokenizer
import torch

# Load a tokenizer
tokenizer = AutoTokenizer.from_pretrained("bert-base-uncased")

# Tokenize input text
input_text = "The quick brown fox jumps over the lazy dog."
input_ids = tokenizer.encode(input_text, return_tensors="pt")

# Create a configuration for the model
config = AttentionConfig(top_k=32, attention_window=512)

# Initialize the model
model = SparseAttention(config)

# Run the model
with torch.no_grad():
    output = model(input_ids)
    print("Model output:", output)
"""


def test_decoder_snippet_gives_the_models_output(tmp_path, monkeypatch, capsys):
    """The tokenizer is a folder with the requested name and as few words as the bundled model has tokens."""
    model = model_of_bytes()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.", "the", "quick", "dog"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "bert-base-uncased").mkdir()
    (tmp_path / "bert-base-uncased/vocab.txt").write_text("\n".join(words))
    (tmp_path / "bert-base-uncased/config.json").write_text('{"model_type": "bert"}')
    monkeypatch.chdir(tmp_path)
    seed = run(DECODER, {"from sparse_attention_decoder": "from reticle.sparse_attention_decoder"})
    assert seed.input_ids.shape[1] > 10 and words[seed.input_ids[0, 1]] == "the"
    with torch.no_grad():
        torch.testing.assert_close(seed.output, model(seed.input_ids).logits, atol=1e-3, rtol=1e-3)
    assert "Model output: tensor(" in capsys.readouterr().out


def best_and_recent(module, query, key, value, attention_mask, scaling, top_k, window, **_):
    """Attention of a layer in plain torch: the last keys, and the best of the others."""
    key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scores, n = query @ key.mT * scaling, key.shape[2]
    i, j = torch.arange(n)[n - query.shape[2] :, None], torch.arange(n)
    old = j <= i - window
    best = scores.masked_fill(~old, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & old | ((j <= i) & ~old)
    return (scores.masked_fill(~kept, -torch.inf).softmax(-1) @ value).transpose(1, 2).contiguous(), None


def test_decoder_attends_to_recent_keys_and_the_best_of_the_others():
    decoder = pytest.importorskip("reticle.sparse_attention_decoder")
    transformers = pytest.importorskip("transformers")
    text = (TEXT + TEXT[::-1])[:150].encode()
    ids, model = torch.tensor([list(text)]), model_of_bytes()
    sparse = decoder.SparseAttention(decoder.AttentionConfig(top_k=6, attention_window=10), model_of_bytes())
    function = lambda *inputs, **words: best_and_recent(*inputs, **{**words, "top_k": 6, "window": 10})
    transformers.AttentionInterface.register("best_and_recent", function)
    model.set_attn_implementation("best_and_recent")
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(sparse(ids), expected, atol=2e-3, rtol=2e-3)
        kept = sum(min(n, 16) for n in range(1, 151)) / sum(range(1, 151))
        assert sparse.density == pytest.approx(kept)
        with sparse.dense():
            torch.testing.assert_close(sparse(ids), model_of_bytes()(ids).logits, atol=1e-3, rtol=1e-3)
        tokens = ids
        for _ in range(8):  # decoding with a cache equals processing the whole sequence
            tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(sparse.generate(ids, max_new_tokens=8), tokens)
    found = decoder.compare(sparse, ids, 4, repeats=1)
    assert torch.equal(found["sparse"].tokens, tokens[:, 150:154])
    assert found["dense"].density == 1 and found["sparse"].density < 0.3
    assert all(run.tokens_per_second > 0 and run.first_token_seconds > 0 for run in found.values())
    sparse.detach()
    torch.testing.assert_close(sparse.model(ids).logits, model_of_bytes()(ids).logits)


def test_decoder_mistakes_are_named():
    decoder = pytest.importorskip("reticle.sparse_attention_decoder")
    for wrong, message in (
        ({"top_k": 0}, "top_k is 0; expected a count of 1 or more keys"),
        ({"attention_window": 0.5}, "attention_window is 0.5; expected a count"),
        ({"min_attention_score": 0.1}, "min_attention_score is not supported: keys are chosen by their number, top_k"),
        ({"position_persistence": True}, "position_persistence is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder.AttentionConfig(**wrong)
    with pytest.raises(TypeError, match="config is dict; expected AttentionConfig"):
        decoder.SparseAttention({"top_k": 32})
    model = decoder.SparseAttention(decoder.AttentionConfig(), model_of_bytes())
    with pytest.raises(ValueError, match="tokens 3 to 300; the model has 256: use its own tokenizer"):
        model(torch.tensor([[3, 300]]))
    with pytest.raises(ValueError, match=r"input_ids is \(3,\); expected \(batch, tokens\)"):
        model(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="max_new_tokens is 1"):
        decoder.compare(model, torch.tensor([[1, 2]]), 1)


# --- native-sparse-attention-triton ---------------------------------------------------------------------------------

TOY_NSA_LLAMA = """
import torch
import torch.nn as nn
from native_sparse_attention.model import ToyNSALlama, ToyNSALlamaConfig, InferenceConfig

config = ToyNSALlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=8,
    num_attention_heads=32,
    num_key_value_heads=2,
    head_dim=128,
    vocab_size=128288,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    rope_scaling={
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    compress_type="weightedpool",
    kernel_size=32,
    kernel_stride=16,
    block_size=64,
    topk=8,
    init_blocks=1,
    local_blocks=2,
    window_size=512,
)

inference_config = InferenceConfig(
    max_batch_size=4,
    max_length=8192,
    max_new_tokens=128,
)

model = ToyNSALlama(config, inference_config).cuda().to(torch.bfloat16)

# Example input
batch_size = 4
seqlens = torch.randint(0, 4096, (batch_size,), dtype=torch.int32, device="cuda")
cu_seqlens = torch.zeros(batch_size + 1, dtype=torch.int32, device="cuda")
cu_seqlens[1:] = torch.cumsum(seqlens, dim=0)
input_ids = torch.randint(0, 128288, (cu_seqlens[-1],), dtype=torch.int64, device="cuda")
print(f"\\nEXAMPLE INPUT:\\ncu_seqlens: {cu_seqlens}\\ninput_ids: {input_ids.shape}\\n")

# Example forward
logits = model(input_ids, cu_seqlens)
print(f"\\nEXAMPLE OUTPUT:\\nlogits: {logits.shape}\\n")

# Example generate
output_tokens = model.generate(input_ids, cu_seqlens)
print(f"\\nEXAMPLE GENERATE:\\noutput_tokens: {output_tokens}\\n")
"""

# Sizes that a CPU computes in seconds.
SMALL = {
    "from native_sparse_attention": "from reticle.native_sparse_attention",
    "hidden_size=4096": "hidden_size=64",
    "intermediate_size=14336": "intermediate_size=96",
    "num_hidden_layers=8": "num_hidden_layers=2",
    "num_attention_heads=32": "num_attention_heads=8",
    "head_dim=128": "head_dim=16",
    "128288": "300",
    "randint(0, 4096": "randint(0, 400",
    "max_new_tokens=128": "max_new_tokens=8",
}


def rotated(x, positions, theta, scaling):
    """Llama 3's rotary positions applied to x (tokens, heads, head_dim)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half) / half)
    wave = 2 * torch.pi / frequency
    high, low = scaling["high_freq_factor"], scaling["low_freq_factor"]
    smooth = ((scaling["original_max_position_embeddings"] / wave - low) / (high - low)).clamp(0, 1)
    frequency = (1 - smooth) * frequency / scaling["factor"] + smooth * frequency
    angle = positions[:, None, None] * frequency
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def softmax_over(q, k, v, seen):
    """Attention (queries, heads, head_dim) over `seen` (heads or 1, queries, keys), and its weights."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)
    return torch.einsum("hqk,khd->qhd", p, v), p


def nsa_in_torch(x, weights, config):
    """Native Sparse Attention of one sequence x (tokens, hidden_size), written from the paper and the reference."""
    n, kernel, stride, block = len(x), config.kernel_size, config.kernel_stride, config.block_size
    q, k, v = ((x @ weights[f"proj_{name}.weight"].T).unflatten(-1, (-1, config.head_dim)) for name in ("q", "k", "v"))
    gates = (x @ weights["gate.0.weight"].T).sigmoid().unflatten(-1, (config.num_attention_heads, 3))
    count = max(0, (n - kernel) // stride + 1)
    windows = [slice(i * stride, i * stride + kernel) for i in range(count)]
    pool = lambda tokens, weight: torch.einsum("khd,hk->hd", tokens, weight)
    pe = weights["intra_block_pe"].transpose(0, 1)
    empty = k.new_zeros((0, *k.shape[1:]))
    small_k = torch.stack([pool(k[w] + pe, weights["compress_key"]) for w in windows]) if count else empty
    small_v = torch.stack([pool(v[w], weights["compress_value"]) for w in windows]) if count else empty
    turn = lambda y, at: rotated(y, at, config.rope_theta, config.rope_scaling)
    q, k, small_k = turn(q, torch.arange(n)), turn(k, torch.arange(n)), turn(small_k, stride * torch.arange(count))
    i, j = torch.arange(n)[:, None], torch.arange(n)
    complete = (stride * torch.arange(count) + kernel - 1 <= i)[None]
    compressed, p = softmax_over(q, small_k, small_v, complete)
    by_group = p.unflatten(0, (config.num_key_value_heads, -1)).sum(1)
    blocks, query_blocks = -(-n // block), torch.arange(n) // block
    # A compressed token's probability counts for a block once per stride that both contain.
    overlap = torch.zeros(count, blocks)
    for token in range(count):
        for part in range(kernel // stride):
            overlap[token, (token + part) * stride // block] += 1
    number = torch.arange(blocks)
    scores = by_group @ overlap
    always = (number < config.init_blocks) | (number > query_blocks[:, None] - config.local_blocks)
    scores = scores.masked_fill(always, torch.inf).masked_fill(number > query_blocks[:, None], -torch.inf)
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : config.topk]
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & (number <= query_blocks[:, None])
    seen = chosen[..., j // block] & (j <= i)
    group = config.num_attention_heads // config.num_key_value_heads
    selected, _ = softmax_over(q, k, v, seen.repeat_interleave(group, 0))
    window, _ = softmax_over(q, k, v, ((j <= i) & (j >= i - config.window_size))[None])
    mixed = sum(gates[..., b : b + 1] * branch for b, branch in enumerate((compressed, selected, window)))
    return mixed.flatten(1) @ weights["proj_o.weight"].T


def toy_nsa_llama_in_torch(ids, state, config):
    """The logits of one sequence."""
    norm = lambda x, weight: weight * x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    x = state["embedding.weight"][ids]
    for layer in range(config.num_hidden_layers):
        layer_state = {
            name.removeprefix(f"layers.{layer}."): w for name, w in state.items() if name.startswith(f"layers.{layer}.")
        }
        attention = {name.removeprefix("nsa."): w for name, w in layer_state.items() if name.startswith("nsa.")}
        x = x + nsa_in_torch(norm(x, layer_state["attn_norm.weight"]), attention, config)
        y = norm(x, layer_state["ffn_norm.weight"])
        gate, up = (y @ layer_state[f"ffn.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ layer_state["ffn.down_proj.weight"].T
    return norm(x, state["norm.weight"]) @ state["lm_head.weight"].T


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_nsa_toy_llama_computes_and_generates_as_the_guide_shows(dtype, capsys):
    pytest.importorskip("reticle.native_sparse_attention.model")
    device = {} if reticle._core.cuda_device_count() else {".cuda()": "", '"cuda"': '"cpu"'}
    torch.manual_seed(11)
    seed = run(TOY_NSA_LLAMA, {**SMALL, **device, "torch.bfloat16": f"torch.{dtype}"})
    printed = capsys.readouterr().out
    assert f"logits: torch.Size([{len(seed.input_ids)}, 300])" in printed and "EXAMPLE GENERATE" in printed
    assert seed.output_tokens.shape == (4, 8) and seed.output_tokens.dtype == torch.int64
    state = {name: tensor.float().cpu() for name, tensor in seed.model.state_dict().items()}
    offsets, ids = seed.cu_seqlens.tolist(), seed.input_ids.cpu()
    tolerance = {"float32": 2e-3, "bfloat16": 0.1}[dtype]
    assert max(end - begin for begin, end in pairwise(offsets)) > 64 * 4, "blocks are left out"
    for row, (begin, end) in enumerate(pairwise(offsets)):
        expected = toy_nsa_llama_in_torch(ids[begin:end], state, seed.config)
        difference = (seed.logits[begin:end].detach().cpu() - expected).abs()
        assert difference.mean() < tolerance / 10 and (difference < tolerance).float().mean() > 0.99
        if dtype == "float32":
            tokens = ids[begin:end]
            for _ in range(8):
                tokens = torch.cat([tokens, toy_nsa_llama_in_torch(tokens, state, seed.config)[-1:].argmax(-1)])
            assert torch.equal(seed.output_tokens[row].cpu(), tokens[-8:])
    seed.logits.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in seed.model.parameters())
