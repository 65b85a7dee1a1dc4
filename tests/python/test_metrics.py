"""Logs of metrics: JSON lines, TensorBoard, Weights & Biases."""

import sys
import types

import pytest
from reticle.research import metrics

LOGGED = [
    ("density", 0.25, {"layer": 0, "stage": "generation", "keys": 10}),
    ("density", 0.5, {"layer": 0, "stage": "generation", "keys": 11}),
    ("density", 1.0, {"layer": 1, "stage": "prefill", "keys": 11}),
    ("score", 0.75, {"task": "copy", "index": 3}),
]
CURVES = {
    "density/generation/layer_0": [0.25, 0.5],
    "density/prefill/layer_1": [1.0],
    "score/copy": [0.75],
}


def log_to(logger):
    for metric, value, metadata in LOGGED:
        logger.log(metric, value, **metadata)


def test_json_lines_hold_what_was_logged_and_are_replayed(tmp_path):
    for _ in range(2):
        with metrics.MetricLogger(tmp_path / "deep/log.jsonl") as log:
            log_to(log)
    with pytest.raises(ValueError, match="closed file"):
        log.log("density", 1)
    found = [(record["metric"], record["value"], record["metadata"]) for record in metrics.records(log._file.name)]
    assert found == LOGGED * 2
    with metrics.MetricLogger(tmp_path / "again.jsonl") as again:
        metrics.replay(tmp_path / "deep/log.jsonl", again)
    assert metrics.summary(tmp_path / "again.jsonl", by="layer") == metrics.summary(log._file.name, by="layer")


@pytest.mark.parametrize("make", [lambda **k: metrics.MetricLogger("unused", **k), metrics.WandbLogger])
def test_settings_of_every_logger_are_checked_before_anything_is_opened(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^metrics \['speed'\] are not known; there are 'density' and 'output_error'$"
    ):
        make(metrics=("speed",))
    with pytest.raises(ValueError, match=r"^sampling is 2; expected a share in \[0, 1\]$"):
        make(sampling=2)
    assert not list(tmp_path.iterdir())


def test_a_share_of_the_calls_is_logged(tmp_path):
    with metrics.MetricLogger(tmp_path / "log.jsonl", ("density",), sampling=0.3) as log:
        assert 200 < sum(log.wants("density") for _ in range(1000)) < 400
        assert not any(log.wants("output_error") for _ in range(100))


def test_tensorboard_shows_a_curve_to_each_metric_stage_and_layer(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard", reason="tensorboard is not installed; pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with metrics.TensorBoardLogger(tmp_path / "run", metrics=("density",)) as log:
        assert log.wants("density") and not log.wants("output_error")
        log_to(log)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert {tag: [point.value for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == CURVES
    assert [point.step for point in events.Scalars("density/generation/layer_0")] == [0, 1]


def test_weights_and_biases_gets_the_same_curves(monkeypatch):
    runs = []

    class Run:
        def __init__(self, options):
            self.options, self.logged, self.finished = options, [], False

        def log(self, values):
            self.logged.append(values)

        def finish(self):
            self.finished = True

    def init(**options):
        runs.append(Run(options))
        return runs[-1]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with metrics.WandbLogger(project="reticle", mode="offline") as log:
        log_to(log)
    (run,) = runs
    assert run.options == {"project": "reticle", "mode": "offline"} and run.finished
    assert run.logged == [{tag: value} for tag, values in CURVES.items() for value in values]


def test_writers_that_are_not_installed_are_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"WandbLogger needs it: pip install wandb$"):
        metrics.WandbLogger()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"TensorBoardLogger needs torch and tensorboard: pip install tensorboard$"):
        metrics.TensorBoardLogger(tmp_path)
