"""reticle.hub against numbers recorded from sparse-attention-hub."""

import dataclasses
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import reticle
import reticle.maskers
from reticle.research import metrics

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
hub = pytest.importorskip("reticle.hub")
GOLDEN = Path(os.environ["RETICLE_SOURCE_DIR"]) / "tests/golden/hub"
CONFIGS = {
    "sink": hub.SinkMaskerConfig,
    "local": hub.LocalMaskerConfig,
    "oracle_top_k": hub.OracleTopKConfig,
    "oracle_top_p": hub.OracleTopPMaskerConfig,
    "socket": hub.SocketMaskerConfig,
    "quest_top_k": hub.QuestTopKMaskerConfig,
}


def load(case):
    """The JSON and the tensors of a golden case."""
    safetensors = pytest.importorskip("safetensors.torch")
    return json.loads((GOLDEN / f"{case}.json").read_text()), safetensors.load_file(GOLDEN / f"{case}.safetensors")


def attention_of(maskers, logger=None):
    configs = [CONFIGS[masker["type"]](**{k: v for k, v in masker.items() if k != "type"}) for masker in maskers]
    return hub.ResearchAttention.create_from_config(hub.ResearchAttentionConfig(masker_configs=configs), logger)


@pytest.mark.parametrize(
    "case",
    ["sink_local_oracle_top_k", "sink_local_oracle_top_p", "sink_local_quest", "sink_local_oracle_top_k_chunk_causal"],
)
def test_custom_attention_gives_the_recorded_output_weights_density_and_error(case, tmp_path):
    golden, tensors = load(case)
    with metrics.MetricLogger(tmp_path / "log.jsonl") as logger:
        output, weights = attention_of(golden["maskers"], logger).custom_attention(
            None,
            tensors["queries"],
            tensors["keys"],
            tensors["values"],
            tensors.get("attention_mask"),
            golden["scaling"],
            0.0,
            sparse_meta_data={},
            layer_idx=golden["layer_idx"],
        )
    torch.testing.assert_close(output.transpose(1, 2), tensors["output"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-5, rtol=0)
    group = tensors["queries"].shape[1] // tensors["keys"].shape[1]
    torch.testing.assert_close(
        weights @ tensors["values"].repeat_interleave(group, 1), output.transpose(1, 2), atol=1e-5, rtol=1e-4
    )
    logged = metrics.summary(tmp_path / "log.jsonl")
    assert logged["density"] == pytest.approx(golden["expected"]["density"], abs=1e-6)
    assert logged["output_error"] == pytest.approx(golden["expected"]["output_relative_error"], rel=1e-4)


def test_no_maskers_is_dense_attention_and_sinks_take_part():
    q, k = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 5, 8)
    attend = attention_of([]).custom_attention
    dense, _ = reticle.attention(q, k, k, scaling=0.5)
    output, weights = attend(None, q, k, k, None, 0.5, sparse_meta_data={}, output_attentions=False)
    assert weights is None and output.shape == (1, 2, 4, 8)
    torch.testing.assert_close(output, dense.transpose(1, 2))
    _, weights = attend(None, q, k, k, None, 0.5, sparse_meta_data={}, s_aux=torch.ones(4))
    scores = torch.cat([q @ k.repeat_interleave(2, 1).mT * 0.5, torch.ones(1, 4, 2, 1)], -1)
    torch.testing.assert_close(weights, scores.softmax(-1)[..., :-1])


def test_state_lives_in_sparse_meta_data():
    attention = attention_of([{"type": "socket", "heavy_size": 2}])
    q, k = torch.randn(1, 2, 1, 16), torch.randn(1, 2, 40, 16)
    one, other = {}, {}
    first = attention.custom_attention(None, q, k, k, None, 1.0, sparse_meta_data=one, layer_idx=3)[0]
    again = attention.custom_attention(None, q, k, k, None, 1.0, sparse_meta_data=other, layer_idx=3)[0]
    torch.testing.assert_close(first, again)
    assert list(one) == list(other)
    with pytest.raises(reticle.ShapeError):  # fewer keys than the sequence had
        attention.custom_attention(None, q, k[:, :, :9], k[:, :, :9], None, 1.0, sparse_meta_data=one, layer_idx=3)


def test_mistakes_are_named_as_they_are_there():
    with pytest.raises(TypeError, match="Expected ResearchAttentionConfig, got list"):
        hub.ResearchAttention.create_from_config([])
    with pytest.raises(reticle.ConfigError, match="sink_size must be > 0, got 0"):
        attention_of([{"type": "sink", "sink_size": 0}])
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="sparse_meta_data must be provided"):
        attention_of([]).custom_attention(None, q, q, q, None, 1.0)
    with pytest.raises(NotImplementedError, match="sink_logits with gradients"):
        attention_of([]).custom_attention(
            None, q.clone().requires_grad_(), q, q, None, 1.0, sparse_meta_data={}, s_aux=torch.ones(1)
        )
    module = torch.nn.Linear(1, 1).train()
    with pytest.raises(ValueError, match=r"dropout is 1\.5; expected a probability"):
        attention_of([]).custom_attention(module, q, q, q, None, 1.0, 1.5, sparse_meta_data={})
    attend = lambda **words: attention_of([]).custom_attention(None, q, q, q, None, 1.0, sparse_meta_data={}, **words)
    attend(layer_idx=3, position_ids=torch.arange(1), softcap=None)
    for words in ({"softcap": 30.0}, {"sliding_window": 8}, {"layer_index": 3}):
        with pytest.raises(NotImplementedError, match=f"{next(iter(words))} is not supported"):
            attend(**words)
    with pytest.raises(ValueError, match="Only one sampling masker supported"):
        hub.ResearchAttention.create_from_config(
            hub.ResearchAttentionConfig([hub.MagicPigConfig(8, 8), hub.RandomSamplingMaskerConfig(0.1)])
        )
    with pytest.raises(TypeError, match="SinkMaskerConfig is not a ResearchMasker"):
        hub.ResearchAttention(hub.ResearchAttentionConfig([]), [hub.SinkMaskerConfig(1)])


BAD_CONFIGS = [
    (lambda: hub.OracleTopKConfig(heavy_size=None), "OracleTopKConfig: heavy_size cannot be None; expected a value"),
    (lambda: hub.OracleTopKConfig(0), "heavy_size must be > 0, got 0"),
    (lambda: hub.OracleTopKConfig("all"), "heavy_size must be > 0, got 'all', a str"),
    (lambda: hub.OracleTopPMaskerConfig(1.5), "top_p must be in range [0, 1], got 1.5"),
    (lambda: hub.LocalMaskerConfig(-1), "window_size must be > 0, got -1"),
    (lambda: hub.QuestTopKMaskerConfig(0.1, 0), "page_size must be greater than 0, got 0"),
    (lambda: hub.QuestTopKMaskerConfig(0.1, 16, 17), "label_bits must be in range (0, 16], got 17"),
    (lambda: hub.DoubleSparsityTopKMaskerConfig(0.1, "no.json"), "sorted_channel_file does not exist: no.json"),
    (lambda: hub.HashAttentionTopKMaskerConfig(0.1, 32, 3, 128, "silu"), "Either hat_weights or hat_weight_file"),
    (lambda: hub.HashAttentionTopKMaskerConfig(1, 32, 3, 128, "silu", {}, "a.pkl"), "Only one of hat_weights or"),
    (lambda: hub.PQCacheConfig(0.1, 8, 4, 0, 0, "ip"), "kmeans_iter must be > 0, got 0"),
    (lambda: hub.PQCacheConfig(0.1, 8, 4, 5, 0, "cosine"), "metric must be 'euclidean' or 'ip', got 'cosine'"),
    (lambda: hub.SocketMaskerConfig(0.1, tau=0), "tau must be positive, got 0"),
    (lambda: hub.RandomSamplingMaskerConfig(0.0), "sampling_rate must be in range (0, 1], got 0.0"),
    (lambda: hub.MagicPigConfig(8, 65), "For 'int64' packing, lsh_k must be <= 64, but got 65"),
    (lambda: hub.MagicPigConfig(8, 8, seed=None), "MagicPigConfig: seed cannot be None"),
    (lambda: hub.AdaptiveSamplingMaskerConfig(1.0, 0.1, 0.1, 0, 0), "base_rate_sampling must be in [0, 1) if float"),
    (lambda: hub.AdaptiveSamplingMaskerConfig(5, 0.1, 1.0, 0, 0), "delta must be in (0, 1), got 1.0"),
    (lambda: hub.AdaptiveSamplingMaskerConfig(5, 0.1, 0.1, -1, 0), "init_offset must be non-negative if int, got -1"),
    (lambda: hub.AdaptiveSamplingMaskerConfig("5", 0.1, 0.1, 0, 0), "base_rate_sampling must be int or float, got str"),
]


@pytest.mark.parametrize(("make", "message"), BAD_CONFIGS)
def test_configs_refuse_what_they_refuse_there(make, message):
    with pytest.raises(reticle.ConfigError, match=re.escape(message)):
        make()


def test_a_config_without_a_value_is_no_default():
    with pytest.raises(reticle.ConfigError, match="heavy_size: null is not a size"):
        reticle.maskers.pipeline([reticle.maskers.OracleTopKConfig(heavy_size=None)])
    config = hub.OracleTopKConfig(4)
    config.heavy_size = None
    with pytest.raises(reticle.ConfigError, match="heavy_size cannot be None"):
        reticle.maskers.pipeline([config])


def test_settings_may_be_changed_before_an_attention_is_made_and_on_its_maskers():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 40, 8)
    config = hub.SinkMaskerConfig(128, {"sink_size": [1, 2]})
    config.sink_size = 8
    attention = hub.ResearchAttention.create_from_config(hub.ResearchAttentionConfig([config]))
    count = lambda: attention.custom_attention(None, q, k, k, None, 1.0, sparse_meta_data={})[1].count_nonzero().item()
    assert count() == 2 * 8 and attention.maskers[0].sink_size == 8 and attention.maskers[0].config is config
    config.sink_size = 1
    assert count() == 2 * 8, "an attention keeps the settings it was made with"
    attention.maskers[0].sink_size = 5
    assert count() == 2 * 5
    with pytest.raises(reticle.ConfigError, match="sink_size must be > 0, got 0"):
        attention.maskers[0].sink_size = 0
    with pytest.raises(AttributeError, match="no attribute 'size'"):
        _ = attention.maskers[0].size
    assert attention.sparse_attention_config.masker_configs == [config]
    attention.maskers = [hub.SinkMasker(hub.SinkMaskerConfig(3))]
    assert count() == 2 * 3
    attention.maskers.append(hub.LocalMasker(hub.LocalMaskerConfig(2)))
    assert count() == 2 * 5
    sampler = hub.RandomSamplingMasker(hub.RandomSamplingMaskerConfig(0.5))
    with pytest.raises(ValueError, match="Only one sampling masker supported"):
        attention.maskers = [sampler, sampler]
    attention.maskers.extend([sampler, sampler])
    with pytest.raises(ValueError, match="Only one sampling masker supported"):
        count()


def test_maskers_are_found_by_the_type_of_their_config():
    configs = [
        (hub.SinkMaskerConfig(1), hub.SinkMasker, hub.FixedMasker),
        (hub.FixedMaskerConfig(), hub.CausalMasker, hub.FixedMasker),
        (hub.OracleTopKConfig(1), hub.OracleTopK, hub.TopKMasker),
        (hub.OracleTopPMaskerConfig(0.5), hub.OracleTopPMasker, hub.TopPMasker),
        (hub.MagicPigConfig(2, 2), hub.MagicPig, hub.SamplingMasker),
    ]
    for config, masker, base in configs:
        made = hub.ResearchMasker.create_masker_from_config(config)
        assert type(made) is masker and isinstance(made, base)
        assert hub.MaskerRegistry.get_masker_class(type(config)) is masker
    with pytest.raises(ValueError, match="Invalid config type"):
        hub.SinkMasker.create_from_config(hub.LocalMaskerConfig(1))
    with pytest.raises(ValueError, match="No masker class registered for config type"):
        hub.ResearchMasker.create_masker_from_config(hub.TopKMaskerConfig(1))


def test_weights_are_given_as_tensors_or_as_a_file_of_either_form(tmp_path):
    hat = pytest.importorskip("reticle.research.hat")
    random = np.random.default_rng(0)
    shapes = {"matrix": [(2, 8, 12), (2, 12, 16)], "bias": [(2, 12), (2, 16)]}
    weights = {
        0: {
            f"{side}_{kind}": [random.standard_normal(shape, np.float32) for shape in shapes[kind]]
            for side in ("query", "key")
            for kind in shapes
        }
    }
    (tmp_path / "hat.pkl").write_bytes(pickle.dumps(weights))
    hat.convert(tmp_path / "hat.pkl", tmp_path / "hat.safetensors")
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 60, 8)
    sizes = (7, 16, 2, 12, "relu")
    found = []
    for given in (
        {"hat_weights": weights},
        *({"hat_weight_file": tmp_path / f"hat.{end}"} for end in ("pkl", "safetensors")),
    ):
        config = hub.ResearchAttentionConfig([hub.HashAttentionTopKMaskerConfig(*sizes, **given)])
        attention = hub.ResearchAttention.create_from_config(config)
        found.append(attention.custom_attention(None, q, k, k, None, 1.0, sparse_meta_data={})[1] > 0)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and (found[0].sum(-1) == 7).all()


# --- Mask -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 2, 3, 5), (2, 1, 2, 3, 5)])
def test_masks_have_any_rank_and_every_form(shape):
    p = torch.rand(shape) * (torch.rand(shape) < 0.6)
    mask = hub.Mask.create_mask_from_dense_mask(shape, p, torch.float64)
    assert mask.get_dense_mask().dtype == torch.float64 and torch.equal(mask.get_dense_mask(), p.double())
    assert mask.get_density() == pytest.approx((p > 0).float().mean().item())
    indices, ptr, data = mask.get_index_mask()
    assert torch.equal(indices, p.flatten().nonzero()[:, 0]) and torch.equal(data.float(), p.flatten()[indices])
    assert torch.equal(ptr.diff(), (p > 0).reshape(-1, 5).sum(-1))
    assert hub.Mask.create_mask_from_indices(shape, indices, ptr, data) == mask
    best = p.topk(2).indices
    rows = hub.Mask.create_from_row_wise_idx(shape, best, torch.full(best.shape, 0.5), mode="sparse")
    assert torch.equal(rows.get_dense_mask(), torch.zeros(shape).scatter(-1, best, 0.5))
    other = torch.rand(shape)
    merged = mask.merge_mask(hub.Mask.create_mask_from_dense_mask(shape, other), inplace=False)
    torch.testing.assert_close(merged.get_dense_mask().float(), (p + other).clamp(max=1))
    assert torch.equal(mask.get_dense_mask(), p.double()), "not in place"
    x = torch.randn(shape, requires_grad=True)
    torch.testing.assert_close(mask.apply_mask(x), x * p)
    inverse = torch.where(p > 0, x / p.clamp_min(1e-9), 0)
    torch.testing.assert_close(mask.apply_inv_mask(x, mode="sparse"), inverse)
    torch.testing.assert_close(hub.apply_inv_mask_sum(x, mask), inverse.sum(-1, keepdim=True))
    mask.apply_inv_mask(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.where(p > 0, 1 / p.clamp_min(1e-9), 0))


def test_of_repeated_positions_the_last_counts():
    expected = torch.tensor([[1.0, 0.7, 0, 0]])
    flat = (torch.tensor([1, 1, 0]), torch.tensor([0, 3]), torch.tensor([0.3, 0.7, 1.0]))
    assert torch.equal(hub.Mask.create_mask_from_indices((1, 4), *flat).get_dense_mask(), expected)
    rows = (flat[0][None], flat[2][None])
    assert torch.equal(hub.Mask.create_from_row_wise_idx((1, 4), *rows).get_dense_mask(), expected)


def test_full_and_empty_masks_are_told_by_what_they_hold():
    shape = (2, 3, 4)
    full = hub.Mask.create_full_mask(shape, torch.bfloat16, "cpu")
    empty = hub.Mask.create_empty_mask(shape, device=torch.device("cpu"))
    assert full.is_full_mask() and full.is_full and not full.is_empty and full.get_density() == 1
    assert empty.is_empty_mask() and empty.is_empty and not empty.is_full and empty.get_density() == 0
    assert full.get_dense_mask().dtype == torch.bfloat16 and full.pattern.nbytes == empty.pattern.nbytes == 0
    assert hub.Mask.create_mask_from_dense_mask(shape, torch.ones(shape)).is_full_mask()
    assert hub.Mask.create_mask_from_dense_mask(shape, torch.zeros(shape)).is_empty_mask()
    assert not hub.Mask.create_mask_from_dense_mask(shape, torch.full(shape, 0.5)).is_full_mask()
    assert full.merge_mask(empty, inplace=False).is_full_mask()
    assert empty.merge_mask(full, inplace=True) is empty and empty.is_full_mask()
    x = torch.randn(shape)
    assert torch.equal(full.apply_mask(x), x) and torch.equal(full.apply_inv_mask(x), x)
    nothing = hub.Mask.create_empty_mask(shape, device="cpu")
    assert not nothing.apply_mask(x).any() and not nothing.apply_inv_mask(x).any()


def test_files_of_channels_are_read_and_checked(tmp_path):
    source = Path(os.environ["RETICLE_SOURCE_DIR"]) / "examples/data/double_sparsity_channels.json"
    layer = hub.extract_layer_channels(hub.load_sorted_channels_from_file(source), 1, "qk_proj")
    assert layer.shape == (4, 64) and torch.equal(layer.sort().values, torch.arange(64).expand(4, 64))
    key = "model.layers.0.self_attn.k_proj"
    for data, message in (
        ([], "must be a dictionary"),
        ({key: 1}, f"Channel data for {key} must be a list"),
        ({key: [1]}, f"Channel data for {key}[0] must be a list"),
        ({key: [[1, 0.5]]}, f"Channel indices for {key}[0] must be integers"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            hub.validate_channel_data(data)
    with pytest.raises(ValueError, match="Channel file not found"):
        hub.load_sorted_channels_from_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="Invalid JSON in channel file"):
        hub.load_sorted_channels_from_file(tmp_path / "bad.json")
    with pytest.raises(ValueError, match=f"No sorted channels found for {key}"):
        hub.extract_layer_channels({}, 0, "k_proj")


def test_masks_that_do_not_fit_are_refused():
    make, ones = hub.Mask, torch.ones(2, 3)
    row = torch.tensor([[0, 3], [1, -1]])
    for call, message in (
        (lambda: make((2, 3)), "Must specify either from_dense_mask with mask"),
        (lambda: make.create_full_mask((2, 3)), "device must be specified for full masks"),
        (lambda: make.create_mask_from_dense_mask((3, 2), ones), "mask.shape must be (3, 2), got (2, 3)"),
        (lambda: make.create_mask_from_dense_mask((2, 3), 2 * ones), "p is 2"),
        (lambda: make.create_mask_from_indices((2, 3), row[0], row[0]), "ptr.numel() must be 3, got 2"),
        (lambda: make.create_from_row_wise_idx((2, 3), row, torch.ones(2, 2)), "column 3 is out of range"),
        (lambda: make.create_from_row_wise_idx((2, 3), row, torch.ones(2, 1)), "data.shape must match"),
        (lambda: make.create_from_row_wise_idx((2, 3), row[:, :0], ones), "at least one column"),
        (
            lambda: make.create_from_row_wise_idx((2, 4), row, torch.ones(2, 2), "csr"),
            "type must be 'index' or 'dense'",
        ),
        (
            lambda: make.create_full_mask((2, 3), device="cpu").apply_mask(torch.ones(3, 2)),
            "input_tensor.shape must be",
        ),
        (
            lambda: make.create_full_mask((2, 3), device="cpu").merge_mask(
                make.create_full_mask((6,), device="cpu"), inplace=False
            ),
            "Cannot merge masks with different shapes: (2, 3) vs (6,)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# --- attention over a mask ------------------------------------------------------------------------------------------


def test_output_is_numerator_over_denominator_and_gradients_reach_the_inputs():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, n, 8, requires_grad=True) for h, n in ((4, 3), (2, 20), (2, 20)))
    p = torch.rand(1, 4, 3, 20) * (torch.rand(1, 4, 3, 20) < 0.5)
    mask = hub.Mask.create_mask_from_dense_mask((1, 4, 3, 20), p)
    scores = q @ k.repeat_interleave(2, 1).mT * 0.3
    weights = torch.where(p > 0, scores.exp() / p.clamp_min(1e-9), 0)
    expected = (weights / weights.sum(-1, keepdim=True)) @ v.repeat_interleave(2, 1)
    call = (None, q, k, v, None, 0.3, 0.0, mask)
    output, found_weights = hub.get_masked_attention_output(*call, return_attention_weights=True)
    torch.testing.assert_close(output, expected.transpose(1, 2))
    torch.testing.assert_close(found_weights, (weights / weights.sum(-1, keepdim=True)).detach())
    largest = torch.where(p > 0, scores, -torch.inf).amax(-1, keepdim=True)
    denominator = hub.get_attention_denominator(None, q, k, None, 0.3, 0.0, mask)
    torch.testing.assert_close(denominator, (weights.sum(-1, keepdim=True) / largest.exp()).detach())
    numerator = hub.get_attention_numerator(*call)
    torch.testing.assert_close(numerator, (weights @ v.repeat_interleave(2, 1)) / largest.exp())
    dense, _ = hub.get_true_attention_output(None, q, k, v, None, 0.3, 0.0)
    torch.testing.assert_close(dense, (scores.softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2))
    gradients = torch.autograd.grad(output.square().sum(), (q, k, v))
    for got, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_a_masker_alone_adds_what_it_adds_in_a_list():
    golden, tensors = load("sink_local_oracle_top_k")
    attention = attention_of(golden["maskers"])
    q, k, v = tensors["queries"], tensors["keys"], tensors["values"]
    mask = hub.Mask.create_empty_mask((*q.shape[:3], k.shape[2]), device="cpu")
    for masker in attention.maskers:
        mask = masker.add_mask(k, q, v, None, golden["scaling"], 0.0, None, mask, layer_idx=0)
    assert mask.get_density() == pytest.approx(golden["expected"]["density"], abs=1e-6)
    full = hub.Mask.create_full_mask(mask.shape, device="cpu")
    assert attention.maskers[2].add_mask(k, q, v, None, 1.0, 0.0, {}, full) is full


# --- models and metrics ---------------------------------------------------------------------------------------------


def by_mask(model, tokenizer, context, question, kept):
    """8 greedy tokens with torch's attention, in which tokens after the context see the keys that kept(query, key)
    allows."""
    ids, begin = tokenizer.encode(context + question), len(tokenizer.encode(context))
    for _ in range(8):
        i, j = torch.arange(len(ids))[:, None], torch.arange(len(ids))
        seen = (j <= i) & ((i < begin) | kept(i, j))
        bias = torch.zeros(1, 1, len(ids), len(ids)).masked_fill(~seen, torch.finfo(torch.float32).min)
        ids.append(int(model(torch.tensor([ids]), attention_mask=bias).logits[0, -1].argmax()))
    return tokenizer.decode(ids[-8:])


def test_an_adapter_answers_questions_about_a_context():
    transformers = pytest.importorskip("transformers")
    evaluate = pytest.importorskip("reticle.research.evaluate")
    folder = Path(os.environ["RETICLE_SOURCE_DIR"]) / "examples/data/byte-llama-3m-retrieval"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = evaluate.ByteTokenizer()
    given = {"model": model, "tokenizer": tokenizer, "device": "cpu"}
    context, question = "The river was wide and the bridge was old. " * 6, "Then the river was"
    dense = hub.ModelAdapterHF("bundled", None, **given)
    answer = dense.process_request(hub.Request(context, question), {"max_new_tokens": 8}, {}).responses
    ids = torch.tensor([tokenizer.encode(context + question)])
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert answer == tokenizer.decode(expected)
    config = hub.ResearchAttentionConfig([hub.SinkMaskerConfig(2), hub.LocalMaskerConfig(4)])
    sparse = hub.ModelAdapterHF("bundled", config, **given)
    answers = sparse.process_request(hub.Request(context, [question, "And"]), max_new_tokens=8).responses
    window = lambda i, j: (j < 2) | (j > i - 4)
    assert answers == [by_mask(model, tokenizer, context, text, window) for text in (question, "And")]
    before = model(ids).logits
    with sparse.enable_sparse_mode():
        within = model(ids).logits
    assert not torch.allclose(before, within) and torch.equal(model(ids).logits, before)
    with pytest.raises(RuntimeError, match="Cannot enable sparse mode"), dense.enable_sparse_mode():
        pass
    with pytest.raises(ValueError, match="top_k: not supported"):
        sparse.process_request(hub.Request(context, question), {"top_k": 5})


def test_the_masker_of_the_documentation_serves_a_model():
    transformers = pytest.importorskip("transformers")
    evaluate, hf = pytest.importorskip("reticle.research.evaluate"), pytest.importorskip("reticle.hf")
    source = Path(os.environ["RETICLE_SOURCE_DIR"])
    code = (source / "docs/hub.md").read_text().split("```python\n")[2].partition("```")[0]
    names = {**vars(hub), "dataclass": dataclasses.dataclass, "torch": torch}
    exec(code, names)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source / "examples/data/byte-llama-3m-retrieval", dtype=torch.float32
    )
    tokenizer, text = evaluate.ByteTokenizer(), "The river was wide and the bridge was old. " * 4
    ids = torch.tensor([tokenizer.encode(text)])
    with hf.attach(model, generation=[hub.SinkMaskerConfig(4), names["EveryNthConfig"](8)]) as attached:
        with attached.stage("generation"):
            logits = model(ids).logits
        assert attached.generation.density < 0.2
    i, j = torch.arange(ids.shape[1])[:, None], torch.arange(ids.shape[1])
    seen = (j <= i) & ((j < 4) | (j % 8 == 0))
    bias = torch.zeros(1, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    torch.testing.assert_close(logits, model(ids, attention_mask=bias).logits, atol=1e-3, rtol=1e-3)


def test_the_metric_logger_is_one_to_the_process_and_writes_what_is_enabled(tmp_path, capsys):
    logger = hub.MicroMetricLogger()
    assert logger is hub.MicroMetricLogger()
    logger.configure_logging(tmp_path, ["research_attention_density"])
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 40, 8)
    attend = attention_of([{"type": "sink", "sink_size": 10}]).custom_attention
    try:
        attend(None, q, k, k, None, 1.0, sparse_meta_data={}, layer_idx=3)
        logger.flush()
        (record,) = metrics.records(tmp_path / "micro_metrics.jsonl")
        assert record["metric"] == "research_attention_density" and record["value"] == 0.25
        assert record["metadata"] == {"layer_idx": 3} and "ResearchAttention" in record["location"]
        logger.enable_metrics("all")
        attend(None, q, k, k, None, 1.0, sparse_meta_data={}, layer_idx=3)
        logger.flush()
        assert len(metrics.records(tmp_path / "micro_metrics.jsonl")) == 3
        hub.MicroMetricLogger(log_path=tmp_path / "elsewhere")
        assert "call configure_logging to change it" in capsys.readouterr().out
        assert logger.log_path == str(tmp_path) and not (tmp_path / "elsewhere").exists()
    finally:
        logger.enable_metrics(None)
    logger.log("research_attention_density", 0.5)
    assert "which is not enabled" in capsys.readouterr().out


def test_a_logger_samples_and_sums_by_layer(tmp_path):
    path = tmp_path / "deep" / "log.jsonl"
    with metrics.MetricLogger(path, ["density"]) as logger:
        assert logger.wants("density") and not logger.wants("output_error")
        for layer, value in ((0, 0.5), (1, 0.1), (1, 0.3)):
            logger.log("density", np.float32(value), layer=layer)
    assert metrics.summary(path)["density"] == pytest.approx(0.3)
    assert metrics.summary(path, by="layer") == {"density": {0: 0.5, 1: pytest.approx(0.2)}}
    with metrics.MetricLogger(path, sampling=0) as never:
        assert not any(never.wants("density") for _ in range(100))
    with pytest.raises(ValueError, match="recall"):
        metrics.MetricLogger(path, ["recall"])
