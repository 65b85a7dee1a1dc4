"""GPU calls as far as they run without a GPU. Complete calls are in test_gpu_calls.py, pipelines in
tests/attention/cuda/pipeline_test.cpp."""

import json

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")

import reticle.torch  # noqa: E402

MASKERS = [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 3}]
TOP_K = {"maskers": [*MASKERS, {"type": "oracle_top_k", "heavy_size": 0.2}], "causal": True}


def tensors(queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 4, queries, 8, generator=generator)
    return q, *(torch.randn(1, 2, keys, 8, generator=generator) for _ in range(2))


def test_arrays_of_another_package_on_a_gpu_go_through_dlpack_and_come_back_as_its_own(monkeypatch):
    class Package:
        @staticmethod
        def from_dlpack(tensor):
            return OnGpu(tensor)

    class OnGpu:
        def __init__(self, tensor):
            self.tensor = tensor

        def __dlpack_device__(self):
            return (2, 0)

        def __array_namespace__(self):
            return Package

    monkeypatch.setattr(reticle.torch, "from_dlpack", lambda array: array.tensor)
    q, k, v = tensors(5, 9)
    mask = reticle.Mask.dense(torch.rand(*q.shape[:3], 9) < 0.5)
    expected = reticle.attention(q, k, v, mask, sink_logits=[0.5] * q.shape[1])
    results = reticle.attention(OnGpu(q), OnGpu(k), OnGpu(v), mask, sink_logits=[0.5] * q.shape[1])
    for result, wanted in zip(results, expected, strict=True):
        assert isinstance(result, OnGpu)
        assert torch.equal(result.tensor, wanted)


@pytest.mark.parametrize(
    ("generation", "why"),
    [
        ([{"type": "sink", "sink_size": 2, "layers": [1]}], "no masker serves layer 0"),
        ([{"type": "sink", "sink_size": 2, "heads": [1]}], "some heads only"),
        ([{"type": "top_k", "heavy_size": 2, "scorer": "value_aware"}], 'masker 0, "top_k", has no rule'),
        ([{"type": "sink", "sink_size": 2}, {"type": "moba"}], 'masker 1, "moba", has no rule'),
        ([], "no masker serves layer 0"),
    ],
)
def test_pipelines_that_choose_on_the_host_say_why(generation, why):
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": generation}))
    with pytest.raises(reticle.DeviceError, match=why):
        sparse.rules(9)


def test_rules_say_what_maskers_choose():
    best, sampled = {"type": "oracle_top_k", "heavy_size": 0.2}, {"type": "random_sampling", "sampling_rate": 0.5}
    rules = reticle.SparseAttention.from_json(json.dumps({"maskers": [MASKERS[0], best, sampled]})).rules(50)
    assert [(rule.kind, rule.count, rule.share) for rule in rules] == [
        ("sinks", 2, 0),
        ("top_k", 10, 0),
        ("sample", 0, 0.5),
    ]


def test_masks_stay_where_they_are_or_say_that_there_is_no_gpu():
    mask = reticle.Mask.dense(torch.rand(1, 1, 4, 9).numpy() < 0.5)
    assert mask.device == "cpu" and mask.to("cpu") == mask
    full = reticle.Mask.full((1, 1, 4, 9))
    for device in ("cuda:x", "gpu", 3):
        with pytest.raises(ValueError, match='expected "cpu", "cuda" or "cuda:<number>"'):
            mask.to(device)
    if reticle._core.cuda_device_count() == 0:
        with pytest.raises(reticle.DeviceError, match=r"^CUDA: "):
            mask.to("cuda")
    assert full.to("cpu") == full


def test_a_plan_serves_several_calls():
    q, k, v = tensors(5, 9)
    mask = reticle.Mask.dense(torch.rand(*q.shape[:3], 9) < 0.5)
    plan = reticle.plan(q, k, mask)
    for _ in range(2):
        for found, expected in zip(reticle.attention(q, k, v, plan), reticle.attention(q, k, v, mask), strict=True):
            assert torch.equal(found, expected)
    with pytest.raises(reticle.ShapeError):
        reticle.attention(q[:, :, :3], k, v, plan)
    with pytest.raises(reticle.ShapeError, match="is a plan, which has no gradients"):
        reticle.attention(q.requires_grad_(), k, v, plan)
    blocks = reticle.torch.blocks(torch.tensor([[[[True, False, True]]]]), (5, 4))
    whole = torch.zeros(1, 1, 1, 9, dtype=torch.bool)
    whole[..., :4] = whole[..., 8:] = True
    with torch.no_grad():
        found = reticle.attention(q, k, v, reticle.plan(q, k, blocks))[0]
        assert torch.equal(found, reticle.attention(q, k, v, whole)[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pipelines_on_a_gpu_agree_with_the_cpu(dtype):
    sparse = reticle.SparseAttention.from_json(json.dumps(TOP_K))
    on_gpu, on_cpu = reticle.SequenceState(), reticle.SequenceState()
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(1, 2, 300, 64, generator=generator, dtype=dtype) for _ in range(2))
    for length in (256, 257, 300):
        queries = 256 if length == 256 else 1
        q = torch.randn(1, 4, queries, 64, generator=generator, dtype=dtype)
        inputs = q, k[:, :, :length], v[:, :, :length]
        stage = "prefill" if length == 256 else "generation"
        output, mask = sparse.run(*(x.cuda() for x in inputs), on_gpu, stage=stage)
        expected, expected_mask = sparse.run(*inputs, on_cpu, stage=stage)
        assert mask == expected_mask
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(output.cpu(), expected, atol=tolerance, rtol=tolerance)
