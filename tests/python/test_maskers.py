"""Masker configs as dataclasses."""

import dataclasses
import json

import numpy as np
import pytest
import reticle
from reticle import maskers
from reticle.maskers import LocalConfig, OracleTopKConfig, SinkConfig, TovaConfig, pipeline


def test_every_masker_has_a_documented_class_of_its_defaults():
    for masker in reticle._core.masker_types():
        made = getattr(maskers, maskers.class_name(masker))
        assert made.type == masker
        assert made.__doc__.startswith(f"## {masker}")
        required = [f.name for f in dataclasses.fields(made) if f.default is f.default_factory is dataclasses.MISSING]
        if required:
            continue
        printed = json.loads(pipeline([made()]).to_json())["maskers"][0]
        default = json.loads(reticle.SparseAttention.from_json(json.dumps({"maskers": [{"type": masker}]})).to_json())
        assert printed == default["maskers"][0]


def test_configs_are_values():
    assert LocalConfig(window_size=0.5) == maskers.from_dict({"type": "local", "window_size": 0.5})
    assert LocalConfig() != LocalConfig(window_size=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        LocalConfig().window_size = 3
    assert SinkConfig(sink_size=2, layers=[0, "4-"]).to_dict() == {"type": "sink", "sink_size": 2, "layers": [0, "4-"]}


def test_pipelines_are_those_of_the_same_json():
    text = (
        '{"maskers": [{"type": "sink", "sink_size": 2}, {"type": "oracle_top_k", "heavy_size": 0.1}], "causal": true}'
    )
    made = pipeline([SinkConfig(sink_size=2), OracleTopKConfig(heavy_size=0.1)], causal=True)
    assert made.to_json() == reticle.SparseAttention.from_json(text).to_json()
    staged = json.loads(pipeline(generation=[TovaConfig(token_capacity=9)]).to_json())
    assert staged["prefill"] == {"maskers": []}
    assert staged["generation"]["maskers"][0]["token_capacity"] == 9


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="sink_sise"):
        SinkConfig(sink_sise=3)
    with pytest.raises(TypeError, match="sorted_channel_file"):
        maskers.DoubleSparsityTopKConfig()
    with pytest.raises(reticle.ConfigError, match="/maskers/1/window_size: -3"):
        pipeline([SinkConfig(), LocalConfig(window_size=-3)])
    with pytest.raises(reticle.ConfigError, match='did you mean "sink"'):
        maskers.from_dict({"type": "sinc"})
    with pytest.raises(reticle.ConfigError, match="merge"):
        pipeline([SinkConfig()], merge="sum")


def test_handlers_take_a_pattern_for_each_stage():
    random = np.random.default_rng(0)
    q, k, v = (random.standard_normal((1, h, 12, 8), dtype=np.float32) for h in (4, 2, 2))
    handler = reticle.InferenceHandler(pipeline([]), pipeline([LocalConfig(window_size=3)]), keep_masks=True)
    state = reticle.InferenceState()
    handler.attend(q[:, :, :8], k[:, :, :8], v[:, :, :8], state)
    for step in range(8, 12):
        output, lse = handler.attend(
            q[:, :, step : step + 1], k[:, :, : step + 1], v[:, :, : step + 1], state, stage="generation"
        )
        expected = reticle.attention(
            q[:, :, step : step + 1], k[:, :, step - 2 : step + 1], v[:, :, step - 2 : step + 1]
        )
        np.testing.assert_allclose(output, expected[0], atol=1e-6)
        np.testing.assert_allclose(lse, expected[1], atol=1e-6)
    assert state.prefill.density == 1
    assert state.generation.density == pytest.approx(4 * 3 / (9 + 10 + 11 + 12))
    assert [layer for layer, _ in state.generation.masks] == [0, 0, 0, 0]
    state.reset()
    assert state.generation.sparsity == []


def test_handlers_record_at_least_what_they_are_asked_for_and_say_what_they_expect():
    handler = reticle.InferenceHandler(pipeline([]), pipeline([LocalConfig(window_size=3)]))
    q, k = np.zeros((1, 1, 4, 2), np.float32), np.zeros((1, 1, 4, 2), np.float32)
    state = reticle.SequenceState(record="masks")
    handler.attend(q, k, k, state)
    assert state.record == "masks" and len(state.prefill.masks) == 1
    with pytest.raises(TypeError, match="state is None; expected an InferenceState"):
        handler.attend(q, k, k, None)
    with pytest.raises(TypeError, match="causal: is not an option of InferenceHandler"):
        handler.mask(q, k, k, state, causal=False)
    with pytest.raises(TypeError):
        handler.attend(q, k, k, state, scale=1.0)
    with pytest.raises(ValueError, match="oracle_top_k may come back to any key"):
        reticle.InferenceHandler(pipeline([]), pipeline([OracleTopKConfig(heavy_size=2)])).require_forgetful()


def test_measuring_is_recorded_as_running_is():
    sparse = pipeline([LocalConfig(window_size=3)])
    q = np.zeros((1, 1, 6, 2), np.float32)
    measured, run = reticle.SequenceState(record="figures"), reticle.SequenceState(record="figures")
    sparse.measure(q, q, q, measured)
    sparse.run(q, q, q, run)
    assert measured.prefill.sparsity == run.prefill.sparsity != []


def test_what_json_does_not_have_is_named():
    with pytest.raises(reticle.ConfigError, match=r"a config holds \{1\}, a set; expected what JSON has"):
        pipeline([SinkConfig(sink_size={1})])
