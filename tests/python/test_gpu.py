"""Pipelines over tensors on a GPU: what of them runs without one. The attention itself is replaced by the CPU's."""

import json
import warnings

import pytest
import reticle

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")

import reticle.gpu  # noqa: E402
import reticle.torch  # noqa: E402

CONFIG = {
    "causal": True,
    "maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 3}],
}
TOP_K = {"maskers": [*CONFIG["maskers"], {"type": "oracle_top_k", "heavy_size": 0.2}], "causal": True}


@pytest.fixture
def cpu_as_gpu(monkeypatch):
    """AttentionPlan as it would compute on a GPU."""

    class Plan:
        def __init__(self, queries, keys, values, mask, *, sink_logits=(), attention_mask=None, **options):
            options["sink_logits"] = list(sink_logits)
            mask = reticle.torch.as_mask(mask, queries, keys)
            self.call = lambda *tensors, **given: reticle._core.attention(*tensors, mask, **options, **given)

        def __call__(self, *tensors, **given):
            return self.call(*tensors, **given)

    class Decoder:
        made = 0

        def __init__(self, sparse, rows, most_keys):
            Decoder.made += 1
            self.sparse, self.rows, self.most_keys = sparse, rows, most_keys
            self.states = {}

        def reset(self):
            self.states.clear()

        def __call__(self, q, k, v, *, layer, scaling, soft_cap, counts, attention_mask, sink_logits):
            assert q.shape[0] * q.shape[1] <= self.rows and k.shape[2] <= self.most_keys
            where = {"layer": layer, "stage": "generation", "causal": True}
            state = self.states.setdefault(layer, reticle.SequenceState())
            where["attention_mask"] = attention_mask
            mask = self.sparse.mask(q, k, v, state, scaling=scaling, **where)
            if counts is not None:
                counts.copy_(torch.from_numpy(mask.to_dense() > 0).sum(-1))
            options = {"scaling": scaling, "soft_cap": soft_cap, "attention_mask": attention_mask}
            return reticle._core.attention(q, k, v, mask, sink_logits=list(sink_logits), **options)

    monkeypatch.setattr(reticle.torch, "AttentionPlan", Plan)
    monkeypatch.setattr(reticle.torch, "SparseDecoder", Decoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield Decoder


def test_arrays_of_another_package_on_a_gpu_go_through_dlpack_and_come_back_as_its_own(cpu_as_gpu, monkeypatch):
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
    for result, own in zip(results, expected, strict=True):
        assert isinstance(result, OnGpu)
        assert torch.equal(result.tensor, own)


def tensors(queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 4, queries, 8, generator=generator)
    return q, *(torch.randn(1, 2, keys, 8, generator=generator) for _ in range(2))


def call_of(**changed):
    call = {"scaling": None, "attention_mask": None, "layer": 0, "stage": "generation", "extras": None}
    return {**call, **changed}


def test_copies_take_in_only_what_is_new(monkeypatch):
    copies = reticle.gpu.HostCopies()
    _, k, v = tensors(1, 40)
    copied = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, of: (copied.append(of.shape[2]), copy(to, of))[1])
    for length in (30, 31, 33, 40):
        begins = length == 30
        host = copies.follow(0, k[:, :, :length], v[:, :, :length], begins=begins)
        assert torch.equal(host[0], k[:, :, :length]) and torch.equal(host[1], v[:, :, :length])
    assert copied == [30, 30, 1, 1, 2, 2, 7, 7]


def test_copies_are_made_again_for_another_sequence():
    copies = reticle.gpu.HostCopies()
    _, k, v = tensors(1, 20)
    copies.follow(0, k, v, begins=True)
    _, other_k, other_v = tensors(1, 25, seed=1)
    assert torch.equal(copies.follow(0, other_k, other_v, begins=True)[0], other_k)
    shorter = other_k[:, :, :10], other_v[:, :, :10]
    assert torch.equal(copies.follow(0, *shorter, begins=False)[1], shorter[1])
    assert copies.follow(0, k.half(), v.half(), begins=False)[0].dtype == torch.float16


def test_a_pipeline_chooses_and_computes_what_it_does_on_the_cpu(cpu_as_gpu):
    sparse = reticle.SparseAttention.from_json(json.dumps(TOP_K))
    ours, theirs = reticle.SequenceState(), reticle.SequenceState()
    _, k, v = tensors(1, 50)
    for step, length in enumerate((40, 41, 42, 50)):
        queries = length if step == 0 else 1
        q, _, _ = tensors(queries, 1, seed=step)
        stage = "prefill" if step == 0 else "generation"
        inputs = q, k[:, :, :length], v[:, :, :length]
        output, mask = reticle.gpu.run(
            sparse, *inputs, ours, soft_cap=None, sink_logits=(), causal=False, **call_of(stage=stage)
        )
        expected, expected_mask = sparse.run(*inputs, theirs, stage=stage)
        assert mask == expected_mask
        torch.testing.assert_close(output, expected)


def test_a_state_that_is_reset_forgets_its_copies(cpu_as_gpu):
    sparse = reticle.SparseAttention.from_json(json.dumps(CONFIG))
    state = reticle.SequenceState()
    reticle.gpu.mask(sparse, *tensors(1, 30), state, causal=False, **call_of())
    assert state._host_copies is not None
    state.reset()
    assert not hasattr(state, "_host_copies")


def test_handlers_record_and_padding_is_folded_into_the_mask(cpu_as_gpu):
    sparse = reticle.SparseAttention.from_json(json.dumps(CONFIG))
    handler, state, reference = reticle.InferenceHandler(sparse, sparse), *(reticle.InferenceState() for _ in range(2))
    q, k, v = tensors(12, 12)
    padding = torch.zeros(1, 1, 1, 12)
    padding[..., :3] = -torch.inf
    options = {"soft_cap": 5.0, "sink_logits": [0.5] * 4}
    output, lse = reticle.gpu.attend(
        handler, q, k, v, state, **options, **call_of(stage="prefill", attention_mask=padding)
    )
    expected = handler.attend(q, k, v, reference, attention_mask=padding, **options)
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(lse, expected[1])
    assert state.prefill.sparsity == reference.prefill.sparsity


BY_RULES = [
    [{"type": "oracle_top_k", "heavy_size": 0.2}],
    [{"type": "oracle_top_k", "heavy_size": 7}, {"type": "random_sampling", "sampling_rate": 0.3}],
    [{"type": "oracle_top_p", "top_p": 0.4}],
    [{"type": "quest_top_k", "heavy_size": 16, "page_size": 4}],
    [{"type": "oracle_top_k", "heavy_size": 6}, {"type": "adaptive_sampling"}],
    [{"type": "oracle_top_k", "heavy_size": 4}, {"type": "sink", "sink_size": 5}],
]


@pytest.mark.parametrize("padded", [0, 7])
@pytest.mark.parametrize("added", BY_RULES)
def test_handlers_whose_maskers_are_rules_choose_on_the_gpu(cpu_as_gpu, added, padded):
    dense = reticle.SparseAttention.from_json('{"maskers": []}')
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": [*CONFIG["maskers"], *added]}))
    handler = reticle.InferenceHandler(dense, sparse)
    ours, theirs = reticle.InferenceState(), reticle.InferenceState()
    _, k, v = tensors(1, 60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step, length in enumerate([40, *range(41, 61)]):
            q, _, _ = tensors(length if step == 0 else 1, 1, seed=step)
            stage = "prefill" if step == 0 else "generation"
            for layer in (0, 1):
                inputs = q, k[:, :, :length], v[:, :, :length]
                padding = None
                if padded:
                    padding = torch.zeros(1, 1, 1, length).masked_fill(torch.arange(length) < padded, -torch.inf)
                call = call_of(stage=stage, layer=layer, attention_mask=padding)
                options = {"soft_cap": 3.0, "sink_logits": [layer + 0.5] * 4 if padded else ()}
                result = reticle.gpu.attend(handler, *inputs, ours, **options, **call)
                expected = handler.attend(*inputs, theirs, **options, layer=layer, stage=stage, attention_mask=padding)
                for a, b in zip(result, expected, strict=True):
                    torch.testing.assert_close(a, b)
    assert ours.prefill.sparsity == theirs.prefill.sparsity
    assert ours.generation.sparsity == theirs.generation.sparsity
    assert cpu_as_gpu.made == 2, "made again for more keys only"
    ours.reset()
    assert not hasattr(ours, "_decoder")


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
def test_other_pipelines_choose_on_the_host_and_say_why(cpu_as_gpu, generation, why):
    dense = reticle.SparseAttention.from_json('{"maskers": []}')
    sparse = reticle.SparseAttention.from_json(json.dumps({"maskers": generation}))
    handler, state = reticle.InferenceHandler(dense, sparse), reticle.InferenceState()
    with pytest.raises(reticle.DeviceError, match=why):
        sparse.rules(9)
    with pytest.warns(RuntimeWarning, match=why):
        reticle.gpu.attend(handler, *tensors(9, 9), state, soft_cap=None, sink_logits=(), **call_of(stage="prefill"))


def test_a_sparse_prompt_is_chosen_on_the_host(cpu_as_gpu):
    sparse = reticle.SparseAttention.from_json(json.dumps(CONFIG))
    handler, state = reticle.InferenceHandler(sparse, sparse), reticle.InferenceState()
    with pytest.warns(RuntimeWarning, match="choose on the CPU"):
        reticle.gpu.attend(handler, *tensors(9, 9), state, soft_cap=None, sink_logits=(), **call_of(stage="prefill"))


def test_entries_of_rules_are_counted_where_scores_do_not_matter():
    def counted(*maskers, keys=100):
        rules = reticle.SparseAttention.from_json(json.dumps({"maskers": maskers})).rules(keys)
        return reticle.gpu.entries_of(rules, keys)

    sink, local = {"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 10}
    best, sampled = {"type": "oracle_top_k", "heavy_size": 0.2}, {"type": "random_sampling", "sampling_rate": 0.5}
    assert counted(sink, local, best, sampled) == 34 + 33
    assert counted(sink, local, best, keys=12) == 12
    assert counted(best, sink) is None
    assert counted(sink, sink) is None
    assert counted({"type": "oracle_top_p"}) is None
    assert counted({"type": "local", "window_size": 4, "dilation": 3}) is None
    assert counted({"type": "causal"}) == 100
    rules = reticle.SparseAttention.from_json(json.dumps({"maskers": [sink, best, sampled]})).rules(50)
    assert [(rule.kind, rule.count, rule.share) for rule in rules] == [
        ("sinks", 4, 0),
        ("top_k", 10, 0),
        ("sample", 0, 0.5),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("added", [0.0, 0.5])
def test_attention_masks_add_and_forbid(cpu_as_gpu, dtype, added):
    q, k, v = tensors(4, 4)
    mask = reticle.Mask.full((1, 4, 4, 4))
    bias = torch.full((1, 1, 4, 4), added, dtype=dtype).triu()
    bias[..., 0], bias[..., 0, 1] = -torch.inf, torch.finfo(dtype).min
    output, lse = reticle.torch.on_gpu(q, k, v, mask, attention_mask=bias)
    expected, expected_lse = reticle.attention(q, k, v, mask, attention_mask=bias)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_attention_masks_of_whole_numbers_are_refused():
    q, k, v = tensors(4, 4)
    with pytest.raises(
        reticle.ShapeError, match=r"attention_mask: is torch\.int64 \(4,\); expected floats or booleans"
    ):
        reticle.torch.on_gpu(q, k, v, reticle.Mask.full((1, 4, 4, 4)), attention_mask=torch.ones(4, dtype=torch.long))


@pytest.fixture
def kernels_of_the_cpu(monkeypatch):
    """Plans that take what a GPU's kernels take, and fill what they fill."""

    class Plan:
        def __init__(self, queries, keys, values, mask, *, stream, **options):
            self.extents = [tensor.shape for tensor in (queries, keys, values)]
            self.mask, self.options = mask, {"sink_logits": [], **options}
            assert len({tensor.shape[-1] for tensor in (queries, keys, values)} | set(reticle.torch.HEAD_DIMS)) == 3

        def run(self, *tensors, stream, attention_mask=None, **settings):
            *inputs, output, lse = tensors
            assert [tensor.shape for tensor in inputs] == self.extents and output.is_contiguous()
            options = {**self.options, "attention_mask": attention_mask}
            for to, of in zip((output, lse), reticle._core.attention(*inputs, self.mask, **options), strict=True):
                to.copy_(of)

    class BackwardPlan(Plan):
        serves_patterns = staticmethod(lambda *inputs: False)

        def run(self, q, k, v, output, lse, d_output, *gradients, stream, attention_mask, **settings):
            assert output.shape[-1] == q.shape[-1] and d_output.is_contiguous()
            inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
            with torch.enable_grad():
                again, _ = reticle.attention(*inputs, self.mask, scaling=settings["scaling"])
                computed = torch.autograd.grad(again, inputs, d_output)
            for to, of in zip(gradients, computed, strict=True):
                to.copy_(of)

    monkeypatch.setattr(reticle._core, "CudaAttentionPlan", Plan)
    monkeypatch.setattr(reticle._core, "CudaBackwardPlan", BackwardPlan)
    stream = type("Stream", (), {"cuda_stream": 0})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: stream)


@pytest.mark.parametrize(("width", "value_width"), [(8, 8), (64, 64), (96, 96), (192, 128), (32, 80)])
def test_other_head_sizes_get_zeros_behind(kernels_of_the_cpu, width, value_width):
    q, k, v = (
        torch.randn(1, 4, 5, width).mT.contiguous().mT,
        torch.randn(1, 2, 9, width),
        torch.randn(1, 2, 9, value_width),
    )
    mask, given = (
        reticle.Mask.dense((torch.rand(1, 4, 5, 9) < 0.6).numpy()),
        {"soft_cap": 3.0, "sink_logits": [0.5] * 4},
    )
    output, lse = reticle.torch.on_gpu(q, k, v, mask, **given)
    expected, expected_lse = reticle._core.attention(q, k, v, mask, **given)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(lse, expected_lse)
    assert output.is_contiguous()

    inputs = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    output, lse = reticle.attention(*inputs, mask)
    upstream = torch.randn_like(output)
    settings = {"scaling": width**-0.5, "causal": False, "attention_mask": None, "soft_cap": None}
    found = reticle.torch._backward_on_gpu(q, k, v, output.detach(), lse, upstream, mask, **settings)
    for a, b in zip(found, torch.autograd.grad(output, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b)


def test_heads_too_wide_for_any_kernel_are_left_to_be_refused():
    assert reticle.torch._fitted_width(torch.empty(1, 300), torch.empty(1, 40)) == 300


def test_codes_are_of_keys_as_they_are():
    rules = reticle.SparseAttention.from_json('{"maskers": [{"type": "sink"}, {"type": "magic_pig"}]}').rules(50)
    assert reticle.torch.why_not_padded(torch.empty(1, 128), rules) is None
    assert reticle.torch.why_not_padded(torch.empty(1, 96), rules[:1]) is None
    assert "where keys are colliding" in reticle.torch.why_not_padded(torch.empty(1, 96), rules)


def test_choosing_on_the_host_warns():
    sparse = reticle.SparseAttention.from_json(json.dumps(CONFIG))
    with pytest.warns(RuntimeWarning, match="choose on the CPU"):
        reticle.gpu.mask(sparse, *tensors(1, 9), reticle.SequenceState(), causal=False, **call_of())


def test_a_tensor_on_a_gpu_is_sent_here(monkeypatch):
    """Bindings ask tensors where they are."""

    class There:
        is_cuda = True

    called = []

    def gone(name):
        return lambda *_, **call: (called.append((name, call["layer"])), None)

    for name in ("run", "mask", "attend"):
        monkeypatch.setattr(reticle.gpu, name, gone(name))
    sparse = reticle.SparseAttention.from_json(json.dumps(CONFIG))
    sparse.run(There(), None, None, reticle.SequenceState(), layer=3)
    sparse.mask(There(), None, None, reticle.SequenceState(), layer=4)
    reticle.InferenceHandler(sparse, sparse).attend(There(), None, None, reticle.InferenceState(), layer=5)
    assert called == [("run", 3), ("mask", 4), ("attend", 5)]


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
