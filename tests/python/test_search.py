"""Search over configurations."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import reticle
from reticle.maskers import LocalConfig, OracleTopKConfig, SinkConfig
from reticle.research import search

pytest.importorskip("pandas", reason="pandas is not installed; ./bootstrap test --torch installs it")
pytest.importorskip("tqdm")
SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])
SPACE = [
    SinkConfig(sink_size=search.choice(1, 4)),
    LocalConfig(window_size=16),
    OracleTopKConfig(heavy_size=search.choice(0.02, 0.1, 0.3)),
]


def by_size(trial):
    """A measure without tensors: the more keys, the smaller the error."""
    size = trial[2]["heavy_size"] + trial[0]["sink_size"] / 1000
    if trial[0]["sink_size"] == 4 and trial[2]["heavy_size"] == 0.3:
        raise RuntimeError("out of luck")
    return {"error": 0.1 / size, "density": size, "sinks": trial[0]["sink_size"]}


def run(**options):
    return search.run(SPACE, by_size, progress=False, **options)


def test_objectives_score_as_sparse_attention_hubs():
    golden = json.loads((SOURCE / "tests/golden/hub/objectives.json").read_text())
    assert len(golden["cases"]) > 20
    for case in golden["cases"]:
        objective = search.balanced if case["objective"] in (-1, "default") else search.at_density(case["objective"])
        assert objective(case["error"], case["density"]) == pytest.approx(case["score"], abs=1e-12), case


def test_every_combination_is_measured_and_the_best_is_first():
    trials = run(objective=search.at_density(15))
    assert len(trials) == 6
    assert trials["score"].is_monotonic_increasing
    assert trials.iloc[0]["2.oracle_top_k.heavy_size"] == 0.1 and trials.iloc[0]["sinks"] == 4
    assert trials.iloc[-1]["failure"] == "RuntimeError: out of luck" and trials["failure"].notna().sum() == 1
    assert json.loads(trials.iloc[0]["maskers"])[1] == {"type": "local", "window_size": 16, "dilation": 1}
    assert json.loads(search.best_pipeline(trials).to_json())["maskers"][2]["heavy_size"] == 0.1


def test_samples_are_drawn_without_repetition_and_by_seed():
    drawn = search.candidates(SPACE, samples=4, seed=1)
    assert len({json.dumps(trial) for trial in drawn}) == 4
    assert drawn == search.candidates(SPACE, samples=4, seed=1) != search.candidates(SPACE, samples=4, seed=2)
    assert len(search.candidates(SPACE, samples=100)) == 6


def test_a_pool_and_ray_find_what_one_process_finds(monkeypatch):
    expected = run()
    for options in ({"workers": 2}, {"ray": True}):
        if "ray" in options:  # a stub of Ray Tune's interface, because the tests do not depend on Ray

            class Tuner:
                def __init__(self, trainable, param_space):
                    self.call = lambda: [
                        types.SimpleNamespace(metrics=trainable({"index": i})) for i in param_space["index"]
                    ]

                def fit(self):
                    return self.call()

            tune = types.SimpleNamespace(Tuner=Tuner, grid_search=lambda values: values)
            monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(tune=tune))
        found = run(**options)
        assert found.drop(columns="seconds").equals(expected.drop(columns="seconds"))


def test_trials_are_kept_and_taken_up_again(tmp_path):
    file = tmp_path / "deep/trials.jsonl"
    calls = []

    def counted(trial):
        calls.append(trial)
        return by_size(trial)

    search.run(SPACE, counted, samples=3, output=file, progress=False)
    trials = search.run(SPACE, counted, output=file, progress=False)
    assert len(trials) == 6 and len(calls) in (6, 7)  # a failed trial is repeated
    assert trials.drop(columns="seconds").equals(run().drop(columns="seconds"))


def test_spaces_that_a_masker_refuses_are_named():
    with pytest.raises(reticle.ConfigError, match="/maskers/0/sink_size: -1"):
        search.candidates([SinkConfig(sink_size=search.choice(1, -1))])
    with pytest.raises(ValueError, match="needs values"):
        search.choice()
    trials = search.run([SinkConfig()], lambda trial: {"error": 1}, progress=False)
    assert trials.iloc[0]["failure"] == "ValueError: the measure gave no density"
    with pytest.raises(ValueError, match="no trial succeeded"):
        search.best_pipeline(trials)


def test_the_pareto_front_is_what_no_other_beats(tmp_path):
    import pandas

    trials = pandas.DataFrame(
        {"density": [0.1, 0.2, 0.3, 0.3, 0.5], "error": [0.5, 0.6, 0.2, 0.3, 0.2], "failure": [None] * 5}
    )
    assert search.pareto(trials)["density"].tolist() == [0.1, 0.3]
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = search.plot_pareto(trials)
    assert axes.get_xlabel() == "keys attended, %"


def test_error_and_density_are_measured_on_recorded_tensors():
    data = SOURCE / "examples/data/attention_4096.safetensors"
    space = [SinkConfig(sink_size=4), OracleTopKConfig(heavy_size=search.choice(0.02, 0.2))]
    for stage in ("generation", "prefill"):
        trials = search.run(
            space, search.TensorMeasure(data, queries=2, stage=stage), objective=search.balanced, progress=False
        )
        assert trials["failure"].isna().all(), trials["failure"].tolist()
        few, many = trials.sort_values("density").itertuples()
        assert 0.02 <= few.density < 0.03 and 0.2 <= many.density < 0.21
        assert 0 < many.error < few.error < 1
    failed = search.run(space, search.TensorMeasure(SOURCE / "README.md"), progress=False)
    assert "README.md" in failed.iloc[0]["failure"]
