"""Behaviour beyond numbers that sparse-attention-hub's users rely on: interfaces, attributes, the meaning of masks."""

import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
hub = pytest.importorskip("reticle.hub")


def tensors(queries=4, keys=16, heads=2, dim=8):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(1, heads, n, dim, generator=generator) for n in (queries, keys, keys))


def add(masker, mask, previous=None, **kwargs):
    q, k, v = tensors()
    start = hub.Mask.create_empty_mask((1, 2, 4, 16), device="cpu") if previous is None else previous
    return masker.add_mask(k, q, v, mask, 1.0, 0.0, {}, start, layer_idx=0, **kwargs)


QUEST = lambda: hub.QuestTopKMasker(hub.QuestTopKMaskerConfig(heavy_size=4, page_size=2, label_bits=16))
SOCKET = lambda: hub.SocketMasker(hub.SocketMaskerConfig(heavy_size=4, K=4, L=2))
ORACLE = lambda: hub.OracleTopK(hub.OracleTopKConfig(heavy_size=4))


@pytest.mark.parametrize("masker", [QUEST, SOCKET, ORACLE])
@pytest.mark.parametrize("forbidding", [-1e4, -1e9, -1e30, torch.finfo(torch.float32).min, float("-inf")])
def test_keys_that_a_mask_forbids_are_not_chosen_however_it_says_so(masker, forbidding):
    mask = torch.zeros(1, 1, 4, 16)
    mask[..., 8:] = forbidding
    chosen = add(masker(), mask).get_dense_mask()
    assert chosen[..., 8:].sum() == 0 and chosen[..., :8].sum() > 0


def test_bool_masks_are_read_as_each_masker_reads_them_or_refused():
    mask = torch.zeros(1, 1, 4, 16, dtype=torch.bool)
    mask[..., 8:] = True
    for masker in (QUEST(), SOCKET()):  # both read True as forbidden
        assert add(masker, mask).get_dense_mask()[..., 8:].sum() == 0
    with pytest.raises(ValueError, match=r"is torch.bool; expected floats"):
        add(ORACLE(), mask)
    config = hub.ResearchAttentionConfig(masker_configs=[hub.SinkMaskerConfig(2), hub.OracleTopKConfig(4)])
    with pytest.raises(ValueError, match=r"is torch.bool; expected floats"):
        hub.ResearchAttention.create_from_config(config).custom_attention(None, *tensors(), mask, 1.0, 0.0, {})
    sampler = hub.RandomSamplingMasker(hub.RandomSamplingMaskerConfig(sampling_rate=0.5))
    assert add(sampler, torch.ones(2, 16, dtype=torch.bool)).get_density() > 0


def test_maskers_that_keep_a_state_or_go_by_layer_ask_for_both(tmp_path):
    q, k, v = tensors()
    empty = hub.Mask.create_empty_mask((1, 2, 4, 16), device="cpu")
    pq = hub.PQCache(
        hub.PQCacheConfig(heavy_size=4, pq_group_factor=2, pq_bits=2, kmeans_iter=2, init_offset=0, metric="euclidean")
    )
    with pytest.raises(ValueError, match="sparse_meta_data cannot be None"):
        pq.add_mask(k, q, v, None, 1.0, 0.0, None, empty, layer_idx=0)
    with pytest.raises(ValueError, match="layer_idx must be provided in kwargs"):
        pq.add_mask(k, q, v, None, 1.0, 0.0, {}, empty)


def test_attention_takes_sparse_meta_data_by_position_as_well():
    config = hub.ResearchAttentionConfig(masker_configs=[hub.SinkMaskerConfig(2)])
    attention = hub.ResearchAttention.create_from_config(config)
    by_position, _ = attention.custom_attention(None, *tensors(), None, 1.0, 0.0, {})
    by_name, _ = attention.custom_attention(None, *tensors(), None, 1.0, 0.0, sparse_meta_data={})
    assert torch.equal(by_position, by_name)
    with pytest.raises(ValueError, match="sparse_meta_data must be provided"):
        attention.custom_attention(None, *tensors(), None, 1.0)


def test_masks_show_the_form_that_they_were_made_in():
    dense = hub.Mask.create_mask_from_dense_mask((2, 3), torch.tensor([[1.0, 0, 0.5], [0, 0, 0]]))
    assert dense.from_dense_mask and not dense.from_index
    assert torch.equal(dense.mask, dense.get_dense_mask()) and dense.indices is None
    index = hub.Mask.create_from_row_wise_idx(
        (2, 5), torch.tensor([[0, 4], [1, -1]]), torch.ones(2, 2), mask_type="index"
    )
    assert index.from_index and index.indices.tolist() == [0, 4, 6] and index.ptr.tolist() == [0, 2, 3]
    assert index.mask is None and index.data.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="type must be 'index' or 'dense'"):
        hub.Mask.create_from_row_wise_idx((2, 5), torch.tensor([[0], [1]]), torch.ones(2, 1), mask_type="rows")
    full = hub.Mask((2, 3), torch.float32, torch.device("cpu"), is_full=True)
    x = torch.randn(2, 3)
    assert full.apply_mask(x) is x and full.apply_inv_mask(x) is x and full.mask is None
    assert "is_full=True" in repr(full)
    assert dense.merge_mask_sparse(dense).from_index and dense.merge_mask_dense(dense).from_dense_mask
    with pytest.raises(TypeError, match="masks come after the device"):
        hub.Mask((2, 3), torch.float32, x)


def test_a_result_has_the_dtype_of_the_mask_that_it_adds_to():
    start = hub.Mask.create_empty_mask((1, 2, 4, 16), torch.float64, "cpu")
    assert add(hub.SinkMasker(hub.SinkMaskerConfig(2)), None, start).get_dense_mask().dtype == torch.float64


def test_the_logger_counts_its_records(tmp_path):
    logger = hub.MicroMetricLogger()
    try:
        logger.configure_logging(tmp_path, ["research_attention_density"], max_records=2)
        for _ in range(3):
            logger.log("research_attention_density", 0.5)
        assert (logger.get_max_records(), logger.get_total_records_logged()) == (2, 2)
        assert logger.is_max_records_reached() and logger.get_records_remaining() == 0
        assert logger.get_sampling_factor() == 1.0
    finally:
        logger.configure_logging(tmp_path, None)


def test_other_ways_of_sampling_are_refused_by_name():
    sizes = {"base_rate_sampling": 0.1, "epsilon": 0.1, "delta": 0.1, "init_offset": 0, "local_offset": 0}
    assert "sampling_mode" not in hub.AdaptiveSamplingMaskerConfig(**sizes, sampling_mode="uniform").to_dict()
    for words, message in (
        ({"sampling_mode": "gumbel"}, "gumbel"),
        ({"sampling_mode": "sorted"}, "must be one of"),
        ({"temperature": 0.5}, "temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            hub.AdaptiveSamplingMaskerConfig(**sizes, **words)


def test_adapters_interfaces_and_attributes():
    transformers = pytest.importorskip("transformers")
    from reticle.hub.adapters import ModelAdapter, ModelHubAdapterInterface, SparseAttentionAdapterInterface
    from reticle.research import evaluate

    for interface in (ModelAdapter, ModelHubAdapterInterface, SparseAttentionAdapterInterface):
        with pytest.raises(TypeError):
            interface()
    folder = Path(os.environ["RETICLE_SOURCE_DIR"]) / "examples/data/byte-llama-3m-retrieval"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = hub.ResearchAttentionConfig(masker_configs=[hub.SinkMaskerConfig(4), hub.LocalMaskerConfig(8)])
    adapter = hub.ModelAdapterHF(
        str(folder), config, {"dtype": torch.float32}, model=model, tokenizer=evaluate.ByteTokenizer()
    )
    assert isinstance(adapter, ModelAdapter) and adapter.torch_dtype == torch.float32
    assert adapter.model_kwargs == {"dtype": torch.float32} and adapter.tokenizer_kwargs == {}
    ids = torch.arange(64)[None]
    dense = adapter.model(ids).logits
    with adapter.enable_sparse_mode():
        sparse = adapter.model(ids, sparse_meta_data={}).logits
        with adapter.enable_sparse_mode():
            assert torch.equal(adapter.model(ids).logits, sparse)
        assert torch.equal(adapter.model(ids).logits, sparse)
    assert torch.equal(adapter.model(ids).logits, dense) and not torch.allclose(sparse, dense)
    attend = adapter.get_custom_attention_function(adapter.sparse_attention)
    with pytest.raises(ValueError, match=r"provided while calling model\.forward"):
        attend(None, *tensors(), None)
    assert attend(None, *tensors(), None, sparse_meta_data={})[0].shape == (1, 4, 2, 8)
