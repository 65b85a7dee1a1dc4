"""Models over packed sequences against results recorded from native-sparse-attention-triton."""

import dataclasses
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
model = pytest.importorskip("reticle.native_sparse_attention.model")
module = pytest.importorskip("reticle.native_sparse_attention.module")
ops = pytest.importorskip("reticle.native_sparse_attention.ops")
GOLDEN = Path(os.environ["RETICLE_SOURCE_DIR"]) / "tests/golden/nsa"
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            reticle._core.cuda_device_count() == 0, reason=f"no GPU: {reticle._core.why_cuda_is_unavailable()}"
        ),
    ),
]


def load(case):
    safetensors = pytest.importorskip("safetensors.torch")
    params = json.loads((GOLDEN / f"{case}.json").read_text())["params"]
    return params, safetensors.load_file(GOLDEN / f"{case}.safetensors")


def weights_of(tensors):
    return {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}


def config_of(kind, params):
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in params.items() if name in names})


def model_of(case, **bounds):
    params, tensors = load(case)
    kinds = (model.ToyNSALlama, model.ToyNSALlamaConfig) if "nsa" in case else (model.ToyLlama, model.ToyLlamaConfig)
    made = kinds[0](config_of(kinds[1], params), model.InferenceConfig(**bounds))
    made.load_state_dict(weights_of(tensors))
    return made, tensors


CASES = ["toy_llama", "toy_nsa_llama_weightedpool", "toy_nsa_llama_weightedpool_within_window"]


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_state_dict_gives_the_recorded_logits_and_tokens(case):
    made, tensors = model_of(case, max_new_tokens=8)
    logits = made(tensors["input_ids"], tensors["cu_seqlens"])
    torch.testing.assert_close(logits.detach(), tensors["logits"], atol=1e-3, rtol=1e-3)
    # Beyond the window, the reference's cache has one key less than its forward pass; ours equals the forward pass.
    tokens = made.generate(tensors["input_ids"], tensors["cu_seqlens"])
    assert torch.equal(tokens, tensors["generated_tokens_recompute"])


def test_full_attention_gives_the_recorded_output_and_gradients():
    params, tensors = load("self_attention_module")
    rope = module.RopeConfig(
        head_dim=params["head_dim"], rope_theta=params["rope_theta"], rope_scaling=params["rope_scaling"]
    )
    made = module.SelfAttention(
        params["hidden_size"], params["num_q_heads"], params["num_kv_heads"], params["head_dim"], rope
    )
    made.load_state_dict(weights_of(tensors))
    x = tensors["x"].clone().requires_grad_()
    y = made(x, tensors["cu_seqlens"])
    torch.testing.assert_close(y.detach(), tensors["y"], atol=1e-4, rtol=1e-3)
    y.backward(tensors["dy"])
    torch.testing.assert_close(x.grad, tensors["dx"], atol=1e-4, rtol=1e-3)
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, tensors[f"grads.{name}"], atol=1e-4, rtol=1e-3)


def small(kind=None, **options):
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_scaling": None}
    sparse = {"kernel_size": 16, "kernel_stride": 8, "block_size": 32, "topk": 3, "window_size": 20}
    torch.manual_seed(0)
    if kind is model.ToyLlama:
        return kind(model.ToyLlamaConfig(**sizes), model.InferenceConfig(4, 200, 6))
    return model.ToyNSALlama(
        model.ToyNSALlamaConfig(**sizes, **{**sparse, **options}), model.InferenceConfig(4, 200, 6)
    )


def batch(lengths, device="cpu"):
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    ids = torch.randint(0, 50, (int(cu_seqlens[-1]),), generator=torch.Generator().manual_seed(1))
    return ids.to(device), cu_seqlens.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [model.ToyLlama, model.ToyNSALlama])
@pytest.mark.parametrize("lengths", [(70, 5, 33), (0, 40, 0, 1), (100,)])
def test_sequences_of_a_batch_are_computed_as_alone(kind, lengths, dtype, device):
    if kind is model.ToyNSALlama and device == "cuda" and dtype == torch.bfloat16:
        pytest.skip("sums of bfloat16 depend on the tiles")
    made = small(kind).to(device, dtype)
    ids, cu_seqlens = batch(lengths, device)
    logits = made(ids, cu_seqlens)
    assert logits.dtype == torch.float32 and logits.shape == (sum(lengths), 50)
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.06}[dtype]
    tokens = made.generate(ids, cu_seqlens)
    for row, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        sequence = ids[begin:end]
        if begin == end:
            assert (tokens[row] == -1).all()
            continue
        torch.testing.assert_close(logits[begin:end], made(sequence, [0, end - begin]), atol=tolerance, rtol=tolerance)
        if dtype == torch.float32:  # in bfloat16 the two best tokens may swap
            for _ in range(6):
                sequence = torch.cat([sequence, made(sequence, [0, len(sequence)])[-1:].argmax(-1)])
            assert torch.equal(tokens[row], sequence[-6:])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("compress_type", ["avgpool", "weightedpool", "linear"])
def test_gradients_reach_every_parameter_and_lower_the_loss(compress_type, device):
    made = small(compress_type=compress_type).to(device)
    ids, cu_seqlens = batch((80, 0, 30), device)
    optimiser = torch.optim.SGD(made.parameters(), lr=0.3)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(made(ids, cu_seqlens)[:-1], ids[1:])
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in made.parameters())
        assert all(parameter.grad.any() for parameter in made.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


def test_the_gradient_is_the_slope_of_the_loss():
    made = small()
    ids, cu_seqlens = batch((70, 20))
    loss = lambda: torch.nn.functional.cross_entropy(made(ids, cu_seqlens)[:-1], ids[1:])
    loss().backward()
    for name in (
        "embedding.weight",
        "layers.0.nsa.proj_v.weight",
        "layers.1.nsa.gate.0.weight",
        "layers.0.ffn.up_proj.weight",
    ):
        parameter = made.get_parameter(name)
        direction = parameter.grad / parameter.grad.norm()
        with torch.no_grad():
            values = []
            for step in (0.01, -0.02):
                parameter += step * direction
                values.append(loss().item())
            parameter += 0.01 * direction
        assert (values[0] - values[1]) / 0.02 == pytest.approx(parameter.grad.norm().item(), rel=0.05)


def test_mistakes_are_named():
    made = small()
    ids, cu_seqlens = batch((30, 20))
    for call, error, message in (
        (
            lambda: made(ids, [0, 30]),
            reticle.ShapeError,
            "expected ascending offsets from 0 to the number of tokens, 50",
        ),
        (lambda: made(ids[None], cu_seqlens), reticle.ShapeError, r"input_ids is \(1, 50\); expected \(tokens\)"),
        (
            lambda: made.generate(ids, [0, 10, 20, 30, 40, 50]),
            ValueError,
            "5 sequences; expected up to max_batch_size, 4",
        ),
        (lambda: made.generate(ids, cu_seqlens, 172), ValueError, "takes 201; expected up to max_length, 200"),
        (lambda: made.generate(ids, cu_seqlens, 0), ValueError, "max_new_tokens is 0; expected 1 or more"),
        (lambda: small(topk=2), reticle.ConfigError, "topk"),
        (lambda: small(window_size=0), reticle.ConfigError, "window_size is 0; expected an integer of 1 or more"),
        (
            lambda: model.ToyLlamaConfig(num_attention_heads=3),
            reticle.ConfigError,
            "expected a multiple of num_key_value",
        ),
        (lambda: model.ToyNSALlama(model.ToyLlamaConfig(num_hidden_layers=1)), TypeError, "expected ToyNSALlamaConfig"),
        (lambda: model.InferenceConfig(max_length=0), reticle.ConfigError, "max_length is 0"),
        (
            lambda: module.NativeSparseAttention("avgpool", 32, 4, 2, 16, 16, 8, 32, 3, 1, 2, 20, 10000.0),
            TypeError,
            "rope_config is float; expected a RopeConfig",
        ),
        (lambda: module.RopeConfig(head_dim=8).rope(16), reticle.ConfigError, "head_dim is 8; expected the module's"),
    ):
        with pytest.raises(error, match=message):
            call()
    made.inference_config = None
    with pytest.raises(ValueError, match="inference_config is None"):
        made.generate(ids, cu_seqlens)


def blocks_of(tokens, size):
    """Block 0 and each query's block, for one KV head: (1, tokens, 2)."""
    query_blocks = torch.arange(tokens) // size
    return torch.stack([torch.zeros_like(query_blocks), torch.where(query_blocks > 0, query_blocks, -1)], -1).to(
        torch.int32
    )[None]


def test_blocks_that_are_repeated_or_out_of_order_count_once():
    q, k, v = (torch.randn(50, heads, 8) for heads in (2, 1, 1))
    once = blocks_of(50, 8)
    i, j = torch.arange(50)[:, None], torch.arange(50)
    seen = (j <= i) & ((j < 8) | (j // 8 == i // 8))
    scores = torch.einsum("qhd,kxd->hqk", q, k) / 8**0.5
    expected = torch.einsum("hqk,kxd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    for blocks in (once, once.flip(-1), torch.cat([once, once.flip(-1), torch.full_like(once, -1)], -1), once.long()):
        torch.testing.assert_close(
            ops.topk_sparse_attention(q, k, v, blocks, 8, [0, 50]), expected, atol=1e-5, rtol=1e-4
        )


def test_positional_calls_of_the_reference_are_taken_as_it_takes_them():
    q, k = torch.randn(60, 4, 16), torch.randn(60, 2, 16)
    compressed, windows = ops.avgpool_compress(k, None, torch.tensor([0, 40, 60]), 16, 8)
    call = (q, compressed, compressed, 16, 8, 32, 4, torch.tensor([0, 40, 60]), windows)
    output, blocks = ops.compressed_attention(*call, None, None, 0.5)
    again, same = ops.compressed_attention(*call, 40, 4, 0.5, 1, 2, "auto")
    assert torch.equal(output, again) and torch.equal(blocks, same) and blocks.shape[2] == 2
    assert not torch.allclose(ops.compressed_attention(*call)[0], output)
    # As in the reference, there is room for the blocks of a longest sequence of that length.
    wide = ops.compressed_attention(*call, 100)[1]
    assert wide.shape[2] == 4 and (wide[..., 2:] == -1).all()
    for wrong, error, message in (
        ((39,), reticle.ShapeError, "max_seqlen_q is 39; expected at least the longest sequence, 40"),
        ((None, 3), reticle.ShapeError, "max_seqlen_k is 3; expected at least the longest sequence, 4"),
        ((None, None, windows), TypeError, "sm_scale is Tensor; expected a number"),
        ((None, None, 0.5, 1, 2, "never"), ValueError, "parallel_topk_compute is 'never'"),
    ):
        with pytest.raises(error, match=message):
            ops.compressed_attention(*call, *wrong)
    offsets = torch.tensor([0, 60])
    with pytest.raises(
        reticle.ShapeError, match=r"cu_seqlens_k: sequences of \[60\] tokens have \[5\] compressed ones; expected"
    ):
        ops.compressed_attention(*call[:7], offsets, torch.tensor([0, 5]))
    blocks = blocks_of(60, 8).expand(2, -1, -1)
    for wrong, error, message in (
        ((blocks, 8, [0, 50]), reticle.ShapeError, "expected ascending offsets from 0 to the number of tokens, 60"),
        ((blocks, 8, offsets, offsets), TypeError, "softmax_scale is Tensor; expected a number"),
        ((blocks[:1], 8, offsets), reticle.ShapeError, r"topk_idx: torch.int32 \(1, 60, 2\); expected integers"),
        ((blocks.float(), 8, offsets), reticle.ShapeError, "topk_idx: torch.float32"),
    ):
        with pytest.raises(error, match=message):
            ops.topk_sparse_attention(q, k, k, *wrong)
    with pytest.raises(reticle.ShapeError, match="k and v have 59 and 60 tokens; expected those of q, 60"):
        ops.topk_sparse_attention(q, k[1:], k, blocks, 8, offsets)
