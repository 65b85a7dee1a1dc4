"""Every call that supports GPUs, made with tensors that claim to be on one (gpu_double.py), gets as far as the launch.

If the build has no CUDA, or the machine no GPU, the call ends there with a DeviceError that says so. Under the stand-in
runtime (tests/core/cuda/stand_in) of `./bootstrap gpu-kit`, launches are recorded and not executed. On the emulated device
(the preset `emulated`, with RETICLE_EMULATED_HOST_TENSORS=1) kernels run, and results equal those of the CPU.
"""

import ctypes
import json
import os
import re

import numpy as np
import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")

import reticle.nsa  # noqa: E402
import reticle.torch  # noqa: E402
from gpu_double import as_if_on_gpu  # noqa: E402

STAND_IN = os.environ.get("RETICLE_STAND_IN")
EMULATED = os.environ.get("RETICLE_EMULATED_HOST_TENSORS") == "1"
ATTEND_TILE = "Attend(Wide)?Tile"
HASHES = os.path.join(os.environ["RETICLE_SOURCE_DIR"], "examples/data/random_hash_weights.safetensors")

pytestmark = [
    pytest.mark.skipif(
        STAND_IN is None and not EMULATED and reticle._core.cuda_device_count() > 0,
        reason="there is a GPU: kernels would get host memory",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # keys are copied to the host
]


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Bypasses torch's dispatcher when calling operators, because it would see that the tensors are on the CPU."""
    for name in ("_attention", "_attention_backward"):
        monkeypatch.setattr(reticle.torch, name, getattr(reticle.torch, name)._init_fn)
    with as_if_on_gpu():
        yield


class Launches:
    """The launches that the stand-in runtime recorded."""

    def __init__(self):
        self.library = ctypes.CDLL(STAND_IN)
        self.library.stand_in_launch.restype = self.library.stand_in_fault.restype = ctypes.c_char_p
        self.library.stand_in_forget()

    def names(self):
        return [self.library.stand_in_launch(i).decode() for i in range(self.library.stand_in_launches())]

    def fault(self):
        return self.library.stand_in_fault().decode()


def launches(call, *kernels, like=None, tolerance=2e-2):
    """Makes a call and checks that it launches each of the kernels, or that there is no GPU to launch them on. Where
    kernels run, the result must equal that of `like` on the CPU."""
    if EMULATED:
        result = call()
        if like is not None:
            for found, expected in zip(_listed(result), _listed(like()), strict=True):
                torch.testing.assert_close(found.cpu().float(), expected.float(), atol=tolerance, rtol=tolerance)
        return result
    if STAND_IN is None:
        with pytest.raises(reticle.DeviceError, match=r"^CUDA: "):
            call()
        return None
    recorded = Launches()
    result = call()
    assert recorded.fault() == ""
    for kernel in kernels:
        assert any(re.search(kernel, name) for name in recorded.names()), f"{kernel} is not among {recorded.names()}"
    return result


def _listed(result):
    return [each for each in (result if isinstance(result, tuple) else (result,)) if isinstance(each, torch.Tensor)]


def on_cpu(*given):
    return [each.cpu() if isinstance(each, torch.Tensor) else each for each in given]


def tensors(queries, keys, dtype=torch.bfloat16, width=128):
    return [torch.randn(2, heads, n, width).to(dtype).cuda() for heads, n in ((8, queries), (2, keys), (2, keys))]


def one_sequence(queries):
    """One sequence with 4 heads of 64, the shape of the hash weights."""
    q, k, v = tensors(queries, 300, width=64)
    return q[:1, :4], k[:1], v[:1]


def numbers_of_blocks(queries):
    return torch.zeros(2, 2, queries, 1, dtype=torch.int32).cuda()


def masks(queries, keys):
    attended = torch.rand(2, 8, queries, keys) < 0.3
    yield None
    yield reticle.Mask.dense(attended.numpy())
    yield attended.cuda()
    yield reticle.torch.Band(first_query=keys - queries, width=50)
    yield reticle.torch.SelectedBlocks(numbers_of_blocks(queries), 64)
    if STAND_IN is not None or EMULATED:
        yield reticle.Mask.dense(attended.numpy()).to("cuda")


@pytest.mark.parametrize("rows", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_over_any_kind_of_mask(rows, dtype):
    q, k, v = tensors(rows, 300, dtype)
    kernel = "DecodePart" if rows == 1 or dtype == torch.float32 else ATTEND_TILE
    for mask in masks(rows, 300):
        launches(
            lambda mask=mask: reticle.attention(q, k, v, mask, causal=True),
            kernel,
            like=lambda mask=mask: reticle.attention(*on_cpu(q, k, v), as_on_cpu(mask), causal=True),
        )


def as_on_cpu(mask):
    """The same mask made from CPU tensors."""
    if isinstance(mask, torch.Tensor):
        return mask.cpu()
    if isinstance(mask, reticle.torch.SelectedBlocks):
        return reticle.torch.SelectedBlocks(mask.numbers.cpu(), mask.block_size)
    return mask.to("cpu") if isinstance(mask, reticle.Mask) else mask


def test_attention_with_everything_that_it_takes():
    q, k, v = tensors(3, 300)
    bias = torch.zeros(8, 1, 300).cuda()
    options = {"scaling": 0.2, "causal": True, "attention_mask": bias, "soft_cap": 3.0, "sink_logits": [0.5] * 8}
    host = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    launches(
        lambda: reticle.attention(q, k, v, **options),
        "DecodePart",
        like=lambda: reticle.attention(*on_cpu(q, k, v), **host),
    )


@pytest.mark.parametrize("width", [64, 96, 256])
def test_attention_of_other_head_sizes(width):
    given = tensors(1, 300, width=width)
    launches(lambda: reticle.attention(*given), "DecodePart", like=lambda: reticle.attention(*on_cpu(*given)))


def test_choosing_on_the_host_warns_and_says_why():
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": [{"type": "moba"}]}))
    q, k, v = tensors(1, 300)

    def run():
        with pytest.warns(RuntimeWarning, match='masker 0, "moba", has no rule for a GPU'):
            return sparse.run(q, k, v, reticle.SequenceState(), stage="generation")[0]

    if STAND_IN is not None or EMULATED:
        launches(run, "DecodePart")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients(dtype):
    q, k, v = tensors(100, 300, dtype)
    output, lse = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda")
    kernel = "13DifferentiateI" if dtype == torch.float32 else "DifferentiateTile"
    full = reticle.Mask.full((2, 8, 100, 300))
    for mask in masks(100, 300):
        number = reticle.torch._number_of(full if mask is None else mask)
        arguments = (output, lse, output, number, None, 0.1, True, None)
        launches(lambda arguments=arguments: reticle.torch._attention_backward(q, k, v, *arguments), kernel)


def test_plans_and_lists_of_keys():
    q, k, v = tensors(1, 300)
    mask = reticle.Mask.full((2, 8, 1, 300))
    launches(lambda: reticle.attention(q, k, v, reticle.plan(q, k, mask)), "DecodePart")
    blocks = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    many = tensors(128, 300)
    launches(
        lambda: reticle.attention(
            *many, reticle.plan(*many[:2], reticle.torch.blocks(blocks.cuda(), block_size=(64, 64)))
        ),
        "PlanTile",
        ATTEND_TILE,
        like=lambda: reticle.attention(*on_cpu(*many)),
    )
    indices = torch.arange(40).expand(2, 8, 1, 40).cuda()
    launches(lambda: reticle.torch.KeyListAttention(16)(q, k, v, indices), "DecodePart")
    launches(lambda: reticle.torch.KeyListAttention(16)(q, k, v, indices, p=torch.ones_like(indices) / 2), "DecodePart")


CHOSEN = [
    ({"type": "oracle_top_k", "heavy_size": 20}, "5ScoreI"),
    ({"type": "oracle_top_p", "top_p": 0.5}, "5ScoreI"),
    ({"type": "quest_top_k", "heavy_size": 64}, "ScorePages"),
    (
        {
            "type": "hash_attention_top_k",
            "heavy_size": 20,
            "hat_bits": 32,
            "hat_mlp_layers": 1,
            "hat_weight_file": HASHES,
        },
        "CodeVectors",
    ),
    ({"type": "pq_cache", "heavy_size": 20}, "ScoreByTable"),
    ({"type": "magic_pig", "lsh_l": 20}, "ScoreCollisions"),
    ({"type": "random_sampling", "sampling_rate": 0.2}, "ChooseRow"),
    ({"type": "adaptive_sampling", "epsilon": 0.2}, "ChooseRow"),
]


@pytest.mark.parametrize(("masker", "kernel"), CHOSEN, ids=[masker["type"] for masker, _ in CHOSEN])
def test_decoding_over_keys_that_are_chosen_there(masker, kernel):
    fixed = [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 8}]
    sparse = reticle.SparseAttention.from_json(json.dumps({"causal": True, "maskers": [*fixed, masker]}))
    dense = reticle.SparseAttention.from_json('{"maskers": []}')
    q, k, v = one_sequence(1)
    prompt = one_sequence(300)
    launches(
        lambda: sparse.attend(q, k, v, reticle.SequenceState(), stage="generation")[0],
        kernel,
        "ChooseRow",
        "DecodePart",
        like=lambda: sparse.run(*on_cpu(q, k, v), reticle.SequenceState(), causal=True, stage="generation")[0],
    )
    handler = reticle.InferenceHandler(dense, sparse)

    def generate():
        state = reticle.InferenceState()
        handler.attend(*prompt, state, stage="prefill")
        handler.attend(q, k, v, state, stage="generation")

    launches(generate, ATTEND_TILE, kernel, "DecodePart")


def test_pipelines_that_choose_on_the_host():
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": [{"type": "sink"}], "causal": True}))
    q, k, v = tensors(100, 300)
    launches(
        lambda: sparse.mask(q, k, v, reticle.SequenceState()),
    )
    launches(
        lambda: sparse.run(q, k, v, reticle.SequenceState())[0],
        ATTEND_TILE,
        like=lambda: sparse.run(*on_cpu(q, k, v), reticle.SequenceState())[0],
    )


def test_masks_in_device_memory():
    mask = reticle.Mask.dense(np.random.default_rng(0).random((2, 8, 3, 300)) < 0.3)
    one = reticle.Mask.from_row_indices((2, 8, 3, 300), [[1, 2]] * 48)

    def combine():
        a, b = mask.to("cuda"), one.to("cuda")
        assert a.device == "cuda:0"
        on_host = (mask | one, mask & one, mask - one, one | one, mask.merge(one, "independent"))
        for result, expected in zip((a | b, a & b, a - b, b | b, a.merge(b, "independent")), on_host, strict=True):
            assert result.shape == (2, 8, 3, 300)
            assert not EMULATED or result == expected
            result.to("cpu")
        return a.nnz

    launches(combine, "Combine")


def test_top_k():
    scores = torch.randn(3, 1000)
    launches(
        lambda: reticle.torch.top_k(scores.cuda(), 50)[0],
        "SelectTopK",
        like=lambda: scores.topk(50).indices.sort(-1).values,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_sparse_attention(dtype):
    module = reticle.nsa.NativeSparseAttention("weightedpool", 64, 4, 1, 64, 32, 16, 64, 4, 1, 2, 128).to(dtype)
    for parameter in module.parameters():
        parameter.data = parameter.data.cuda()
    x = torch.randn(300, 64).to(dtype).cuda()
    kernels = ["DecodePart"] if dtype == torch.float32 else ["ScoreKeyBlocks", ATTEND_TILE]
    launches(lambda: module(x, [0, 300]), *kernels)


def test_what_is_wrong_with_arguments_is_said_before_anything_of_the_gpu():
    q, k, v = tensors(1, 300)
    with pytest.raises(reticle.ShapeError, match="keys need the head_dim of the queries"):
        reticle.plan(q, k[..., :64], reticle.Mask.full((2, 8, 1, 300)))
    with pytest.raises(reticle.DeviceError, match="keys: on the CPU; expected a tensor on a GPU"):
        reticle.attention(q, k.cpu(), v)
    with pytest.raises(reticle.DeviceError, match="keys: on GPU 0; expected a tensor on the CPU"):
        reticle.attention(q.cpu(), k, v)
