"""Attention as a torch operator: gradients, torch.compile, fake tensors."""

import gc
import json

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


def on_gpu(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, dtype=dtype, device="cuda")


needs_gpu = pytest.mark.skipif(
    reticle._core.cuda_device_count() == 0, reason=f"no GPU: {reticle._core.why_cuda_is_unavailable()}"
)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 100])
def test_attention_masks_add_and_forbid_on_a_gpu_gradients_included(rows):
    q, k, v = (on_gpu(2, h, n, 64, dtype=torch.float32).requires_grad_() for h, n in ((8, rows), (2, 300), (2, 300)))
    mask = reticle.Mask.dense((torch.rand(2, 8, rows, 300) < 0.3).numpy())
    bias = torch.randn(8, 1, 300, device="cuda").masked_fill(torch.rand(300, device="cuda") < 0.1, -3.4e38)
    given = [tensor.detach().cpu().requires_grad_() for tensor in (q, k, v)]
    output, _ = reticle.attention(q, k, v, mask, attention_mask=bias, causal=True)
    expected, _ = reticle.attention(*given, mask, attention_mask=bias.cpu(), causal=True)
    torch.testing.assert_close(output.cpu(), expected, atol=1e-4, rtol=1e-4)
    ours, theirs = torch.autograd.grad(output.sum(), (q, k, v)), torch.autograd.grad(expected.sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-4)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("width", [128, 96])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gpu_tensors_give_what_the_cpu_gives(rows, dtype, width):
    q, k, v = (on_gpu(2, heads, n, width, dtype=dtype) for heads, n in ((8, rows), (2, 700), (2, 700)))
    mask = reticle.Mask.dense((torch.rand(2, 8, rows, 700) < 0.2).numpy())
    expected, expected_lse = reticle.attention(*(x.cpu() for x in (q, k, v)), mask, causal=True)
    output, lse = reticle.attention(q, k, v, mask, causal=True)
    assert output.is_cuda and output.dtype == dtype
    torch.testing.assert_close(output.cpu(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-3, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gpu_gradients_are_those_of_the_cpu_and_the_same_every_time(dtype):
    shapes = (2, 8, 40, 128), (2, 2, 300, 128), (2, 2, 300, 128)
    inputs = [on_gpu(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    on_cpu = [x.detach().cpu().requires_grad_() for x in inputs]
    mask = reticle.Mask.dense((torch.rand(2, 8, 40, 300) < 0.2).numpy())
    upstream = torch.randn(shapes[0], dtype=dtype)
    expected = torch.autograd.grad(reticle.attention(*on_cpu, mask, causal=True)[0], on_cpu, upstream)
    runs = [
        torch.autograd.grad(reticle.attention(*inputs, mask, causal=True)[0], inputs, upstream.cuda()) for _ in range(2)
    ]
    for ours, again, theirs in zip(*runs, expected, strict=True):
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours.cpu(), theirs, atol=0.03, rtol=0.03)


@needs_gpu
@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.bfloat16), (100, torch.bfloat16), (100, torch.float32)])
@pytest.mark.parametrize("heads_of_mask", [1, 8])
def test_a_gpu_mask_is_planned_there(rows, dtype, heads_of_mask):
    q, k, v = (on_gpu(2, h, n, 128, dtype=dtype) for h, n in ((8, rows), (2, 700), (2, 700)))
    attended = torch.rand(1, heads_of_mask, rows, 700, device="cuda") < 0.2
    mask = reticle.Mask.dense(attended.expand(2, 8, -1, -1).cpu().numpy())
    expected, expected_lse = reticle.attention(*(x.cpu() for x in (q, k, v)), mask, causal=True)
    output, lse = reticle.attention(q, k, v, attended, causal=True)
    torch.testing.assert_close(output.cpu(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-3, rtol=1e-3)


@needs_gpu
def test_lists_of_keys_from_torch_are_attended_to():
    q, k, v = on_gpu(2, 8, 3, 64), on_gpu(2, 2, 900, 64), on_gpu(2, 2, 900, 64)
    indices = torch.rand(2, 8, 3, 900, device="cuda").topk(100).indices.sort().values
    counts = torch.randint(0, 100, (2, 8, 3), device="cuda")
    p = torch.rand(indices.shape, device="cuda") * 0.9 + 0.1
    output, lse = reticle.torch.KeyListAttention(48)(q, k, v, indices, counts, p=p)
    dense = torch.zeros(2, 8, 3, 900)
    kept = torch.arange(100) < counts.cpu()[..., None]
    dense.scatter_(3, indices.cpu(), p.cpu() * kept)
    expected, expected_lse = reticle.attention(*(x.cpu() for x in (q, k, v)), reticle.Mask.dense(dense.numpy()))
    torch.testing.assert_close(output.cpu(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-3, rtol=1e-3)


def selected_blocks(heads, queries, keys, block_size, seed=0):
    """Numbers of up to 3 blocks (2, heads, queries, 3), ascending, padded with -1 at the end; and the dense mask of
    them."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-keys // block_size)
    ranks = torch.rand(2, heads, queries, blocks, generator=generator).argsort(-1)[..., :3].sort(-1).values
    counts = torch.randint(0, 4, (2, heads, queries, 1), generator=generator)
    numbers = torch.where(torch.arange(3) < counts, ranks, -1).int()
    attended = ((torch.arange(keys) // block_size)[:, None] == numbers[..., None, :]).any(-1)
    visible = torch.arange(keys) < torch.arange(queries)[:, None] + keys - queries + 1
    return numbers, attended & visible


def band(queries, keys, width, first_query, kernel, stride):
    """The dense mask of a Band."""
    complete = (torch.arange(queries)[:, None] + first_query + 1 - kernel).div(stride, rounding_mode="floor") + 1
    column = torch.arange(keys)
    return (column < complete) & (column >= complete - width)


@pytest.mark.parametrize("block_size", [5, 16])
def test_selected_blocks_and_bands_are_masks_that_attention_takes(block_size):
    q, k, v = torch.randn(2, 4, 30, 8, requires_grad=True), torch.randn(2, 2, 50, 8), torch.randn(2, 2, 50, 8)
    numbers, attended = selected_blocks(2, 30, 50, block_size)
    expected = reticle.Mask.dense(attended.repeat_interleave(2, 1).numpy())
    blocks = reticle.torch.SelectedBlocks(numbers, block_size)
    assert blocks.mask((2, 4, 30, 50)) == expected
    for mask in (blocks, attended.repeat_interleave(2, 1)):
        output, lse = reticle.attention(q, k, v, mask)
        wanted, wanted_lse = reticle.attention(q.detach(), k, v, expected)
        assert torch.equal(output.detach(), wanted) and torch.equal(lse, wanted_lse)
    assert torch.autograd.grad(output.sum(), q)[0].isfinite().all()
    for where in ((9, 0, 1, 1), (100, 20, 1, 1), (1000, 0, 7, 3), (4, 60, 8, 2), (1, 0, 40, 1)):
        band_mask = reticle.torch.Band(*where)
        wanted = reticle.Mask.dense(band(30, 50, *where).expand(2, 4, -1, -1).numpy())
        assert band_mask.mask((2, 4, 30, 50)) == wanted
        numpy_result = reticle.attention(q.detach().numpy(), k.numpy(), v.numpy(), wanted)[0]
        assert torch.equal(reticle.attention(q.detach(), k, v, band_mask)[0], torch.from_numpy(numpy_result))


@needs_gpu
@pytest.mark.parametrize(
    ("rows", "dtype"), [(1, torch.bfloat16), (100, torch.bfloat16), (100, torch.float16), (100, torch.float32)]
)
def test_selected_blocks_and_bands_are_planned_on_the_gpu_and_have_gradients(rows, dtype):
    inputs = [on_gpu(2, h, n, 64, dtype=dtype).requires_grad_() for h, n in ((8, rows), (2, 700), (2, 700))]
    on_cpu = [x.detach().cpu().requires_grad_() for x in inputs]
    numbers, attended = selected_blocks(2, rows, 700, 48)
    window = (100, 700 - rows, 1, 1)
    dense = band(rows, 700, *window).expand(2, 8, -1, -1)
    upstream = torch.randn(2, 8, rows, 64, dtype=dtype)
    for mask, wanted in (
        (reticle.torch.SelectedBlocks(numbers.cuda(), 48), attended.repeat_interleave(4, 1)),
        (reticle.torch.Band(*window), dense),
        (dense.cuda(), dense),
    ):
        output, lse = reticle.attention(*inputs, mask)
        expected, expected_lse = reticle.attention(*on_cpu, reticle.Mask.dense(wanted.numpy()))
        torch.testing.assert_close(output.cpu(), expected, atol=0.02, rtol=0.02)
        torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-3, rtol=1e-3)
        ours = torch.autograd.grad(output, inputs, upstream.cuda())
        theirs = torch.autograd.grad(expected, on_cpu, upstream)
        for gradient, wanted_gradient in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient.cpu(), wanted_gradient, atol=0.05, rtol=0.05)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 100])
def test_a_gpu_mask_of_blocks_is_planned_there(rows):
    q, k, v = (on_gpu(2, h, n, 128) for h, n in ((8, rows), (2, 700), (2, 700)))
    blocks = torch.rand(1, 8, -(-rows // 32), -(-700 // 48), device="cuda") < 0.5
    attended = blocks.repeat_interleave(32, 2)[:, :, :rows].repeat_interleave(48, 3)[..., :700]
    mask = reticle.Mask.dense(attended.expand(2, 8, -1, -1).cpu().numpy())
    expected, expected_lse = reticle.attention(*(x.cpu() for x in (q, k, v)), mask, causal=True)
    plan = reticle.plan(q, k, reticle.torch.blocks(blocks, (32, 48)), causal=True)
    output, lse = reticle.attention(q, k, v, plan, causal=True)
    torch.testing.assert_close(output.cpu(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=3e-3, rtol=1e-3)


@needs_gpu
@pytest.mark.parametrize("rows", [1, 40])
def test_masks_combine_on_the_gpu_and_are_planned_there(rows):
    q, k, v = (on_gpu(2, h, n, 128) for h, n in ((8, rows), (2, 700), (2, 700)))
    a, b, c = (reticle.Mask.dense((torch.rand(2, 8, rows, 700) < density).numpy()) for density in (0.01, 0.2, 0.3))
    x, y, z = (mask.to("cuda") for mask in (a, b, c))
    mask = (a | b) - (b & c)
    on_device = (x | y) - (y & z)
    assert on_device.device == "cuda:0" and on_device == mask and on_device.shape == mask.shape
    assert on_device.nnz == mask.nnz and on_device.density == pytest.approx(mask.density)
    output, lse = reticle.attention(q, k, v, on_device)
    expected, expected_lse = reticle.attention(q.cpu().float(), k.cpu().float(), v.cpu().float(), mask)
    torch.testing.assert_close(output.cpu().float(), expected, atol=0.03, rtol=0.03)
    torch.testing.assert_close(lse.cpu(), expected_lse, atol=1e-2, rtol=1e-3)


def test_masks_on_the_gpu_say_where_there_is_none():
    if reticle._core.cuda_device_count() > 0:
        pytest.skip("there is a GPU")
    with pytest.raises(reticle.DeviceError, match="CUDA"):
        reticle.Mask.from_row_indices((1, 1, 1, 8), [[[[1]]]]).to("cuda")


@needs_gpu
def test_a_gpu_plan_runs_in_a_graph():
    q, k, v = on_gpu(1, 8, 1, 64), on_gpu(1, 2, 4096, 64), on_gpu(1, 2, 4096, 64)
    mask = reticle.Mask.dense((torch.rand(1, 8, 1, 4096) < 0.3).numpy())
    plan = reticle.plan(q, k, mask)
    eager, _ = reticle.attention(q, k, v, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured, _ = reticle.attention(q, k, v, plan)
    q.copy_(torch.randn_like(q))
    graph.replay()
    torch.testing.assert_close(captured, reticle.attention(q, k, v, plan)[0])
    assert not torch.equal(captured, eager)


@needs_gpu
def test_gpu_decoding_over_the_best_keys_is_the_pipelines():
    q, k, v = on_gpu(2, 8, 1, 128), on_gpu(2, 2, 3000, 128), on_gpu(2, 2, 3000, 128)
    config = [
        {"type": "sink", "sink_size": 4},
        {"type": "local", "window_size": 64},
        {"type": "oracle_top_k", "heavy_size": 200},
    ]
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": config, "causal": True}))
    expected, _ = sparse.run(*(x.cpu() for x in (q, k, v)), reticle.SequenceState(), stage="generation")
    output, _ = sparse.attend(q, k, v, reticle.SequenceState(), stage="generation")
    torch.testing.assert_close(output.cpu(), expected, atol=0.03, rtol=0.03)


@needs_gpu
def test_gpu_selection_is_the_cpus():
    scores = torch.randn(7, 50000, device="cuda")
    indices, counts = reticle.torch.top_k(scores, 1000)
    assert (counts == 1000).all()
    for row in range(7):
        assert indices[row].tolist() == reticle._core.top_k(scores[row].cpu().numpy(), 1000).tolist()


def test_gpu_plans_say_when_there_is_no_gpu():
    if reticle._core.cuda_device_count() > 0:
        pytest.skip("there is a GPU")
    with pytest.raises(reticle.DeviceError, match="CUDA"):
        reticle.torch.KeyListAttention(1)
    with pytest.raises(reticle.DeviceError, match="scores: on the CPU; expected a tensor on a GPU"):
        reticle.torch.top_k(torch.zeros(1, 4), 2)
