#!/usr/bin/env python3
"""Checks attention and selection on a GPU against float64, then times them beside torch, in a few minutes.

    cmake --preset cuda -DRETICLE_BUILD_PYTHON=ON && cmake --build --preset cuda --target reticle_python
    PYTHONPATH=build-cuda/python python benchmarks/gpu.py [--quick] [--json FILE] [--seconds N]

A row that fails, or whose result is wrong, is reported, and the other rows still run; the exit status is then 1. Shares
are relative to limits measured on this GPU in the same run: the bandwidth of a large copy in bytes, and the flop rate
of a large bf16 matrix product. Times are medians of replays of a CUDA graph. Needs torch with CUDA.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import reticle
import reticle.torch
import torch

HEADS, KV_HEADS, DIM = 32, 8, 128
rows: list[dict[str, Any]] = []


class WrongResult(Exception):
    pass


def seconds(body: Callable[[], Any], repeats: int = 30, graph: bool = True) -> float:
    """Median seconds of one replay of a CUDA graph of `body`, or of one call."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            body()
    torch.cuda.synchronize()
    once = body
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            body()
        once = captured.replay
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        once()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def ceilings() -> tuple[float, float]:
    """(bytes per second of a copy, read plus written; flops per second of a matrix product)."""
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    copy = 2 * a.nbytes / seconds(lambda: b.copy_(a))
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return copy, 2 * 8192**3 / seconds(lambda: m @ m)


def check(name: str, output: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: torch.Tensor) -> None:
    """Compares an output with float64, for a mask `p` of probabilities or booleans; raises WrongResult if they
    differ."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1).double() for x in (k, v))
    scores = (q.double() @ k.mT / q.shape[-1] ** 0.5 - p.double().log()).masked_fill(p == 0, -torch.inf)
    expected = torch.nan_to_num(scores.softmax(-1)) @ v
    error = ((output.double() - expected).norm() / expected.norm()).item()
    bound = 1e-5 if q.dtype == torch.float32 else 1e-2
    print(f"{name}: relative error {error:.1e}", flush=True)
    if not error < bound:
        raise WrongResult(f"the error is {error:.1e}; expected below {bound:.0e}")


def random_tensors(queries: int, keys: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    make = lambda heads, n: torch.randn(1, heads, n, DIM, device="cuda", dtype=dtype)
    return [make(HEADS, queries), make(KV_HEADS, keys), make(KV_HEADS, keys)]


def record(name: str, ours: float, share: float, limit: str, peer: str = "", peer_seconds: float | None = None) -> None:
    ratio = "" if peer_seconds is None else f", {peer_seconds / ours:.2f}x {peer}"
    print(f"{name}: {1e6 * ours:.1f} us, {100 * share:.0f} % of {limit}{ratio}", flush=True)
    rows.append(
        {"name": name, "seconds": ours, "share": share, "of": limit, "peer": peer, "peer_seconds": peer_seconds}
    )


def decode(copy: float, keys: int, tokens: int, run: int) -> None:
    """One query over `tokens` keys per KV head, in runs of `run`."""
    random = np.random.default_rng(0)
    starts = np.concatenate([random.choice(keys // run, tokens // run, replace=False) for _ in range(KV_HEADS)])
    starts = np.sort(starts.reshape(KV_HEADS, -1), 1).repeat(HEADS // KV_HEADS, 0) * run
    chosen = (starts[..., None] + np.arange(run)).reshape(1, HEADS, 1, tokens)
    mask = reticle.Mask.from_row_indices((1, HEADS, 1, keys), chosen.reshape(-1, tokens))
    q, k, v = random_tensors(1, keys)
    made = reticle.plan(q, k, mask)
    plan = lambda *tensors: reticle.attention(*tensors, made)
    attended = torch.zeros(1, HEADS, 1, keys, dtype=torch.bool, device="cuda").scatter_(
        -1, torch.from_numpy(chosen).cuda(), True
    )
    name = f"decode, {keys // 1024}k keys, {tokens} tokens, runs of {run}"
    check(name, plan(q, k, v)[0], q, k, v, attended)
    moved = 2 * KV_HEADS * tokens * DIM * 2
    dense = seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    ours = seconds(lambda: plan(q, k, v))
    record(name, ours, moved / ours / copy, "copy bandwidth", "dense sdpa", dense)


def prefill(rate: float, length: int, block: int, density: float) -> None:
    """Random blocks of `block` below the diagonal, and all diagonal blocks."""
    random = np.random.default_rng(1)
    count = length // block
    kept = np.tril(random.random((count, count)) < density) | np.eye(count, dtype=bool)
    intervals = [np.stack([np.flatnonzero(row) * block, np.flatnonzero(row) * block + block], 1) for row in kept]
    sizes = np.repeat([len(each) for each in intervals], block)
    ends = np.concatenate([np.tile(each, (block, 1)) for each in intervals])
    mask = reticle.Mask.runs((1, 1, length, length), np.concatenate([[0], np.cumsum(sizes)]), ends)
    mask = mask.broadcast_to((1, HEADS, length, length))
    q, k, v = random_tensors(length, length)
    made = reticle.plan(q, k, mask, causal=True)
    plan = lambda *tensors: reticle.attention(*tensors, made, causal=True)
    name = f"prefill {length // 1024}k, blocks of {block}, {100 * density:.0f} %"
    last = slice(-256, None)
    positions = torch.arange(length, device="cuda")
    blocks = torch.from_numpy(kept).cuda()[positions[last] // block][:, positions // block]
    attended = (blocks & (positions <= positions[last, None])).expand(1, HEADS, 256, length)
    check(name, plan(q, k, v)[0][:, :, last], q[:, :, last], k, v, attended)
    flops = 4.0 * DIM * mask.restrict_causal().nnz
    ours = seconds(lambda: plan(q, k, v), 10)
    peer: float | None = None
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        attended_blocks = torch.from_numpy(kept).cuda()
        blocks_of = create_block_mask(
            lambda b, h, i, j: attended_blocks[i // block, j // block] & (j <= i),
            None,
            None,
            length,
            length,
            BLOCK_SIZE=128,
        )
        compiled = torch.compile(flex_attention)
        peer = seconds(lambda: compiled(q, k, v, block_mask=blocks_of, enable_gqa=True), 10)
    except Exception as reason:
        print(f"FlexAttention did not run: {type(reason).__name__}: {(str(reason).splitlines() or [''])[0]}")
    beside = "FlexAttention" if peer is not None else "FlexAttention did not run"
    record(name, ours, flops / ours / rate, "the bf16 matrix product", beside, peer)


def sampled(rate: float, length: int, share: float) -> None:
    """A window, and a random share of the keys before it, weighted by it; all heads attend to the same keys."""
    positions = torch.arange(length)
    apart = positions[:, None] - positions
    p = torch.where((apart >= 0) & (apart < 256), 1.0, share * ((apart >= 256) & (torch.rand(length, length) < share)))
    mask = reticle.Mask.dense(p[None, None].numpy()).broadcast_to((1, HEADS, length, length))
    q, k, v = random_tensors(length, length)
    made = reticle.plan(q, k, mask)
    plan = lambda *tensors: reticle.attention(*tensors, made)
    name, last = f"prefill {length // 1024}k, window and {100 * share:.0f} % sampled", slice(-256, None)
    p = p.cuda()
    check(name, plan(q, k, v)[0][:, :, last], q[:, :, last], k, v, p[last].expand(1, HEADS, 256, length))
    bias = -p.log().masked_fill(p == 0, torch.inf).to(q.dtype)
    sdpa = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
    flops = 2.0 * DIM * HEADS * length * length  # tiles below the diagonal are computed entirely
    ours = seconds(lambda: plan(q, k, v), 10)
    record(name, ours, flops / ours / rate, "the bf16 matrix product", "sdpa, dense bias", seconds(sdpa, 10))


def selected_blocks(length: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Up to `count` blocks of 64 for each query and KV head, including its own block: block numbers, and a dense block
    mask."""
    blocks = length // 64
    query_blocks = torch.arange(length, device="cuda") // 64
    ranks = torch.rand(1, KV_HEADS, length, blocks, device="cuda")
    ranks[..., torch.arange(length, device="cuda"), query_blocks] = 2
    ranks.masked_fill_(torch.arange(blocks, device="cuda") > query_blocks[:, None], -1)
    best = ranks.topk(min(count, blocks), dim=-1)
    numbers = best.indices.masked_fill(best.values < 0, blocks).sort(-1).values
    chosen = torch.zeros(1, KV_HEADS, length, blocks + 1, dtype=torch.bool, device="cuda").scatter_(-1, numbers, True)
    return numbers.masked_fill(numbers == blocks, -1).int(), chosen[..., :blocks]


def gradients(rate: float, length: int, count: int) -> None:
    """Forward and backward over selected blocks, planned on the device in every call, beside dense causal attention."""
    for checked in (1024, length):
        numbers, chosen = selected_blocks(checked, count)
        mask = reticle.torch.SelectedBlocks(numbers, 64)
        inputs = [x.requires_grad_() for x in random_tensors(checked, checked)]
        upstream = torch.randn_like(inputs[0])
        ours = lambda: torch.autograd.grad(reticle.attention(*inputs, mask)[0], inputs, upstream)  # noqa: B023
        if checked > 1024:
            continue
        exact = [x.detach().double().requires_grad_() for x in inputs]
        q, (k, v) = exact[0], (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in exact[1:])
        positions = torch.arange(checked, device="cuda")
        seen = chosen.repeat_interleave(64, 3) & (positions <= positions[:, None])
        scores = (q @ k.mT * DIM**-0.5).masked_fill(~seen.repeat_interleave(HEADS // KV_HEADS, 1), -torch.inf)
        wanted = torch.autograd.grad(scores.softmax(-1) @ v, exact, upstream.double())
        for name, one, other in zip(("queries", "keys", "values"), ours(), wanted, strict=True):
            error = ((one.double() - other).norm() / other.norm()).item()
            print(f"gradient by {name}: relative error {error:.1e}", flush=True)
            if not error < 2e-2:
                raise WrongResult(f"the gradient by {name} is off by {error:.1e}; expected below 2e-2")
    entries = HEADS // KV_HEADS * int(chosen.sum()) * 64  # diagonal blocks count entirely
    dense = [x.detach().requires_grad_() for x in inputs]
    sdpa = lambda: torch.nn.functional.scaled_dot_product_attention(*dense, is_causal=True, enable_gqa=True)
    peer = seconds(lambda: torch.autograd.grad(sdpa(), dense, upstream), 10, graph=False)
    took = seconds(ours, 10, graph=False)
    name = f"forward and backward, {length // 1024}k, {count} selected blocks of 64, plans included"
    record(name, took, 14.0 * DIM * entries / took / rate, "the bf16 matrix product", "dense causal sdpa", peer)


def native_sparse_attention(rate: float, length: int) -> None:
    """Forward pass of a Native Sparse Attention module, beside dense causal attention of its queries, keys and
    values."""
    from reticle.nsa import NativeSparseAttention

    module = NativeSparseAttention("weightedpool", 2048, 64, 4, DIM, 32, 16, 64, 16, 1, 2, 512).cuda().bfloat16()
    x, offsets = torch.randn(length, 2048, device="cuda", dtype=torch.bfloat16), [0, length]
    q = torch.randn(1, 64, length, DIM, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(1, 4, length, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        sdpa = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        peer, took = seconds(sdpa, 10), seconds(lambda: module(x, offsets), 10, graph=False)
    attended = 64.0 * length * (min(length, 1024) + min(length, 512) + length / 32)
    flops = 4 * DIM * attended + 2.0 * length * 2048 * (2 * 64 * DIM + 2 * 4 * DIM)
    record(f"NSA module, {length // 1024}k", took, flops / took / rate, "the bf16 matrix product", "dense sdpa", peer)


def choice_of_blocks(rate: float, length: int) -> None:
    """The selection of Native Sparse Attention: block scores from compressed keys, and the best blocks."""
    from reticle import nsa_gpu

    config = reticle._core.NsaConfig()
    q = torch.randn(length, 64, DIM, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(config.compressed_length(length), 4, DIM, device="cuda", dtype=torch.bfloat16)
    _, lse = nsa_gpu.attend_compressed(q, k, k, 0, config)
    ours = lambda: nsa_gpu.choose_blocks(q, k, 0, None, config, lse)
    first = min(length, 2048)
    by_torch = lambda: nsa_gpu._block_scores(
        q[:first].float() * DIM**-0.5, k, torch.arange(first, device="cuda"), -(-first // 64), config
    )
    blocks = torch.arange(-(-first // 64), device="cuda")
    query_blocks = torch.arange(first, device="cuda")[:, None] // 64
    forced = (
        by_torch().masked_fill((blocks < 1) | (blocks > query_blocks - 2), 4096).masked_fill(blocks > query_blocks, -1)
    )
    best = forced.topk(min(16, len(blocks)), -1).values.sum(-1)
    chosen = ours()[:, :first].long()
    found = forced.gather(-1, chosen.clamp(0)).masked_fill(chosen < 0, -1).sum(-1)
    name = f"choice of blocks, {length // 1024}k, 64 heads"
    print(f"{name}: scores within {((best - found).abs() / 4096).max().item():.1e} of the best", flush=True)
    if not (best - found).abs().max() < 0.5:
        raise WrongResult("chooses others than the best")
    took = seconds(ours, 10, graph=False)
    peer = seconds(by_torch, 10, graph=False) * (length / first)  # every query is scored against all compressed keys
    flops = 2.0 * DIM * 64 * length * k.shape[0] / 2
    record(name, took, flops / took / rate, "the bf16 matrix product", "torch's operations", peer)


def build_and_attend(copy: float, keys: int, heavy: int) -> None:
    """Sinks, a window and the best keys, selected on the device, and attention over them."""
    q, k, v = random_tensors(1, keys)
    fixed = [{"type": "sink", "sink_size": 128}, {"type": "local", "window_size": 128}]
    config = {"maskers": [*fixed, {"type": "oracle_top_k", "heavy_size": heavy}]}
    sparse, state = reticle.SparseAttention.from_json(json.dumps(config)), reticle.SequenceState()
    attend = lambda *tensors: sparse.attend(*tensors, state, stage="generation", causal=True)
    group = HEADS // KV_HEADS

    def by_torch() -> torch.Tensor:
        scores = (q.unflatten(1, (KV_HEADS, group)).squeeze(3) @ k.mT).reshape(1, HEADS, 1, keys) * DIM**-0.5
        ranked = scores.clone()
        ranked[..., :128] = ranked[..., -128:] = torch.inf
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, ranked.topk(heavy + 256).indices, True)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=chosen, enable_gqa=True)

    error = ((attend(q, k, v)[0] - by_torch()).norm() / by_torch().norm()).item()
    name = f"scores, selection and attention, {keys // 1024}k keys, {heavy} of them"
    print(f"{name}: differs from torch by {error:.1e}", flush=True)
    if not error < 2e-2:
        raise WrongResult(f"differs from torch by {error:.1e}")
    moved = KV_HEADS * DIM * 2 * (keys + 2 * (heavy + 256)) + HEADS * keys * 8
    ours = seconds(lambda: attend(q, k, v))
    record(name, ours, moved / ours / copy, "copy bandwidth", "the same in torch, dense masks", seconds(by_torch))


def plan(copy: float, length: int, density: float) -> None:
    """The plan for the tensor-core kernel, made from attended blocks of 64 per head."""
    q, k, v = random_tensors(length, length)
    blocks = torch.rand(1, HEADS, length // 64, length // 64, device="cuda") < density
    make = lambda: reticle.plan(q, k, reticle.torch.blocks(blocks, (64, 64)))
    name = f"plan of {HEADS} x {length // 64} x {length // 64} blocks, {100 * density:.0f} %"
    last = slice(-256, None)
    attended = blocks[:, :, -4:].repeat_interleave(64, 2).repeat_interleave(64, 3)
    check(name, reticle.attention(q, k, v, make())[0][:, :, last], q[:, :, last], k, v, attended)
    ours = seconds(make)
    record(name, ours, (blocks.nbytes + 8 * int(blocks.sum())) / ours / copy, "copy bandwidth")


def unite(copy: float, queries: int, keys: int, density: float) -> None:
    """The union of two masks of random tokens in device memory, beside a logical or of dense masks."""
    dense = [torch.rand(1, HEADS, queries, keys, device="cuda") < density for _ in range(2)]
    a, b = (reticle.Mask.dense(each.cpu().numpy()).to("cuda") for each in dense)
    name = f"union, {HEADS} x {queries} rows of {keys}, {100 * density:g} %, as {a.kind}"
    if (a | b) != reticle.Mask.dense((dense[0] | dense[1]).cpu().numpy()):
        raise WrongResult("differs from torch's")
    entries = 4 * sum(mask.nnz for mask in (a, b, a | b)) if a.kind == "csr" else 3 * a.nbytes
    ours = seconds(lambda: a | b)
    record(name, ours, entries / ours / copy, "copy bandwidth", "torch, dense", seconds(lambda: dense[0] | dense[1]))


def select(copy: float, count: int, length: int, k: int) -> None:
    scores = torch.randn(count, length, device="cuda")
    indices, _ = reticle.torch.top_k(scores, k)
    if not torch.equal(indices.long(), scores.topk(k).indices.sort(-1).values):
        raise WrongResult("differs from torch's")
    ours = seconds(lambda: reticle.torch.top_k(scores, k))
    name = f"top-k, {count} rows of {length}, k {k}"
    record(name, ours, scores.nbytes / ours / copy, "copy bandwidth", "torch.topk", seconds(lambda: scores.topk(k)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one row of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures to this file, after every row")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many")
    arguments = parser.parse_args()
    if reticle._core.cuda_device_count() == 0:
        sys.exit(f"no GPU: {reticle._core.why_cuda_is_unavailable()}")
    begun = time.monotonic()
    copy, rate = ceilings()
    name = torch.cuda.get_device_name()
    print(f"{name}: copies {copy / 1e9:.0f} GB/s, multiplies {rate / 1e12:.0f} Tflop/s (bf16)", flush=True)
    quick = arguments.quick
    work: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
    for keys, tokens in [(32768, 2048)] if quick else [(32768, 2048), (131072, 2048), (131072, 65536)]:
        work += [(decode, (copy, keys, tokens, run)) for run in (16, 1)]
    for block, density in [(128, 0.1)] if quick else [(128, 0.1), (128, 0.5), (64, 0.1)]:
        work.append((prefill, (rate, 8192 if quick else 32768, block, density)))
    work += [
        (gradients, (rate, 4096 if quick else 32768, 16)),
        (build_and_attend, (copy, 32768, 655)),
        (native_sparse_attention, (rate, 8192 if quick else 65536)),
        (choice_of_blocks, (rate, 8192 if quick else 65536)),
        (sampled, (rate, 4096 if quick else 16384, 0.1)),
        (plan, (copy, 16384, 0.1)),
    ]
    for queries, density in [(1, 0.1)] if quick else [(1, 0.1), (1024, 0.02), (1024, 0.1)]:
        work.append((unite, (copy, queries, 32768, density)))
    for length, k in [(131072, 2048)] if quick else [(131072, 2048), (131072, 256), (32768, 2048)]:
        work.append((select, (copy, 128, length, k)))
    for measure, settings in work:
        what = f"{measure.__name__}{settings[1:]}"
        try:
            if time.monotonic() - begun > arguments.seconds:
                raise TimeoutError("not begun: the time was up")
            measure(*settings)
        except Exception as reason:
            said = f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0]}"
            print(f"{what}: FAILED: {said}", flush=True)
            rows.append({"name": what, "failed": said})
        if arguments.json:
            arguments.json.write_text(json.dumps({"device": name, "copy": copy, "rate": rate, "rows": rows}, indent=1))
    if any("failed" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
