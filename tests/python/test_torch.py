"""Attention as a torch operator: gradients, torch.compile, fake tensors."""

import gc

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")


def tensors(dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 6, 8), (2, 2, 20, 8), (2, 2, 20, 5))
    return [torch.randn(*s, generator=generator, dtype=dtype, requires_grad=requires_grad) for s in shapes]


def random_mask(queries=6, keys=20):
    return reticle.Mask.dense(
        (torch.rand(2, 4, queries, keys, generator=torch.Generator().manual_seed(1)) > 0.5).numpy()
    )


def reference(q, k, v, mask, bias=None):
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.softmax(scores.masked_fill(torch.from_numpy(mask.to_dense()) == 0, -torch.inf), -1) @ v


def test_gradients_are_those_of_dense_masked_attention():
    q, k, v = tensors()
    mask = random_mask()
    output, lse = reticle.attention(q, k, v, mask)
    expected = reference(q, k, v, mask)
    torch.testing.assert_close(output, expected)
    assert not lse.requires_grad
    upstream = torch.randn_like(output)
    ours = torch.autograd.grad(output, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_additive_masks_take_part():
    q, k, v = tensors()
    mask, bias = random_mask(), torch.randn(1, 1, 6, 20)
    output, _ = reticle.attention(q, k, v, mask, attention_mask=bias)
    expected = reference(q, k, v, mask, bias)
    (ours,) = torch.autograd.grad(output.sum(), q)
    (theirs,) = torch.autograd.grad(expected.sum(), q)
    torch.testing.assert_close(ours, theirs)


def test_half_precision_gradients_come_in_half_precision():
    q, k, v = tensors(torch.bfloat16)
    output, _ = reticle.attention(q, k, v, random_mask())
    output.float().sum().backward()
    assert q.grad.dtype == k.grad.dtype == v.grad.dtype == torch.bfloat16


def test_the_mask_lives_as_long_as_the_backward_pass_needs_it():
    q, k, v = tensors()
    output, _ = reticle.attention(q, k, v, random_mask())
    gc.collect()
    output.sum().backward()
    assert torch.isfinite(q.grad).all()


def test_without_gradients_nothing_is_recorded():
    q, k, v = tensors()
    with torch.no_grad():
        output, _ = reticle.attention(q, k, v)
    assert not output.requires_grad


def test_compiles_into_one_graph():
    q, k, v = tensors()
    mask = random_mask()

    def loss(q, k, v):
        return (reticle.attention(q * 2, k, v, mask)[0] * 3).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k, v), loss(q, k, v))
    (ours,) = torch.autograd.grad(compiled(q, k, v), q)
    (theirs,) = torch.autograd.grad(loss(q, k, v), q)
    torch.testing.assert_close(ours, theirs)


def test_passes_torchs_own_checks_of_operators():
    from reticle.torch import _number_of

    mask = random_mask()
    torch.library.opcheck(torch.ops.reticle.attention.default, (*tensors(), _number_of(mask), None, 0.3, False, None))
