"""Native Sparse Attention for torch against results recorded from native-sparse-attention-triton."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
nsa = pytest.importorskip("reticle.nsa")
nsa_gpu = pytest.importorskip("reticle.nsa_gpu")
GOLDEN = Path(os.environ["RETICLE_SOURCE_DIR"]) / "tests/golden/nsa"
MODULE = ("compress_type", "hidden_size", "num_q_heads", "num_kv_heads", "head_dim", "kernel_size", "kernel_stride")
MODULE += ("block_size", "topk", "init_blocks", "local_blocks", "window_size", "rope_theta", "rope_scaling")


def load(case):
    safetensors = pytest.importorskip("safetensors.torch")
    params = json.loads((GOLDEN / f"{case}.json").read_text())["params"]
    return params, safetensors.load_file(GOLDEN / f"{case}.safetensors")


def cases(start):
    return sorted(path.stem for path in GOLDEN.glob(f"{start}*.json"))


def close(actual, expected):
    torch.testing.assert_close(actual.detach(), expected, atol=1e-4, rtol=1e-3)


def module_of(params, tensors):
    module = nsa.NativeSparseAttention(**{name: params[name] for name in MODULE})
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    module.load_state_dict(weights)
    return module


def through_cpp(module, x, cu_seqlens):
    return module(x, cu_seqlens)


def as_on_a_gpu(module, x, cu_seqlens):
    """Computes with the code for CUDA tensors, which runs on any device."""
    return nsa_gpu.forward(module, x, cu_seqlens.tolist())


@pytest.mark.parametrize("forward", [through_cpp, as_on_a_gpu])
@pytest.mark.parametrize("case", cases("nsa_module"))
def test_the_module_gives_the_recorded_output_and_gradients(case, forward):
    params, tensors = load(case)
    module = module_of(params, tensors)
    x = tensors["x"].clone().requires_grad_()
    y = forward(module, x, tensors["cu_seqlens"])
    close(y, tensors["y"])
    y.backward(tensors["dy"])
    close(x.grad, tensors["dx"])
    for name, parameter in module.named_parameters():
        close(parameter.grad, tensors[f"grads.{name}"])


@pytest.mark.parametrize("start", [nsa.NativeSparseAttention.start, nsa_gpu.State])
@pytest.mark.parametrize("case", cases("nsa_module"))
def test_decoding_token_by_token_equals_the_forward_pass(case, start):
    params, tensors = load(case)
    module = module_of(params, tensors)
    cu, x = tensors["cu_seqlens"].tolist(), tensors["x"]
    whole = module(x, cu)
    prompts = [max(0, end - begin - 5) for begin, end in pairwise(cu)]
    offsets = [0, *torch.tensor(prompts).cumsum(0).tolist()]
    state = start(module, len(prompts), 200)
    parts = torch.cat([x[begin : begin + n] for begin, n in zip(cu, prompts, strict=False)])
    expected = torch.cat([whole[begin : begin + n] for begin, n in zip(cu, prompts, strict=False)])
    close(module.extend(parts, offsets, state), expected.detach())
    for step in range(5):
        rows = [begin + n + step for begin, n in zip(cu, prompts, strict=False) if begin + n + step < cu[-1]]
        close(module.extend(x[rows], list(range(len(rows) + 1)), state), whole[rows].detach())
    assert state.lengths == [n + 5 for n in prompts]


@pytest.mark.parametrize("case", cases("compress_"))
def test_compression_and_its_gradients(case):
    params, tensors = load(case)
    compress_type = case.split("_")[1]
    inputs = [tensors[name].clone().requires_grad_() if name in tensors else None for name in ("x", "w", "pe")]
    compress = getattr(nsa, f"{compress_type}_compress")
    y, cu = compress(
        inputs[0], inputs[1], tensors["cu_seqlens"], params["kernel_size"], params["kernel_stride"], inputs[2]
    )
    close(y, tensors["y"])
    assert torch.equal(cu, tensors["y_cu_seqlens"])
    y.backward(tensors["dy"])
    for tensor, name in zip(inputs, ("dx", "dw", "dpe"), strict=True):
        if tensor is not None:
            close(tensor.grad, tensors[name])


@pytest.mark.parametrize("case", cases("compress_"))
def test_compression_on_a_gpu_and_its_gradients(case):
    params, tensors = load(case)
    names = ("kernel_size", "kernel_stride")
    sizes = {name: params[name] for name in names}
    config = reticle._core.NsaConfig(compress_type=case.split("_")[1], block_size=params["kernel_stride"], **sizes)
    inputs = [tensors[name].clone().requires_grad_() if name in tensors else None for name in ("x", "w", "pe")]
    y, windows = nsa_gpu.compress(*inputs, tensors["cu_seqlens"].tolist(), config)
    close(y, tensors["y"])
    assert windows == tensors["y_cu_seqlens"].tolist()
    y.backward(tensors["dy"])
    for tensor, name in zip(inputs, ("dx", "dw", "dpe"), strict=True):
        if tensor is not None:
            close(tensor.grad, tensors[name])


@pytest.mark.parametrize("case", cases("compressed_attn"))
def test_blocks_are_chosen_on_a_gpu_as_recorded(case, monkeypatch):
    params, tensors = load(case)
    monkeypatch.setattr(nsa_gpu, "_MOST_SCORES", 1)  # one query at a time
    names = ("kernel_size", "kernel_stride", "block_size", "topk", "init_blocks", "local_blocks")
    config = reticle._core.NsaConfig(compress_type="avgpool", **{name: params[name] for name in names})
    offsets = (tensors["cu_seqlens_q"].tolist(), tensors["cu_seqlens_k"].tolist())
    for (begin, end), (first, last) in zip(*map(pairwise, offsets), strict=True):
        q, k = tensors["q"][begin:end], tensors["k"][first:last]
        chosen = nsa_gpu.choose_blocks(q, k, 0, params["sm_scale"], config)
        recorded = tensors["topk_idx"][:, begin:end]
        assert torch.equal(chosen, recorded[..., : chosen.shape[2]])
        assert (recorded[..., chosen.shape[2] :] == -1).all()


@pytest.mark.skipif(reticle._core.cuda_device_count() == 0, reason=f"no GPU: {reticle._core.why_cuda_is_unavailable()}")
@pytest.mark.parametrize("group", [1, 4, 16])
def test_blocks_are_scored_by_the_kernel_as_by_torch(group):
    config = reticle._core.NsaConfig()
    q = torch.randn(300, 2 * group, 128, dtype=torch.bfloat16, device="cuda")
    k = torch.randn(config.compressed_length(1300), 2, 128, dtype=torch.bfloat16, device="cuda")
    _, lse = nsa_gpu.attend_compressed(q, k, k, 1000, config)
    scores = torch.empty(1, 2, 300, 21, device="cuda")
    by_head, settings = nsa_gpu._by_head, {"first_query": 1000, "scaling": 128**-0.5, "config": config}
    reticle._core.cuda_block_scores(by_head(q), by_head(k), lse, scores, **settings)
    positions = torch.arange(1000, 1300, device="cuda")
    expected = nsa_gpu._block_scores(q.float() * 128**-0.5, k, positions, 21, config)
    torch.testing.assert_close(scores[0], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("case", cases("compressed_attn"))
def test_compressed_attention_selects_the_recorded_blocks(case):
    params, tensors = load(case)
    q, k, v = (tensors[name].clone().requires_grad_() for name in "qkv")
    names = ("kernel_size", "kernel_stride", "block_size", "topk")
    output, blocks = nsa.compressed_attention(
        q,
        k,
        v,
        *(params[name] for name in names),
        tensors["cu_seqlens_q"],
        tensors["cu_seqlens_k"],
        None,
        None,
        params["sm_scale"],
        params["init_blocks"],
        params["local_blocks"],
    )
    close(output, tensors["o"])
    assert torch.equal(blocks, tensors["topk_idx"])
    output.backward(tensors["do"])
    for tensor, name in zip((q, k, v), ("dq", "dk", "dv"), strict=True):
        close(tensor.grad, tensors[name])


@pytest.mark.parametrize("case", cases("topk_sparse"))
def test_attention_over_selected_blocks(case):
    params, tensors = load(case)
    q, k, v = (tensors[name].clone().requires_grad_() for name in "qkv")
    output = nsa.topk_sparse_attention(
        q, k, v, tensors["topk_idx"], params["block_size"], tensors["cu_seqlens"], params["sm_scale"]
    )
    close(output, tensors["o"])
    output.backward(tensors["do"])
    for tensor, name in zip((q, k, v), ("dq", "dk", "dv"), strict=True):
        close(tensor.grad, tensors[name])


def small(**options):
    settings = {"kernel_size": 8, "kernel_stride": 4, "block_size": 8, "topk": 4, "window_size": 8, **options}
    return nsa.NativeSparseAttention("avgpool", 32, 4, 2, 8, **settings)


@pytest.mark.parametrize("offsets", [[0], [0, 0], [0, 0, 5, 5]])
def test_batches_without_sequences_or_tokens_give_no_rows(offsets):
    module, x = small(), torch.randn(offsets[-1], 32)
    close(nsa_gpu.forward(module, x, offsets), module(x, offsets).detach())
    q, k = torch.randn(offsets[-1], 4, 8), torch.randn(offsets[-1], 2, 8)
    compressed, windows = nsa.avgpool_compress(k, None, offsets, 4, 2)
    output, blocks = nsa.compressed_attention(q, compressed, compressed, 4, 2, 4, 4, offsets, windows)
    assert output.shape == q.shape
    assert nsa.topk_sparse_attention(q, k, k, blocks, 4, offsets).shape == q.shape


def test_a_gpu_cache_takes_no_more_than_its_capacity_and_stays_as_it_was():
    module = small()
    state = nsa_gpu.State(module, 2, 4)
    with pytest.raises(reticle.ShapeError, match="0 tokens and 6 more do not fit a cache of 4"):
        module.extend(torch.randn(9, 32), [0, 3, 9], state)
    with pytest.raises(reticle.ShapeError, match="expected 3, for the sequences of the state"):
        module.extend(torch.randn(3, 32), [0, 3], state)
    with pytest.raises(reticle.ShapeError, match="expected ascending offsets from 0 to the number of tokens, 3"):
        module.extend(torch.randn(3, 32), [0, 4, 3], state)
    assert state.lengths == [0, 0]
    assert module.extend(torch.randn(3, 32), [0, 3, 3], state).shape == (3, 32)
    assert state.lengths == [3, 0]


def test_a_step_of_gradient_descent_lowers_the_loss():
    torch.manual_seed(0)
    module, x, target = small(), torch.randn(40, 32), torch.randn(40, 32)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = ((module(x, [0, 25, 40]) - target) ** 2).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.97 * losses[0]
    assert "compress_key" not in module.state_dict()


@pytest.mark.skipif(reticle._core.cuda_device_count() == 0, reason=f"no GPU: {reticle._core.why_cuda_is_unavailable()}")
def test_a_gpu_gives_output_gradients_and_decoding_of_the_cpu():
    torch.manual_seed(0)
    sizes = {"kernel_size": 8, "kernel_stride": 4, "block_size": 16, "topk": 4, "window_size": 32}
    module, offsets = nsa.NativeSparseAttention("weightedpool", 128, 4, 2, 64, **sizes), [0, 150, 200]
    x = torch.randn(200, 128)
    expected = module(x, offsets)
    expected.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module = module.cuda()
    module.zero_grad()
    output = module(x.cuda(), offsets)
    output.sum().backward()
    torch.testing.assert_close(output.cpu(), expected, atol=1e-3, rtol=1e-3)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[name], atol=2e-2, rtol=1e-2)
    state = module.start(1, 150)
    steps = [module.extend(part, [0, len(part)], state) for part in x[:150].cuda().split([148, 1, 1])]
    torch.testing.assert_close(torch.cat(steps).cpu(), expected[:150].detach(), atol=1e-3, rtol=1e-3)


def test_half_precision_goes_in_and_out():
    torch.manual_seed(0)
    module, x = small().bfloat16(), torch.randn(20, 32).bfloat16().requires_grad_()
    y = module(x, [0, 20])
    y.sum().backward()
    assert y.dtype == x.grad.dtype == module.proj_q.weight.grad.dtype == torch.bfloat16
    single = module.float()
    torch.testing.assert_close(y.float(), single(x.detach().float(), [0, 20]), atol=0.02, rtol=0.02)


def test_mistakes_are_named_and_change_nothing():
    with pytest.raises(reticle.ConfigError, match="kernel_stride"):
        small(kernel_stride=3)
    module = small()
    with pytest.raises(reticle.Error, match="cu_seqlens"):
        module(torch.zeros(10, 32), [0, 9])
    with pytest.raises(reticle.Error):
        module(torch.zeros(10, 31), [0, 10])
    with pytest.raises(reticle.Error):
        module(torch.zeros(10), [0, 10])
    state = module.start(2, 6)
    module.extend(torch.zeros(4, 32), [0, 2, 4], state)
    with pytest.raises(reticle.InvalidValueError, match="do not fit"):
        module.extend(torch.zeros(6, 32), [0, 1, 6], state)
    assert state.lengths == [2, 2]
    with pytest.raises(reticle.ShapeError, match="cu_seqlens"):
        module.extend(torch.zeros(2, 32), [0, 2], state)
    with pytest.raises(reticle.FormatError, match="missing"):
        reticle._core.NsaModule(module._config, 32, 4, 2, module._rope, {})
