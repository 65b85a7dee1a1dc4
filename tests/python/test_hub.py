"""sparse-attention-hub's names, on its own recorded numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import reticle
from reticle import hub, metrics

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
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
    """A golden case: its JSON and its tensors."""
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
            output_attentions=True,
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
    output, weights = attend(None, q, k, k, None, 0.5, sparse_meta_data={})
    assert weights is None and output.shape == (1, 2, 4, 8)
    torch.testing.assert_close(output, dense.transpose(1, 2))
    _, weights = attend(None, q, k, k, None, 0.5, sparse_meta_data={}, s_aux=torch.ones(4), output_attentions=True)
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
    with pytest.raises(reticle.ShapeError):  # fewer keys than this sequence had
        attention.custom_attention(None, q, k[:, :, :9], k[:, :, :9], None, 1.0, sparse_meta_data=one, layer_idx=3)


def test_mistakes_are_named_as_they_are_there():
    with pytest.raises(TypeError, match="Expected ResearchAttentionConfig, got list"):
        hub.ResearchAttention.create_from_config([])
    with pytest.raises(reticle.ConfigError, match="sink_size"):
        attention_of([{"type": "sink", "sink_size": 0}])
    q = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ValueError, match="sparse_meta_data must be provided"):
        attention_of([]).custom_attention(None, q, q, q, None, 1.0)
    with pytest.raises(NotImplementedError, match="no gradients"):
        attention_of([]).custom_attention(None, q.clone().requires_grad_(), q, q, None, 1.0, sparse_meta_data={})
    module = torch.nn.Linear(1, 1).train()
    with pytest.raises(NotImplementedError, match="dropout"):
        attention_of([]).custom_attention(module, q, q, q, None, 1.0, 0.1, sparse_meta_data={})


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
