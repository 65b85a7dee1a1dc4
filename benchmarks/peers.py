"""Reticle beside its peers in one process: numpy, scipy, torch, GraphBLAS, CRoaring and sparse-attention-hub's method.

    peers.py BUILD_FOLDER [--section NAME ...] [--write docs/performance.md] [--save FILE] [--compare FILE]

Every row first compares outputs, then times Reticle and the peer in interleaved repeats; ratios are of medians. A peer
that is not installed is skipped with a message. Targets are ratios, not times, so they hold on any machine. The threads
of OpenMP, which torch uses, sleep when idle: otherwise they would spin for milliseconds while the next work is timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # takes effect only before OpenMP is loaded

import numpy as np
from harness import Row, chart, fallen, interleaved, limits, line, lines, machine, save, saved_ratios, table

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
Section = Callable[[Any, dict[str, Any]], Iterator[Row]]


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def agree(ours: Any, peer: Any, tolerance: float, what: str) -> None:
    """Fails unless the arrays agree, so that only equal computations are timed."""
    worst = float(np.abs(np.asarray(ours, dtype=np.float32) - np.asarray(peer, dtype=np.float32)).max())
    if not worst <= tolerance:
        raise SystemExit(f"{what}: outputs differ by {worst}, more than {tolerance}")


# --- the mask algebra -------------------------------------------------------------------------------------------------


def random_csr(rows: int, columns: int, density: float, seed: int) -> Any:
    import scipy.sparse as sp

    return sp.random_array(
        (rows, columns), density=density, format="csr", dtype=np.float32, rng=np.random.default_rng(seed)
    )


def as_mask(reticle: Any, csr: Any, *, weighted: bool) -> Any:
    csr.sort_indices()
    p = csr.data if weighted else None
    return reticle.Mask.csr((1, 1, *csr.shape), csr.indptr, csr.indices, p)


def unions(reticle: Any, limit: dict[str, Any]) -> Iterator[Row]:
    """Masks of 1024 x 32768 with uniform densities, one thread."""
    import scipy.sparse as sp

    reticle.set_num_threads(1)
    for percent in (0.1, 1, 10, 30):
        a, b = (random_csr(1024, 32768, percent / 100, seed) for seed in (1, 2))
        for weighted in (False, True):
            if weighted:
                for matrix in (a, b):  # multiples of 1/64, whose sums are exact
                    matrix.data = np.random.default_rng(3).integers(1, 65, matrix.data.size).astype(np.float32) / 64
            else:
                a.data[:], b.data[:] = 1, 1
            ours_a, ours_b = (as_mask(reticle, matrix, weighted=weighted) for matrix in (a, b))

            def by_scipy(a: Any = a, b: Any = b) -> Any:
                total = a + b
                np.minimum(total.data, 1, out=total.data)
                return total

            row_ptr, indices, p = (ours_a | ours_b).to_csr()
            total = by_scipy()
            total.sort_indices()
            assert np.array_equal(indices, total.indices) and np.array_equal(row_ptr, total.indptr), "unions differ"
            if weighted:
                agree(p, total.data, 0, "weighted union")
            name = f"{percent} %" + (", weighted" if weighted else "")
            section = "Weighted union (sum, at most 1)" if weighted else "0/1 union"
            peers: list[tuple[str, Callable[[], object], float]] = [
                ("scipy A+B", by_scipy, (4.5 if percent >= 10 else 3) if weighted else 5)
            ]
            if not weighted and installed("graphblas"):
                import graphblas as gb

                gb.ss.config["nthreads"] = 1
                left, right = (gb.io.from_scipy_sparse(sp.csr_array(matrix)) for matrix in (a, b))
                peers.append(
                    ("GraphBLAS eWiseAdd", lambda left=left, right=right: left.ewise_add(right, "max").new(), 8)
                )
            if not weighted and installed("pyroaring"):
                from pyroaring import BitMap

                def bitmaps(matrix: Any) -> list[Any]:
                    return [
                        BitMap(matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]) for i in range(matrix.shape[0])
                    ]

                rows_a, rows_b = bitmaps(a), bitmaps(b)
                peers.append(
                    (
                        "CRoaring or + to_array",
                        lambda x=rows_a, y=rows_b: [(i | j).to_array() for i, j in zip(x, y, strict=True)],
                        1,
                    )
                )
            moved = sum(
                4 * mask.nnz + 8 * 1025 + (4 * mask.nnz if weighted else 0)
                for mask in (ours_a, ours_b, ours_a | ours_b)
            )
            works = [lambda x=ours_a, y=ours_b: x | y, *(work for _, work, _ in peers)]
            ours, *others = interleaved(works)
            for (peer, _, reach), taken in zip(peers, others, strict=True):
                yield Row(section, name, peer, ours, taken, reach, moved / ours / limit["copy"], "copy bandwidth")
            if not weighted and percent == 10:
                bits_a, bits_b = (reticle.Mask.dense(matrix.toarray()[None, None] != 0) for matrix in (a, b))
                assert bits_a.kind == "bits" and (bits_a | bits_b) == (ours_a | ours_b)
                bits, taken = interleaved([lambda x=bits_a, y=bits_b: x | y, by_scipy])
                share = 3 * bits_a.nbytes / bits / limit["copy"]
                yield Row(section, f"{name}, as bits", "scipy A+B", bits, taken, 100, share, "copy bandwidth")


# --- selection --------------------------------------------------------------------------------------------------------


def selection(reticle: Any, limit: dict[str, Any]) -> Iterator[Row]:
    """Ascending indices of the k highest scores in one row, one thread."""
    from reticle._core import top_k

    reticle.set_num_threads(1)
    random = np.random.default_rng(1)
    newer = int(np.__version__.split(".")[0]) >= 2
    torch = None
    if installed("torch"):
        import torch

        torch.set_num_threads(1)
    kinds = {
        "random": lambda n: random.standard_normal(n).astype(np.float32),
        "all equal": lambda n: np.ones(n, np.float32),
        "sorted": lambda n: np.arange(n, dtype=np.float32),
        "-inf tail": lambda n: np.where(np.arange(n) < n // 2, random.standard_normal(n), -np.inf).astype(np.float32),
    }
    for n in (4096, 32768, 131072, 1048576):
        for kind, make in kinds.items():
            if kind != "random" and n != 131072:
                continue
            scores = make(n)
            for k in (256, 2048):
                ours_indices = top_k(scores, k)
                by_numpy = lambda scores=scores, k=k, n=n: np.sort(np.argpartition(scores, n - k)[n - k :])
                agree(np.sort(scores[ours_indices]), np.sort(scores[by_numpy()]), 0, "top-k scores")
                assert np.all(np.diff(ours_indices) > 0)
                works = [
                    lambda scores=scores, k=k: top_k(scores, k),
                    lambda scores=scores, k=k, n=n: np.argpartition(scores, n - k)[n - k :],
                ]
                if torch is not None:
                    row = torch.from_numpy(scores)
                    works.append(lambda row=row, k=k: torch.topk(row, k, sorted=False))
                ours, *others = interleaved(works)
                names = ("numpy argpartition", "torch.topk unsorted")
                for name, taken, reach in zip(names, others, (3 if newer else 15, 8), strict=False):
                    yield Row("Top-k", f"{n} floats{'' if kind == 'random' else ', ' + kind}, k {k}", name, ours, taken, reach,
                              4 * n / ours / limit["read"][0], "read bandwidth")  # fmt: skip


# --- the executor -----------------------------------------------------------------------------------------------------


def tensors(heads: int, kv_heads: int, queries: int, keys: int, d: int, dtype: Any) -> tuple[Any, Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(1)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)
    return make(1, heads, queries, d), make(1, kv_heads, keys, d), make(1, kv_heads, keys, d)


def random_decode_mask(
    reticle: Any, heads: int, groups: int, keys: int, density: float, run: int, p: float | None = None
) -> Any:
    """Random runs of `run` keys; the heads of each of `groups` groups choose the same keys."""
    random = np.random.default_rng(7)
    kept = random.random((groups, keys // run)) < density
    dense = np.repeat(np.repeat(kept, run, axis=1), heads // groups, axis=0).astype(np.float32)
    return reticle.Mask.dense(dense[None, :, None] * (1 if p is None else p))


def decode(reticle: Any, limit: dict[str, Any]) -> Iterator[Row]:
    """32 heads, 8 KV heads, d 128; tokens chosen per head, or per KV head as in methods for grouped queries."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    reticle.set_num_threads(CORES)
    torch.set_num_threads(CORES)
    for keys in (32768, 131072):
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = tensors(32, 8, 1, keys, 128, dtype)
            size = 4 if dtype == torch.float32 else 2
            name = f"{keys // 1024}k keys, {str(dtype).removeprefix('torch.')}"
            by_torch = lambda q=q, k=k, v=v: sdpa(q, k, v, enable_gqa=True)
            agree(reticle.attention(q, k, v)[0].float(), by_torch().float(), 2e-2 if size == 2 else 1e-5, name)
            masks = {
                (percent, kind, by): random_decode_mask(reticle, 32, groups, keys, percent / 100, run)
                for percent in (10, 2)
                for kind, run in (("tokens", 1), ("runs of 16", 16))
                for by, groups in (("head", 32), ("KV head", 8))
            }
            for mask in masks.values():
                allowed = torch.from_numpy(mask.to_dense()) > 0
                truth = sdpa(q, k, v, attn_mask=allowed, enable_gqa=True)
                agree(reticle.attention(q, k, v, mask)[0].float(), truth.float(), 2e-2 if size == 2 else 1e-5, name)
            works = [by_torch, lambda q=q, k=k, v=v: reticle.attention(q, k, v)]
            works += [lambda m=mask, q=q, k=k, v=v: reticle.attention(q, k, v, m) for mask in masks.values()]
            wanted = [(mask.to_dense()[0, :, 0].reshape(8, 4, keys) > 0).any(1) for mask in masks.values()]
            ways = [limit["row_reader"].works([k, v], chosen) for chosen in wanted]
            torch_taken, dense, *rest = interleaved(works + [work for way in ways for work in way], budget=25)
            sparse, reading = rest[: len(masks)], np.reshape(rest[len(masks) :], (len(masks), -1)).min(1)
            if size == 4 and installed("onnxruntime"):
                yield beside_onnx(reticle, f"decode, {name}", q, k, v)
            read = limit["read"][1]
            yield Row("Dense attention", f"decode, {name}", "torch sdpa", dense, torch_taken, 1.0,
                      2 * 8 * keys * 128 * size / dense / read, "read bandwidth")  # fmt: skip
            for (percent, kind, by), chosen, taken, only_read in zip(masks, wanted, sparse, reading, strict=True):
                share = float(2 * chosen.sum() * 128 * size / taken / read)
                reach = (0.75 if percent == 10 else 0.6) / (percent / 100)
                workload = f"{name}, {percent} %, {kind} by {by}"
                yield Row("Sparse decode", workload, "torch sdpa", taken, torch_taken, reach, share, "read bandwidth")
                yield Row(
                    "Sparse decode", workload, "our dense", taken, dense, reach, only_read / taken, "reading those rows"
                )
            weighted = random_decode_mask(reticle, 32, 32, keys, 0.1, 1, p=0.5)
            plain = masks[10, "tokens", "head"]
            both = interleaved(
                [lambda m=m, q=q, k=k, v=v: reticle.attention(q, k, v, m) for m in (weighted, plain)], repeats=15
            )
            yield Row("Weighted against unweighted", f"{name}, 10 % tokens", "unweighted", *both, 1 / 1.05)


def beside_onnx(reticle: Any, workload: str, q: Any, k: Any, v: Any) -> Row:
    """Causal attention beside onnxruntime's GroupQueryAttention."""
    from onnx_peer import GroupQueryAttention

    peer = GroupQueryAttention(q.numpy(), k.numpy(), v.numpy(), CORES)
    ours = lambda: reticle.attention(q, k, v, causal=True)
    agree(ours()[0], peer(), 1e-4, workload)
    return Row("Dense attention", workload, "onnxruntime GroupQueryAttention", *interleaved([ours, peer]), 1.0)


def quantised(reticle: Any, limit: dict[str, Any]) -> Iterator[Row]:
    """Keys and values in 8 and 4 bits beside bfloat16, all keys and 10 % of them."""
    import torch

    reticle.set_num_threads(CORES)
    for keys in (32768, 131072):
        for heads in (32, 8):
            q, k, v = tensors(heads, 8, 1, keys, 128, torch.bfloat16)
            codes = {bits: (reticle.quantise(k, bits), reticle.quantise(v, bits)) for bits in (8, 4)}
            mask = random_decode_mask(reticle, heads, 8, keys, 0.1, 1)
            for name, given in (("", None), (", 10 % of the tokens by KV head", mask)):
                works = [lambda q=q, k=k, v=v, m=given: reticle.attention(q, k, v, m)]
                for bits, (k_codes, v_codes) in codes.items():
                    works.append(lambda q=q, k=k_codes, v=v_codes, m=given: reticle.attention(q, k, v, m))
                    floats = (each.dequantise() for each in (k_codes, v_codes))
                    truth = reticle.attention(q.float(), *floats, given)[0]
                    agree(works[-1]()[0].float(), truth, 2e-2, f"{bits} bits")
                plain, *taken = interleaved(works)
                for bits, ours in zip(codes, taken, strict=True):
                    read = 2 * 8 * keys * codes[bits][0].codes.shape[-1] / ours / limit["read"][1]
                    yield Row("Quantised keys and values", f"decode, {keys // 1024}k keys, {heads} heads, 8 KV, {bits} bits{name}",
                              "our bfloat16", ours, plain, 1.7, None if given else read, "read bandwidth")  # fmt: skip


#: Maskers whose state grows with the sequence, or whose choice reads every key.
GROWING = {
    "sink + local": {"type": "local", "window_size": 1024},
    "oracle_top_k": {"type": "oracle_top_k", "heavy_size": 1024},
    "quest_top_k": {"type": "quest_top_k", "heavy_size": 1024, "page_size": 16},
    "pq_cache": {"type": "pq_cache", "heavy_size": 1024},
    "magic_pig": {"type": "magic_pig", "lsh_l": 75, "lsh_k": 10},
}


def growth(reticle: Any, _: dict[str, Any]) -> Iterator[Row]:
    """A decode step behind 1k to 1M keys, 8 heads, 2 KV heads, d 64: the choice and the attention to it, in a sequence
    whose state has read all but the new key."""
    import torch

    reticle.set_num_threads(CORES)
    times: dict[str, list[tuple[int, float]]] = {}
    for keys in (1024, 4096, 16384, 65536, 262144, 1048576):
        q, k, v = tensors(8, 2, 1, keys + 8, 64, torch.bfloat16)
        dense = partial(reticle.attention, q, k, v)
        for name, masker in GROWING.items():
            config = {"causal": True, "maskers": [{"type": "sink", "sink_size": 64}, masker]}
            sparse = reticle.SparseAttention.from_json(json.dumps(config))
            state = reticle.SequenceState()
            sparse.mask(q, k[:, :, :keys], v[:, :, :keys], state, stage="generation")
            steps = iter(range(keys + 1, keys + 9))

            def step(
                q: Any = q, k: Any = k, v: Any = v, state: Any = state, steps: Any = steps, sparse: Any = sparse
            ) -> Any:
                end = next(steps)
                return sparse.attend(q, k[:, :, :end], v[:, :, :end], state, stage="generation")

            taken, plain = interleaved([step, dense], repeats=5, least=0)
            times.setdefault(name, []).append((keys, taken))
            times.setdefault("dense", []).append((keys, plain))
            if keys >= 65536:
                yield Row(
                    "A decode step as the sequence grows",
                    f"{keys // 1024}k keys, {name}",
                    "our dense",
                    taken,
                    plain,
                    1.0,
                )
    GROWTH.update({name: list(dict(points).items()) for name, points in times.items()})


#: Seconds of a step by masker: (keys, seconds).
GROWTH: dict[str, list[tuple[int, float]]] = {}


def prefill(reticle: Any, limit: dict[str, Any]) -> Iterator[Row]:
    """8 heads, 2 KV heads; dense, causal, block and window masks against torch's dense attention."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    reticle.set_num_threads(CORES)
    torch.set_num_threads(CORES)
    peak = limit["multiply_add"] * CORES
    dense = [(torch.float32, d, length) for d in (64, 128) for length in (1024, 4096, 16384)]
    dense += [(torch.bfloat16, d, length) for d in (64, 128) for length in (1024, 4096)]
    for dtype, d, length in dense:
        heads, kv_heads = (8, 2) if length < 16384 else (2, 1)
        q, k, v = tensors(heads, kv_heads, length, length, d, dtype)
        narrow = "" if dtype == torch.float32 else ", bfloat16"
        for causal in (False, True):
            ours = lambda q=q, k=k, v=v, c=causal: reticle.attention(q, k, v, causal=c)
            theirs = lambda q=q, k=k, v=v, c=causal: sdpa(q, k, v, is_causal=c, enable_gqa=True)
            agree(ours()[0].float(), theirs().float(), 2e-2 if narrow else 1e-4, "prefill")
            taken, peer = interleaved([ours, theirs])
            flops = 4 * heads * length * length * d / (2 if causal else 1)
            workload = f"prefill {length}, d {d}{narrow}{', causal' if causal else ''}"
            share = flops / taken / peak
            if causal and not narrow and length < 16384 and installed("onnxruntime"):
                yield beside_onnx(reticle, workload, q, k, v)
            yield Row("Dense attention", workload, "torch sdpa", taken, peer, 1.0, share, "float32 multiply-add peak")
    for length in (8192, 16384):
        q, k, v = tensors(2, 1, length, length, 128, torch.float32)
        dense_torch = lambda q=q, k=k, v=v: sdpa(q, k, v, enable_gqa=True)
        random = np.random.default_rng(3)
        cases: list[tuple[str, Any, float, Any]] = []
        for block in (64, 128):
            for percent in (50, 25, 10):
                kept = random.random((2, length // block, length // block)) < percent / 100
                kept[:, :, 0] = True
                cases.append(
                    (
                        f"blocks of {block}, {percent} %",
                        block_mask(reticle, kept, block),
                        float(kept.mean()),
                        (kept, block),
                    )
                )
        window, sinks = 1024, 64
        config = {
            "causal": True,
            "maskers": [{"type": "sink", "sink_size": sinks}, {"type": "local", "window_size": window}],
        }
        sparse = reticle.SparseAttention.from_json(json.dumps(config))
        local = sparse.mask(q, k, v, reticle.SequenceState())
        cases.append((f"{sinks} sinks + window of {window}", local, local.density, (sinks, window)))
        for name, mask, density, rule in cases:
            flex = flex_attention_for(rule, q, k, v)
            ours = lambda m=mask, q=q, k=k, v=v: reticle.attention(q, k, v, m)
            works = [ours, dense_torch] + ([flex] if flex else [])
            if flex:
                agree(ours()[0], flex(), 1e-4, name)
            taken, peer, *others = interleaved(works, repeats=3)
            flops = 4 * mask.nnz * 128
            share = flops / taken / peak
            yield Row(
                "Sparse prefill",
                f"{length}, {name}",
                "torch sdpa, dense",
                taken,
                peer,
                0.8 / density,
                share,
                "multiply-add peak",
            )
            for other in others:
                yield Row(
                    "Sparse prefill",
                    f"{length}, {name}",
                    "FlexAttention, compiled",
                    taken,
                    other,
                    1.2,
                    share,
                    "multiply-add peak",
                )


def block_mask(reticle: Any, kept: Any, block: int) -> Any:
    """The mask of the blocks that `kept` (heads, block rows, block columns) marks."""
    heads, rows, columns = kept.shape
    row_blocks = np.repeat(kept.reshape(heads * rows, columns), block, axis=0)
    row_ptr = np.concatenate([[0], np.cumsum(row_blocks.sum(1))])
    begins = np.nonzero(row_blocks)[1] * block
    # Neighbouring blocks stay separate runs, which the mask accepts.
    return reticle.Mask.runs((1, heads, rows * block, columns * block), row_ptr, np.stack([begins, begins + block], 1))


def flex_attention_for(rule: Any, q: Any, k: Any, v: Any) -> Callable[[], Any] | None:
    """torch's compiled FlexAttention with the same mask; None if this torch cannot run it."""
    import torch

    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        length = q.shape[2]
        if isinstance(rule[0], int):
            sinks, window = rule

            def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
                return (j <= i) & ((j < sinks) | (i - j < window))

            block = create_block_mask(mod, 1, 1, length, length, device="cpu")
        else:
            kept, size = rule
            lookup = torch.from_numpy(kept)

            def mod(b: Any, h: Any, i: Any, j: Any) -> Any:
                return lookup[h, i // size, j // size]

            block = create_block_mask(mod, 1, kept.shape[0], length, length, device="cpu", BLOCK_SIZE=128)
        torch._dynamo.reset()  # one compiled function per mask, instead of one with dynamic sizes
        compiled = torch.compile(flex_attention, dynamic=False)
        run = lambda: compiled(q, k, v, block_mask=block, enable_gqa=True)
        run()
        return run
    except Exception as error:  # any failure of the peer is reported, not hidden
        print(f"FlexAttention left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}", flush=True)
        return None


def never_slower(reticle: Any, _: dict[str, Any]) -> Iterator[Row]:
    """Random tokens at every density against the Full mask: decoding with 32 heads, and 256 queries of 4 heads."""
    import torch

    reticle.set_num_threads(CORES)
    for keys in (1024, 4096, 32768):
        for queries, heads in ((1, 32), (256, 4)):
            q, k, v = tensors(heads, heads // 4, queries, keys, 128, torch.float32)
            percents = (1, 5, 10, 20, 35, 50, 75, 99)
            random = np.random.default_rng(5)
            masks = [
                reticle.Mask.dense(random.random((1, heads, queries, keys), dtype=np.float32) < percent / 100)
                for percent in percents
            ]
            works = [lambda m=m, q=q, k=k, v=v: reticle.attention(q, k, v, m) for m in masks]
            dense, *sparse = interleaved([lambda q=q, k=k, v=v: reticle.attention(q, k, v), *works], repeats=9)
            for percent, taken in zip(percents, sparse, strict=True):
                yield Row(
                    "Random tokens against dense",
                    f"{queries} queries, {keys} keys, {percent} % tokens",
                    "our dense",
                    taken,
                    dense,
                    1 / 1.05,
                )


# --- whole pipelines --------------------------------------------------------------------------------------------------


def pipelines(reticle: Any, _: dict[str, Any]) -> Iterator[Row]:
    """Masks and attention from a config, against the same chain in torch with dense masks. In decoding, the state of
    old keys exists and one key is new."""
    import hub_chains as hub
    import torch

    reticle.set_num_threads(CORES)
    torch.set_num_threads(CORES)
    weights = hat_weights(8, 64)
    scratch = tempfile.TemporaryDirectory()
    weights_file = save_hash_weights(Path(scratch.name) / "hash.safetensors", weights)
    fixed = [{"type": "sink", "sink_size": 128}, {"type": "local", "window_size": 128}]
    maskers: dict[str, dict[str, Any]] = {
        "oracle_top_k": {"type": "oracle_top_k", "heavy_size": 0.1},
        "adaptive_sampling": {
            "type": "adaptive_sampling",
            "base_rate_sampling": 0.05,
            "epsilon": 0.1,
            "delta": 0.1,
            "init_offset": 128,
            "local_offset": 128,
        },
        "hash_attention": {
            "type": "hash_attention_top_k",
            "heavy_size": 0.1,
            "hat_bits": 32,
            "hat_mlp_layers": 1,
            "hat_weight_file": str(weights_file),
        },
        "quest": {"type": "quest_top_k", "heavy_size": 0.1, "page_size": 16},
        "magic_pig": {"type": "magic_pig", "lsh_l": 150, "lsh_k": 10},
    }
    chains = [("oracle_top_k",), ("oracle_top_k", "adaptive_sampling"), ("hash_attention",), ("quest",), ("magic_pig",)]
    for stage, queries, keys in (("decode", 1, 32768), ("prefill", 4096, 4096)):
        q, k, v = tensors(8, 2, queries, keys, 64, torch.float32)
        problem = hub.Problem(q, k, v, hub.causal_bias(queries, keys), 64**-0.5, int(0.1 * keys))
        for added in chains:
            if stage == "prefill" and added == ("magic_pig",):
                continue  # the reference compares queries x keys 150 times, too slow to time
            config = {"causal": True, "maskers": fixed + [maskers[name] for name in added]}
            sparse = reticle.SparseAttention.from_json(json.dumps(config))
            ours = Decoding(reticle, sparse, problem) if stage == "decode" else Prefill(reticle, sparse, problem)
            chain = hub.Chain(added, hub.HashTopK(*weights))
            if added == ("oracle_top_k",):  # the others draw at random, break ties differently, or use other pages
                agree(ours(), chain(problem), 1e-3, " + ".join(added))
            taken, peer = interleaved([ours, partial(chain, problem)], least=0 if stage == "decode" else 0.02)
            workload = f"{stage} {keys // 1024}k, sink + local + {' + '.join(added)}"
            yield Row("Whole pipelines", workload, "torch, dense masks", taken, peer, 20)


class Prefill:
    """One call over a whole prompt."""

    def __init__(self, reticle: Any, sparse: Any, problem: Any) -> None:
        self.reticle, self.sparse, self.problem = reticle, sparse, problem

    def __call__(self) -> Any:
        problem = self.problem
        state = self.reticle.SequenceState()
        return self.sparse.run(problem.q, problem.k, problem.v, state, scaling=problem.scaling)[0]


class Decoding:
    """One decode step, each time of another sequence, whose state has read all but the last key before timing."""

    def __init__(self, reticle: Any, sparse: Any, problem: Any) -> None:
        self.sparse, self.problem = sparse, problem
        self.states = []
        for _ in range(16):
            state = reticle.SequenceState()
            old = problem.k[:, :, :-1], problem.v[:, :, :-1]
            sparse.mask(problem.q, *old, state, scaling=problem.scaling, stage="generation")
            self.states.append(state)

    def __call__(self) -> Any:
        problem = self.problem
        return self.sparse.run(
            problem.q, problem.k, problem.v, self.states.pop(), scaling=problem.scaling, stage="generation"
        )[0]


def hat_weights(heads: int, d: int) -> list[Any]:
    import torch

    generator = torch.Generator().manual_seed(2)
    make = lambda *shape: torch.randn(*shape, generator=generator)
    return [make(heads, d, 32), make(heads, 32), make(heads, d, 32), make(heads, 32)]


def save_hash_weights(path: Path, weights: list[Any]) -> Path:
    """Writes layer 0 in the format that hash_attention_top_k reads."""
    names = ["query_matrix.0", "query_bias.0", "key_matrix.0", "key_bias.0"]
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in zip(names, weights, strict=True):
        size = 4 * tensor.numel()
        header[f"hat.0.{name}"] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.numpy().tobytes() for tensor in weights))
    return path


def scaling(reticle: Any, _: dict[str, Any]) -> Iterator[Row]:
    """All threads against one thread; and planning against running."""
    import torch

    if CORES > 1:
        cases = []
        q, k, v = tensors(32, 8, 1, 32768, 128, torch.bfloat16)
        cases.append(("decode 32k, bfloat16, 10 % tokens", q, k, v, random_decode_mask(reticle, 32, 32, 32768, 0.1, 1)))
        q, k, v = tensors(8, 2, 4096, 4096, 128, torch.float32)
        cases.append(("prefill 4096, d 128", q, k, v, None))
        for name, q, k, v, mask in cases:

            def run(threads: int, q: Any = q, k: Any = k, v: Any = v, mask: Any = mask) -> None:
                reticle.set_num_threads(threads)
                reticle.attention(q, k, v, mask)

            many, one = interleaved([lambda run=run: run(CORES), lambda run=run: run(1)], least=0)
            yield Row("Threads", f"{name}, {CORES} threads", "one thread", many, one, 0.9 * CORES)
        reticle.set_num_threads(CORES)
    for name, heads, queries, keys, percent in (
        ("decode", 32, 1, 32768, 10),
        ("decode", 32, 1, 32768, 2),
        ("prefill", 4, 1024, 4096, 10),
    ):
        q, k, v = tensors(heads, heads // 4, queries, keys, 128, torch.float32)
        mask = reticle.Mask.dense(
            np.random.default_rng(1).random((1, heads, queries, keys), dtype=np.float32) < percent / 100
        )
        plan, run_time = interleaved(
            [
                lambda q=q, k=k, m=mask: reticle.plan(q, k, m),
                lambda q=q, k=k, v=v, m=mask: reticle.attention(q, k, v, m),
            ]
        )
        yield Row(
            "Planning", f"{name}, {queries} x {keys}, {percent} % tokens: plan", "the run it serves", plan, run_time, 20
        )


def memory(reticle: Any, _: dict[str, Any]) -> Iterator[Row]:
    """Peak memory beyond the inputs, against 2 x the mask + 256 MB; here `ours` and `peer` are bytes."""
    import torch

    reticle.set_num_threads(CORES)
    config = {"causal": True, "maskers": [{"type": "sink", "sink_size": 128}, {"type": "local", "window_size": 128},
                                           {"type": "oracle_top_k", "heavy_size": 0.02}]}  # fmt: skip
    for name, queries, keys in (("decode 128k", 1, 131072), ("prefill 32k", 32768, 32768)):
        q, k, v = tensors(1, 1, queries, keys, 64, torch.float32)
        sparse = reticle.SparseAttention.from_json(json.dumps(config))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        _, mask = sparse.run(q, k, v, reticle.SequenceState(), stage="generation" if queries == 1 else "prefill")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
        allowed = 2 * mask.nbytes + (256 << 20)
        print(
            f"{name}: peak beyond the inputs {peak / 1e6:.0f} MB, mask {mask.nbytes / 1e6:.1f} MB, allowed {allowed / 1e6:.0f} MB"
        )
        MEMORY.append(
            f"| {name}, sink + local + oracle_top_k 2 % | {peak / 1e6:.0f} MB | {mask.nbytes / 1e6:.1f} MB | {allowed / 1e6:.0f} MB |"
        )
    yield from ()


MEMORY: list[str] = []
SECTIONS: dict[str, Section] = {
    "memory": memory,  # first, because the peak never shrinks
    "unions": unions,
    "selection": selection,
    "decode": decode,
    "prefill": prefill,
    "quantised": quantised,
    "never_slower": never_slower,
    "pipelines": pipelines,
    "growth": growth,
    "scaling": scaling,
}
NEEDS = {
    "unions": "scipy",
    "decode": "torch",
    "prefill": "torch",
    "quantised": "torch",
    "growth": "torch",
    "never_slower": "torch",
    "pipelines": "torch",
    "scaling": "torch",
    "memory": "torch",
}


def write(path: Path, rows: list[Row], about: str) -> None:
    """Replaces the text between the markers."""
    text = path.read_text()
    begin, end = "<!-- benchmarks begin -->", "<!-- benchmarks end -->"
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    body = f"{about}\n\n![Times as fast as each peer](images/performance.png)\n{table(rows)}"
    if MEMORY:
        body += "\n### Memory\n\n| workload | peak beyond the inputs | the mask | 2 x the mask + 256 MB |\n|---|---|---|---|\n"
        body += "\n".join(MEMORY) + "\n"
    if GROWTH:
        body += "\n![A decode step behind 1k to 1M keys, by masker](images/growth.png)\n"
        lines(GROWTH, path.parent / "images" / "growth.png")
    path.write_text(f"{before}{begin}\n{body}{end}{after}")
    chart(rows, path.parent / "images" / "performance.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "build", type=Path, help="a build folder with RETICLE_BUILD_PYTHON and RETICLE_BUILD_BENCHMARKS"
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="only this (may be repeated)")
    parser.add_argument("--write", type=Path, help="the page to put the tables into")
    parser.add_argument("--save", type=Path, help="file to write the ratios and their noise to")
    parser.add_argument("--compare", type=Path, help="file of --save: names the rows that fell by more than noise")
    arguments = parser.parse_args()
    if arguments.compare:
        saved_ratios(arguments.compare)  # a file that cannot be read is refused before minutes of measuring
    if arguments.save:
        try:
            arguments.save.touch()
        except OSError as error:
            parser.error(f"--save {arguments.save}: {error.strerror}; expected a file that can be written")
    sys.path.insert(0, str(arguments.build.resolve() / "python"))
    import reticle

    measured = limits(arguments.build)
    rows: list[Row] = []
    for name in arguments.section or SECTIONS:
        if name in NEEDS and not installed(NEEDS[name]):
            print(f"{name} left out: {NEEDS[name]} is not installed", flush=True)
            continue
        for row in SECTIONS[name](reticle, measured):
            rows.append(row)
            print(f"{row.section}: {line(row)}", flush=True)
    about = machine(measured)
    print(about)
    if arguments.write:
        write(arguments.write, rows, about)
    if arguments.save:
        save(rows, about, arguments.save)
    if arguments.compare:
        worse = fallen(rows, arguments.compare)
        print("\n".join(worse) or f"no row fell below {arguments.compare} by more than noise")
        sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
