"""sparse-attention-hub's plots."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hub = pytest.importorskip("reticle.hub")
pytest.importorskip("matplotlib").use("Agg")


def test_pictures_show_what_is_given_and_their_names_follow_from_it(tmp_path):
    import matplotlib.image
    from reticle.hub.plotting import Granularity, PlotGenerator
    from reticle.hub.plotting.granularity import Granularity as Same

    assert Granularity is Same is hub.Granularity and str(Granularity.PER_HEAD) == "per_head"
    plots = PlotGenerator(str(tmp_path / "first"))
    matrix = torch.rand(8, 8, requires_grad=True)
    paths = [
        plots.generate_plot(Granularity.PER_HEAD, {"attention_matrix": matrix}),
        plots.generate_plot(Granularity.PER_HEAD, {"attention_matrix": np.eye(8)}),
        plots.generate_plot(granularity=Granularity.PER_TOKEN, data={"weights": [0.1, 0.5, 0.4]}),
        plots.generate_plot(Granularity.PER_TOKEN, {"weights": [0.5, 0.1, 0.4]}),
        plots.generate_plot(Granularity.PER_LAYER, {"density": range(4)}),
        plots.generate_comparison_plot({"dense": [1, 1], "sparse": torch.tensor([0.5, 0.25])}, Granularity.PER_LAYER),
    ]
    pictures = [matplotlib.image.imread(path) for path in paths]
    assert len(set(paths)) == 6 and all(Path(path).parent == tmp_path / "first" for path in paths)
    assert (pictures[0] != pictures[1]).any() and (pictures[2] != pictures[3]).any()
    assert plots.generate_plot(Granularity.PER_HEAD, {"attention_matrix": np.eye(8)}) == paths[1]
    plots.set_storage_path(tmp_path / "second")
    assert Path(plots.generate_plot(Granularity.PER_TOKEN, {"a": [1]})).parent == tmp_path / "second"


@pytest.mark.parametrize(
    ("granularity", "data", "message"),
    [
        ("per_token", {"a": [1]}, "Unsupported granularity"),
        (hub.Granularity.PER_TOKEN, None, "expected {name: numbers}"),
        (hub.Granularity.PER_HEAD, {"weights": [[1]]}, "attention_matrix required"),
        (hub.Granularity.PER_HEAD, {"attention_matrix": [1, 2]}, r"2 dimensions, given shape \(2,\)"),
        (hub.Granularity.PER_LAYER, {"density": "high"}, "density: expected numbers"),
        (hub.Granularity.PER_LAYER, {"density": []}, "density: expected numbers"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_draws_nothing(tmp_path, granularity, data, message):
    with pytest.raises(ValueError, match=message):
        hub.PlotGenerator(tmp_path).generate_plot(granularity, data)
    assert not list(tmp_path.iterdir())


def test_metadata_is_a_dict_that_maskers_keep_their_state_in():
    from reticle.hub.sparse_attention.metadata import SparseAttentionMetadata

    config = hub.ResearchAttentionConfig(masker_configs=[hub.SinkMaskerConfig(sink_size=4)])
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 40, 8)
    output, _ = hub.ResearchAttention.create_from_config(config).custom_attention(
        None, q, k, k, None, 1.0, sparse_meta_data=SparseAttentionMetadata(), layer_idx=0
    )
    assert output.shape == (1, 1, 2, 8)
    assert hub.ChannelConfig() == hub.ChannelConfig()
