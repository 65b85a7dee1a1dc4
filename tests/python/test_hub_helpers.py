"""The helper functions of sparse-attention-hub's maskers, against their definitions, and their import paths."""

import importlib
import json
import math
import pickle

import pytest

torch = pytest.importorskip("torch")
hub = pytest.importorskip("reticle.hub")

FIXED = "reticle.hub.sparse_attention.research_attention.maskers.fixed.implementations.utils"
UTILS = "reticle.hub.sparse_attention.utils"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"{UTILS}.kv_utils", "repeat_kv"),
        (f"{UTILS}.hashattention_utils", "load_hat_weights"),
        (f"{UTILS}.pq_utils", "ip2l2_augment"),
        (f"{UTILS}.mask_attention_utils", "create_sampling_mask_with_per_head_budget"),
        (f"{FIXED}.quest_utils", "pages_to_token_mask"),
        (f"{FIXED}.common_utils", "pseudo_quantize"),
        (f"{FIXED}.pq_utils", "ip2l2_augment_queries"),
    ],
)
def test_helpers_stand_where_programs_import_them(path, name):
    assert getattr(importlib.import_module(path), name) is getattr(hub, name)


def test_heads_are_repeated_in_a_row():
    keys = torch.randn(2, 3, 5, 4)
    assert torch.equal(hub.repeat_kv(keys, 2), keys[:, [0, 0, 1, 1, 2, 2]])
    assert hub.repeat_kv(keys, 1) is keys


def test_quantised_rows_keep_their_ends_and_move_by_half_a_step_at_most():
    rows = torch.randn(7, 16)
    rows[3] = 2.0  # a row of equal values
    rounded = hub.pseudo_quantize(rows, 4)
    step = (rows.amax(-1) - rows.amin(-1)) / 15
    assert ((rounded - rows).abs().amax(-1) <= step / 2 + 1e-6).all()
    assert torch.allclose(rounded.amax(-1), rows.amax(-1)) and torch.allclose(rounded.amin(-1), rows.amin(-1))
    assert rows[3].eq(2.0).all() and rounded[3].eq(2.0).all()


@pytest.mark.parametrize("page_size", [1, 2, 3, 4, 6, 7])
def test_pages_bound_the_scores_of_their_keys(page_size):
    keys, queries = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 3, 4)
    pages = math.ceil(6 / page_size)
    least, largest = hub.compute_page_min_max(keys, page_size, pages)
    bounds = hub.quest_page_scores(queries, least, largest)
    assert bounds.shape == (2, 2, 3, pages)
    scores = queries @ keys.transpose(2, 3)
    for page in range(pages):
        rows = keys[:, :, page * page_size : (page + 1) * page_size]
        assert torch.equal(least[:, :, page], rows.amin(2)) and torch.equal(largest[:, :, page], rows.amax(2))
        best = scores[..., page * page_size : (page + 1) * page_size].amax(-1)
        assert (bounds[..., page] >= best - 1e-5).all()


def test_pages_that_do_not_hold_the_keys_are_refused():
    with pytest.raises(ValueError, match="2 pages of 2 hold fewer than 6 keys; expected at least 3"):
        hub.compute_page_min_max(torch.randn(1, 1, 6, 4), 2, 2)


def test_masks_become_pages_and_pages_become_masks():
    blocked = torch.tensor([[[False, True, True, True, False]]])
    allowed = hub.attention_mask_to_allowed_prob(blocked, 5)
    assert allowed.tolist() == [[[[1, 0, 0, 0, 1]]]]
    assert hub.attention_mask_to_allowed_prob(torch.tensor([[[1.0, -2.0, 0.0]]]), 4).tolist() == [[[[1, 0, 1, 0]]]]
    assert hub.pages_valid(allowed, 2, 3).tolist() == [[[True, False, True]]]
    tokens = hub.pages_to_token_mask(torch.tensor([[[[0, 2]]]]), 5, 2, "cpu", torch.float32)
    assert tokens.tolist() == [[[[1, 1, 0, 0, 1]]]]
    assert hub.pages_to_token_mask(torch.zeros(1, 1, 1, 0), 5, 2, "cpu", torch.float32).sum() == 0


def test_after_augmenting_distances_order_as_inner_products():
    vectors, queries = torch.randn(3, 20, 8), torch.randn(3, 4, 8)
    longer, phi = hub.ip2l2_augment(vectors)
    wider = hub.ip2l2_augment_queries(queries, phi)
    assert longer.shape == (3, 20, 9) and phi.shape == (3, 1, 1) and wider.shape == (3, 4, 9)
    assert torch.allclose(longer.square().sum(-1), phi[..., 0].expand(3, 20), atol=1e-4)
    distances = (wider.unsqueeze(2) - longer.unsqueeze(1)).square().sum(-1)
    products = queries @ vectors.transpose(1, 2)
    expected = phi + queries.square().sum(-1, keepdim=True) - 2 * products
    assert torch.allclose(distances, expected, atol=1e-4)


def test_samples_stay_in_their_range_and_carry_their_probability():
    torch.manual_seed(0)
    budgets = torch.tensor([[[[3], [0]], [[9], [1]]]])
    p = torch.tensor([[[[0.5], [0.1]], [[0.25], [1.0]]]])
    dense = hub.create_sampling_mask_with_per_head_budget(budgets, p, 12, 2, 8).get_dense_mask()
    assert dense.shape == (1, 2, 2, 12) and dense[..., :2].sum() == 0 and dense[..., 8:].sum() == 0
    counts = (dense > 0).sum(-1, keepdim=True)
    assert (counts <= budgets).all() and (counts[budgets > 0] > 0).all() and counts[0, 0, 1, 0] == 0
    assert all(
        dense[row][dense[row] > 0].unique().tolist() == [p[(*row, 0)]] for row in [(0, 0, 0), (0, 1, 0), (0, 1, 1)]
    )
    with pytest.raises(ValueError, match=r"is \[5, 5\); expected a range in \[0, 12\)"):
        hub.create_sampling_mask_with_per_head_budget(budgets, p, 12, 5, 5)


def published(layers=2, heads=2):
    """A state dict of the training code with two linear maps, 8 -> 6 -> 4."""
    state = {}
    for layer in range(layers):
        for side in "qk":
            for head in range(heads):
                for place, (before, after) in {0: (8, 6), 2: (6, 4)}.items():
                    name = f"{layer}.learning_to_hash_transformation_{side}.{head}.{place}"
                    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(after, before), torch.randn(after)
    return state


def test_hash_weights_come_from_files_in_every_form(tmp_path):
    state = published()
    torch.save(state, tmp_path / "usa.pt")
    weights = hub.convert_usa_weights_to_hash_attention(tmp_path / "usa.pt", 2, 2, 2)
    name = "1.learning_to_hash_transformation_k.1.2"
    assert torch.equal(weights[1]["key_matrix"][1][1], state[f"{name}.weight"].T)
    assert torch.equal(weights[1]["key_bias"][1][1], state[f"{name}.bias"])
    hub.create_hat_weights_file_from_usa(tmp_path / "usa.pt", tmp_path / "hat.pkl", 2, 2, 2)
    config = hub.HashAttentionTopKMaskerConfig(
        heavy_size=4, hat_bits=4, hat_mlp_layers=2, hat_mlp_hidden_size=6, hat_mlp_activation="silu",
        hat_weight_file=str(tmp_path / "hat.pkl"),
    )  # fmt: skip
    masker = hub.HashAttentionTopKMasker(config)
    for read in (hub.load_hat_weights(tmp_path / "hat.pkl"), masker.hat_weights):
        assert sorted(read) == [0, 1] and torch.equal(read[0]["query_matrix"][0], weights[0]["query_matrix"][0])
    with pytest.raises(ValueError, match=r"has \(layers, heads, linear maps\) \(2, 2, 2\); expected \(32, 32, 3\)"):
        hub.convert_usa_weights_to_hash_attention(tmp_path / "usa.pt")


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_of_a_weight_file_is_executed(tmp_path, capsys):
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({0: Bomb()}))
    with pytest.raises(ValueError, match="refused, and nothing was executed"):
        hub.load_hat_weights(tmp_path / "bomb.pkl")
    assert "executed" not in capsys.readouterr().out


def test_attributes_that_maskers_have_beyond_their_config():
    adaptive = hub.AdaptiveSamplingMasker(hub.AdaptiveSamplingMaskerConfig(0.1, 0.1, 0.05, 0, 0))
    assert adaptive.delta_ppf == pytest.approx(1.6448536, abs=1e-6)
    assert [adaptive.should_return_full_mask(n) for n in (-4, 1, 2)] == [True, True, False]
    assert hub.SocketMasker(hub.SocketMaskerConfig(heavy_size=4, K=6, L=2)).P == 6


@pytest.mark.parametrize("mode", ["sparse", "dense1", "dense2"])
def test_positions_are_added_by_dimensions_alone(mode):
    dims = hub.AttentionTensorDimensions(2, 3, 4, 10)
    keys, empty = torch.randn(2, 1, 10, 4), hub.Mask.create_empty_mask((2, 3, 4, 10), device="cpu")
    sink = hub.SinkMasker(hub.SinkMaskerConfig(sink_size=1)).get_updated_mask(dims, 2, keys, empty, mode=mode)
    assert sink.get_dense_mask().tolist() == (torch.arange(10) < 2).float().expand(2, 3, 4, 10).tolist()
    local = hub.LocalMasker(hub.LocalMaskerConfig(window_size=1)).get_updated_mask(dims, 3, keys, sink, mode=mode)
    row, key = torch.arange(4)[:, None] + 6, torch.arange(10)
    expected = ((key < 2) | ((key <= row) & (key > row - 3))).float().expand(2, 3, 4, 10)
    assert torch.equal(local.get_dense_mask(), expected)
    with pytest.raises(ValueError, match="mode: is 'fast'; expected one of sparse, dense1, dense2"):
        hub.SinkMasker(hub.SinkMaskerConfig(sink_size=1)).get_updated_mask(dims, 2, keys, empty, mode="fast")


def test_the_best_keys_are_added_to_those_before():
    torch.manual_seed(1)
    dims = hub.AttentionTensorDimensions(1, 2, 3, 12)
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 1, 12, 4)
    sinks = hub.SinkMasker(hub.SinkMaskerConfig(sink_size=2)).get_updated_mask(
        dims, 2, k, hub.Mask.create_empty_mask((1, 2, 3, 12), device="cpu")
    )
    masker = hub.OracleTopK(hub.OracleTopKConfig(heavy_size=1))
    got = masker.get_updated_mask(dims, 3, k, q, None, sinks).get_dense_mask()
    best = (q @ k.transpose(2, 3)).index_fill(3, torch.tensor([0, 1]), float("-inf")).topk(3).indices
    assert torch.equal(got, sinks.get_dense_mask().scatter(3, best, 1.0))


def test_channel_files_of_another_form_are_named(tmp_path):
    path = tmp_path / "channels.json"
    path.write_text("[[0, 1]]")
    with pytest.raises(ValueError, match="Channel file must contain a JSON object"):
        hub.load_sorted_channels_from_file(path)
    path.write_text(json.dumps({"model.layers.0.self_attn.q_proj": [[3, 0, 1, 2]]}))  # one list for all heads
    config = hub.DoubleSparsityTopKMaskerConfig(
        heavy_size=3, sorted_channel_file=str(path), group_factor=2, label_bits=16, channel_selection="q_proj"
    )
    q, k = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 12, 4)
    empty = hub.Mask.create_empty_mask((1, 2, 3, 12), device="cpu")
    added = hub.DoubleSparsityTopKMasker(config).add_mask(k, q, k, None, 1.0, 0.0, {}, empty, layer_idx=0)
    best = (q[..., [3, 0]] @ k[..., [3, 0]].transpose(2, 3)).topk(3).indices
    assert torch.equal(added.get_dense_mask(), torch.zeros(1, 2, 3, 12).scatter(3, best, 1.0))
    config.channel_selection = "qk_proj"
    with pytest.raises(ValueError, match=r"has no .model.layers.0.self_attn.qk_proj"):
        hub.DoubleSparsityTopKMasker(config).add_mask(k, q, k, None, 1.0, 0.0, {}, empty, layer_idx=0)


def test_a_seed_cannot_be_none():
    with pytest.raises(ValueError, match="seed cannot be None"):
        hub.MagicPigConfig(lsh_l=8, lsh_k=4, seed=None)


@pytest.fixture
def logger():
    """A logger for this test only; the logger of the process is restored afterwards."""
    made, metrics = hub.MicroMetricLogger._instance, dict(hub.MicroMetricLogger._registered_metrics)
    hub.MicroMetricLogger._instance = None
    yield hub.MicroMetricLogger()
    hub.MicroMetricLogger._instance = made
    hub.MicroMetricLogger._registered_metrics.clear()
    hub.MicroMetricLogger._registered_metrics.update(metrics)


def test_the_logger_warns_in_the_words_that_programs_know(logger, tmp_path, capsys):
    logger.log("a", 1.0)
    logger.register_metric("a", float)
    logger.register_metric("a", int)
    logger.configure_logging(tmp_path, ["a", "unknown"], sampling_factor=1.5)
    logger.log("b", 1)
    said = capsys.readouterr().out
    assert "Warning: Cannot log metric 'a' - log_path not defined" in said
    assert "Warning: Metric 'a' is being re-registered" in said
    assert "Warning: Attempting to enable unregistered metrics: unknown" in said
    assert "Warning: Attempting to log metric 'b' which is not enabled" in said
    assert logger.enabled_metrics == {"a"} and logger.get_sampling_factor() == 1.0
    logger.log("a", None)  # the metric has no value in this call
    with pytest.raises(TypeError, match="'a' is str; it is registered as int"):
        logger.log("a", "1")


def test_no_event_is_lost_when_many_wait(logger, tmp_path):
    logger.register_metric("a", int)
    logger.configure_logging(tmp_path, ["a"])
    logger.flush_every = logger.flush_interval = 10**9
    for i in range(10001):
        logger.log("a", i)
    assert len(logger.log_queue) <= 10000
    logger.flush()
    lines = (tmp_path / "micro_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == list(range(10001))
