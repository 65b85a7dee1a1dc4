"""Attention and its gradients against float64, on the CPU and, if there is one, on a GPU."""

import itertools
import os

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")

import reticle.torch  # noqa: E402

has_gpu = reticle._core.cuda_device_count() > 0 and "RETICLE_STAND_IN" not in os.environ
no_gpu = pytest.mark.skipif(not has_gpu, reason=f"no GPU: {reticle._core.why_cuda_is_unavailable()}")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_gpu)])
BOUNDS = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def exact(q, k, v, p, *, causal=False, attention_mask=None, soft_cap=None, sink_logits=None):
    """Attention in float64 over keys that are included with probabilities p; 0 means not attended."""
    group = q.shape[1] // k.shape[1]
    k, v = (tensor.double().repeat_interleave(group, 1) for tensor in (k, v))
    scores = q.double() @ k.mT / q.shape[-1] ** 0.5
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    if attention_mask is not None:
        scores = scores + attention_mask.double()
    p = p.double()
    if causal:
        p = p.tril(p.shape[-1] - p.shape[-2])
    scores = (scores - p.log()).masked_fill(p == 0, -torch.inf)
    if sink_logits is not None:
        sinks = torch.tensor(sink_logits, dtype=torch.float64, device=q.device)[:, None, None]
        scores = torch.cat([scores, sinks.expand(*scores.shape[:3], 1)], -1)
        v = torch.cat([v, v.new_zeros(*v.shape[:2], 1, v.shape[3])], 2)
    return torch.nan_to_num(scores.softmax(-1)) @ v, scores.logsumexp(-1)


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def drawn(device, dtype, rows, keys, group, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 2 * group, rows, width), (2, 2, keys, width), (2, 2, keys, width)]
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def compare(output, lse, wanted, wanted_lse, dtype, what):
    worst = error(output, wanted)
    print(f"{what}: relative error {worst:.1e}")
    assert not output.isnan().any() and not lse.isnan().any()
    assert worst < BOUNDS[dtype]
    attended = wanted_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, attended)
    assert (lse.double() - wanted_lse)[attended].abs().max().item() < 1e-2 if attended.any() else True


@devices
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("width", [64, 128, 256])
def test_attention_is_that_of_float64(device, dtype, width):
    for (rows, keys), group, density in itertools.product(
        [(1, 1), (1, 63), (1, 1000), (3, 64), (64, 65), (130, 300)], [1, 2, 4, 8], [0.1, 0.6]
    ):
        q, k, v = drawn(device, dtype, rows, keys, group, width)
        attended = torch.rand(2, 2 * group, rows, keys, generator=torch.Generator().manual_seed(1)) < density
        output, lse = reticle.attention(q, k, v, reticle.Mask.dense(attended.numpy()), causal=rows <= keys)
        wanted = exact(q, k, v, attended.to(device), causal=rows <= keys)
        compare(output, lse, *wanted, dtype, f"{rows} x {keys}, group {group}, {density:.0%}")


@devices
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_everything_that_attention_takes_is_that_of_float64(device, dtype, rows):
    q, k, v = drawn(device, dtype, rows, 200, 4, 64)
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(2, 8, rows, 200, generator=generator) < 0.3
    p = torch.where(torch.rand(2, 8, rows, 1, generator=generator) < 0.5, kept * 0.25, kept * 1.0)
    bias = torch.randn(1, 8, 1, 200, generator=generator).to(device)
    for options in ({}, {"attention_mask": bias}, {"soft_cap": 2.0}, {"sink_logits": [0.5 * i for i in range(8)]}):
        output, lse = reticle.attention(q, k, v, reticle.Mask.dense(p.numpy()), causal=True, **options)
        wanted = exact(q, k, v, p.to(device), causal=True, **options)
        compare(output, lse, *wanted, dtype, f"{rows} rows, {', '.join(options) or 'p'}")


@devices
@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("rows", [1, 100])
def test_gradients_are_those_of_float64(device, dtype, rows):
    inputs = [tensor.requires_grad_() for tensor in drawn(device, dtype, rows, 200, 4, 64)]
    copies = [tensor.detach().double().requires_grad_() for tensor in inputs]
    attended = torch.rand(2, 8, rows, 200, generator=torch.Generator().manual_seed(3)) < 0.3
    output, _ = reticle.attention(*inputs, reticle.Mask.dense(attended.numpy()), causal=True)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(device, dtype)
    found = torch.autograd.grad(output, inputs, upstream)
    wanted, _ = exact(*copies, attended.to(device), causal=True)
    for name, one, other in zip("qkv", found, torch.autograd.grad(wanted, copies, upstream.double()), strict=True):
        worst = error(one, other)
        print(f"gradient by {name}, {rows} rows: relative error {worst:.1e}")
        assert worst < 2 * BOUNDS[dtype]
