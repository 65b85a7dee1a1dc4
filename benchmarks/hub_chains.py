"""sparse-attention-hub's maskers and attention in plain torch, with dense masks, its default: the peer of whole
pipelines. Reimplemented from its behaviour; the same code decodes and prefills. Shapes are (batch, heads, queries,
keys)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

LOWEST = torch.finfo(torch.float32).min


def repeat_kv(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def sink(mask: torch.Tensor, size: int) -> torch.Tensor:
    chosen = torch.zeros_like(mask)
    chosen[..., :size] = 1
    return (mask + chosen).clamp(0, 1)


def local(mask: torch.Tensor, window: int) -> torch.Tensor:
    queries, keys = mask.shape[-2:]
    distance = torch.arange(keys)[None, :] - torch.arange(keys - queries, keys)[:, None]
    chosen = ((distance > -window) & (distance <= 0)).to(mask.dtype).expand_as(mask)
    return (mask + chosen).clamp(0, 1)


def take(mask: torch.Tensor, scores: torch.Tensor, count: int) -> torch.Tensor:
    """Adds the `count` highest-scoring keys that are not in the mask."""
    scores = scores.masked_fill(mask != 0, LOWEST)
    chosen = torch.zeros_like(mask).scatter_(-1, scores.topk(count, dim=-1).indices, 1.0)
    return (mask + chosen).clamp(0, 1)


def causal_bias(queries: int, keys: int) -> torch.Tensor:
    distance = torch.arange(keys)[None, :] - torch.arange(keys - queries, keys)[:, None]
    return torch.zeros(1, 1, queries, keys).masked_fill(distance > 0, LOWEST)


def oracle_top_k(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, count: int) -> torch.Tensor:
    return take(mask, q @ repeat_kv(k, q.shape[1]).transpose(-1, -2) + bias, count)


def adaptive_sampling(
    mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, scaling: float, *, base: float,
    epsilon: float, delta: float, start: int, recent: int,
) -> torch.Tensor:  # fmt: skip
    """vAttention: a base sample estimates the variance, which determines every row's budget."""
    scores = q @ repeat_kv(k, q.shape[1]).transpose(-1, -2) * scaling + bias
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    static = torch.where(mask != 0, weights / (mask + 1e-6), 0).sum(-1, keepdim=True)
    length = k.shape[-2] - recent - start
    count = max(2, int(base * length))
    drawn = torch.randint(start, start + length, (*mask.shape[:-1], count))
    sample = weights.gather(-1, drawn)
    deviation = sample.std(-1, keepdim=True).clamp_min(1e-8)
    base_mask = torch.zeros_like(mask).scatter_(-1, drawn, count / length)
    total = static + torch.where(base_mask != 0, weights / (base_mask + 1e-6), 0).sum(-1, keepdim=True)
    z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - delta))
    budget = (z * deviation * length / (epsilon * total).clamp_min(1e-8)).square().clamp(1, length).floor()
    budget = budget.clamp(count, length).long().flatten()
    rows = torch.repeat_interleave(torch.arange(budget.numel()), budget)
    columns = torch.randint(start, start + length, (int(budget.sum()),))
    chosen = torch.zeros_like(mask)
    chosen.view(-1, mask.shape[-1])[rows, columns] = (budget / length)[rows].to(mask.dtype)
    return (mask + chosen).clamp(0, 1)


def quest(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, count: int, page: int) -> torch.Tensor:
    keys = repeat_kv(k, q.shape[1])
    batch, heads, length, width = keys.shape
    pages = (length + page - 1) // page
    padded = torch.nn.functional.pad(keys, (0, 0, 0, pages * page - length), value=0.0)
    blocks = padded.view(batch, heads, pages, page, width)
    low, high = blocks.amin(3), blocks.amax(3)
    bounds = torch.maximum(q[:, :, :, None] * low[:, :, None], q[:, :, :, None] * high[:, :, None]).sum(-1)
    chosen = bounds.topk(min(pages, max(3, count // page)), dim=-1).indices
    tokens = (chosen[..., None] * page + torch.arange(page)).flatten(-2).clamp_max(length - 1)
    return torch.maximum(mask, torch.zeros_like(mask).scatter_(-1, tokens, 1.0))


@dataclass
class HashTopK:
    """HashAttention: codes are signs of a linear map; the codes of old keys are cached."""

    query_matrix: torch.Tensor
    query_bias: torch.Tensor
    key_matrix: torch.Tensor
    key_bias: torch.Tensor
    codes: torch.Tensor | None = None

    def forget_after(self, keys: int) -> None:
        self.codes = None if self.codes is None or keys == 0 else self.codes[:, :, :keys]

    def __call__(
        self, mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor, count: int
    ) -> torch.Tensor:
        keys = repeat_kv(k, q.shape[1])
        known = 0 if self.codes is None else self.codes.shape[-2]
        if known < keys.shape[-2]:
            new = torch.sign(keys[:, :, known:] @ self.key_matrix + self.key_bias[:, None])
            self.codes = new if self.codes is None else torch.cat([self.codes, new], dim=-2)
        assert self.codes is not None
        signs = torch.sign(q @ self.query_matrix + self.query_bias[:, None])
        return take(mask, signs @ self.codes.transpose(-1, -2) + bias, count)


@dataclass
class MagicPig:
    """MagicPIG: packed signatures of centred, normalised keys are cached; p is the collision probability."""

    tables: int = 150
    bits: int = 10
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(42))
    planes: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    signatures: torch.Tensor | None = None

    def forget_after(self, keys: int) -> None:
        self.signatures = None if self.signatures is None or keys == 0 else self.signatures[:, :, :keys]

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        signs = (x @ self.planes > 0).view(*x.shape[:-1], self.tables, self.bits)
        return (signs * (1 << torch.arange(self.bits))).sum(-1)

    def __call__(self, mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        keys = repeat_kv(k, q.shape[1])
        if self.mean is None:
            self.mean = keys.mean(dim=-2, keepdim=True)
            self.planes = torch.randn(k.shape[-1] + 1, self.tables * self.bits, generator=self.generator)
        keys, queries = keys - self.mean, q - self.mean
        norms = keys.norm(dim=-1, keepdim=True)
        largest = norms.max()
        keys = torch.cat([keys, (largest**2 - norms**2).clamp_min(0).sqrt()], dim=-1) / largest
        queries = torch.nn.functional.pad(queries / (queries.norm(dim=-1, keepdim=True) + 1e-8), (0, 1))
        cosine = torch.nn.functional.normalize(queries, dim=-1) @ torch.nn.functional.normalize(keys, dim=-1).transpose(
            -1, -2
        )
        p = 1 - (1 - (1 - torch.acos(cosine.clamp(-1, 1)) / math.pi) ** self.bits) ** self.tables
        known = 0 if self.signatures is None else self.signatures.shape[-2]
        if known < keys.shape[-2]:
            new = self.pack(keys[:, :, known:])
            self.signatures = new if self.signatures is None else torch.cat([self.signatures, new], dim=-2)
        assert self.signatures is not None
        matched = torch.zeros_like(mask, dtype=torch.bool)
        codes = self.pack(queries)
        for table in range(self.tables):  # a comparison of all tables at once would take gigabytes
            matched |= codes[..., :, None, table] == self.signatures[..., None, :, table]
        return (mask + torch.where(matched, p, 0)).clamp(0, 1)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor, scaling: float
) -> torch.Tensor:
    keys, values = repeat_kv(k, q.shape[1]), repeat_kv(v, q.shape[1])
    scores = q @ keys.transpose(-1, -2) * scaling + bias
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = torch.where(mask != 0, weights / (mask + 1e-6), 0)
    return (weights @ values) / weights.sum(-1, keepdim=True)


@dataclass
class Problem:
    """The inputs of one call; `count` is the number of keys that top-k methods add."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor
    scaling: float
    count: int


@dataclass
class Chain:
    """Sinks of 128, a window of 128 and the named maskers, then attention. In decoding, only one key is new to the
    caches."""

    added: tuple[str, ...]
    hash_top_k: HashTopK
    pig: MagicPig = field(default_factory=MagicPig)

    def __call__(self, problem: Problem) -> torch.Tensor:
        q, k, bias, count = problem.q, problem.k, problem.bias, problem.count
        queries, keys = q.shape[2], k.shape[2]
        known = keys - 1 if queries == 1 else 0
        mask = local(sink(torch.zeros(*q.shape[:3], keys), 128), 128)
        if "oracle_top_k" in self.added:
            mask = oracle_top_k(mask, q, k, bias, count)
        if "adaptive_sampling" in self.added:
            mask = adaptive_sampling(
                mask, q, k, bias, problem.scaling, base=0.05, epsilon=0.1, delta=0.1, start=128, recent=128
            )
        if "hash_attention" in self.added:
            self.hash_top_k.forget_after(known)
            mask = self.hash_top_k(mask, q, k, bias, count)
        if "quest" in self.added:
            mask = quest(mask, q, k, count, 16)
        if "magic_pig" in self.added:
            self.pig.forget_after(known)
            mask = self.pig(mask, q, k)
        return attention(q, k, problem.v, mask, bias, problem.scaling)
