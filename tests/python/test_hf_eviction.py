"""Caches that drop keys that a generation pattern will never attend to again: the same logits, bit for bit, in less
memory."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
hf = pytest.importorskip("reticle.hf")

import reticle  # noqa: E402
from reticle.maskers import QuestTopKConfig, SinkConfig  # noqa: E402
from reticle.research.metrics import MetricLogger  # noqa: E402
from small_models import small_llama  # noqa: E402

PROMPT, TOKENS = 200, 150
PATTERNS = {
    "snap_kv": [{"type": "snap_kv", "token_capacity": 40, "approximation_window": 8}],
    "snap_kv without a window": [
        {"type": "snap_kv", "token_capacity": 40, "approximation_window": 8, "local_window": 0}
    ],
    "ada_snap_kv": [{"type": "ada_snap_kv", "token_capacity": 40, "approximation_window": 8, "local_window": 8}],
    "pyramid_kv": [{"type": "pyramid_kv", "num_layers": 2, "token_capacity": 40, "approximation_window": 8}],
    "tova": [{"type": "tova", "token_capacity": 40}],
    "h2o": [{"type": "h2o", "heavy_size": 20, "recent_size": 20}],
    "sinks and window": [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 36}],
    "a window of a fraction": [{"type": "local", "window_size": 0.2}],
    "dilated": [{"type": "local", "window_size": 12, "dilation": 3}],
    "a_shape": [{"type": "a_shape", "n_init": 4, "n_local": 36}],
    "by layer": [
        {"type": "tova", "token_capacity": 30, "layers": [1]},
        {"type": "local", "window_size": 30, "layers": [0]},
    ],
    "some heads": [
        {"type": "local", "window_size": 30, "heads": ["0-3"]},
        {"type": "sink", "sink_size": 9, "heads": ["4-7"]},
    ],
}


@pytest.fixture(scope="module")
def model():
    return small_llama()


IDS = torch.randint(3, 60, (2, PROMPT), generator=torch.Generator().manual_seed(1)) if torch else None


def run(model, pattern, evict, ids=IDS, **options):
    """(logits, tokens, bytes of the cache) after a generation."""
    mask = torch.ones_like(ids)
    if len(ids) > 1:
        mask[1, :37] = 0
    cache = hf.SparseCache(config=model.config, evict=evict)
    with hf.attach(model, generation={"maskers": pattern}, evict=evict):
        found = model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
    return torch.stack(found.logits), found.sequences, cache.nbytes


@pytest.mark.parametrize("name", list(PATTERNS))
def test_output_is_to_the_bit_that_of_all_keys_under_the_mask(model, name):
    logits, tokens, all_bytes = run(model, PATTERNS[name], evict=False)
    evicted, same_tokens, bytes_left = run(model, PATTERNS[name], evict=True)
    assert torch.equal(evicted, logits) and torch.equal(same_tokens, tokens)
    assert bytes_left < all_bytes / (1.5 if "snap" in name or name in ("pyramid_kv", "some heads") else 2.5)


@pytest.mark.parametrize(("heads", "kv_heads", "dtype"), [(8, 8, "float32"), (16, 1, "float32"), (16, 1, "bfloat16")])
def test_groups_of_heads_and_dtypes_evict_alike(heads, kv_heads, dtype):
    model = small_llama(heads, kv_heads, getattr(torch, dtype))
    for pattern in (PATTERNS["snap_kv"], PATTERNS["tova"]):
        assert torch.equal(run(model, pattern, evict=True)[0], run(model, pattern, evict=False)[0])


def test_each_kv_head_holds_its_own_keys(model):
    pattern = [
        {"type": "local", "window_size": 20, "heads": ["0-3"]},
        {"type": "sink", "sink_size": 120, "heads": ["4-7"]},
    ]
    cache = hf.SparseCache(config=model.config, evict=True)
    with hf.attach(model, generation={"maskers": pattern}, evict=True), torch.no_grad():
        model(IDS[:1], past_key_values=cache)
    (row,) = cache.layers[0].rows
    assert [row.positions[b:e].tolist() for b, e in zip(row.begin, row.end, strict=True)] == [
        list(range(PROMPT - 19, PROMPT)),
        list(range(120)),
    ]


@pytest.mark.parametrize("name", ["snap_kv", "tova", "h2o", "sinks and window"])
def test_speculation_crops_and_gives_the_tokens_of_plain_decoding(model, name):
    ids = IDS[:1].repeat(1, 1)
    ids[0, 100:] = ids[0, :100]  # repeated tokens for prompt lookup decoding to find
    plain = run(model, PATTERNS[name], evict=False, ids=ids)[1]
    assert torch.equal(run(model, PATTERNS[name], evict=True, ids=ids, prompt_lookup_num_tokens=5)[1], plain)


@pytest.mark.parametrize("name", ["ada_snap_kv", "h2o"])
def test_beams_are_reordered_with_what_is_left_of_them(model, name):
    found = [run(model, PATTERNS[name], evict=evict, num_beams=3)[1] for evict in (False, True)]
    assert torch.equal(*found)


def test_prompts_in_chunks_are_evicted_when_they_are_whole(model):
    options = {"ids": IDS[:1], "prefill_chunk_size": 64}
    found = [run(model, PATTERNS["sinks and window"], evict=evict, **options)[0] for evict in (False, True)]
    assert torch.equal(*found)


@torch.no_grad()
def test_copies_of_a_prefix_go_on_by_themselves(model):
    pattern = {"maskers": PATTERNS["h2o"]}
    found = []
    for evict in (False, True):
        cache = hf.SparseCache(config=model.config, evict=evict)
        with hf.attach(model, generation=pattern):
            model(IDS[:1], past_key_values=cache)
            other = copy.deepcopy(cache)
            steps = [model(IDS[1:, i : i + 1], past_key_values=(cache, other)[i % 2]).logits for i in range(8)]
        found.append(torch.cat(steps))
    assert torch.equal(*found)


@torch.no_grad()
def test_a_crop_to_where_keys_are_gone_is_refused_and_changes_nothing(model):
    cache = hf.SparseCache(config=model.config, evict=True)
    with hf.attach(model, generation={"maskers": PATTERNS["sinks and window"]}, evict=True):
        model(IDS[:1], past_key_values=cache)
        model(IDS[1:, :1], past_key_values=cache)
        before = cache.layers[0].rows[0].end.copy()
        with pytest.raises(ValueError, match=r"crop to 150 tokens .* at least 200 tokens have to stay"):
            cache.crop(-(PROMPT + 1 - 150))
        assert cache.get_seq_length() == PROMPT + 1 and (cache.layers[0].rows[0].end == before).all()
        cache.crop(-1)
        assert torch.isfinite(model(IDS[1:, 1:2], past_key_values=cache).logits).all()
        cache.reset()
        assert cache.get_seq_length() == 0
        model(IDS[:1, :50], past_key_values=cache)
        assert cache.get_seq_length() == 50


@torch.no_grad()
def test_a_further_prompt_is_generated_or_refused(model):
    found = []
    for evict in (False, True):
        cache = hf.SparseCache(config=model.config, evict=evict)
        with hf.attach(model, generation={"maskers": PATTERNS["snap_kv"]}) as attached:
            model(IDS[:1], past_key_values=cache)
            if evict:
                with pytest.raises(
                    NotImplementedError, match=r'a prompt of 9 tokens behind 200 .*stage\("generation"\)'
                ):
                    model(IDS[1:, :9], past_key_values=copy.deepcopy(cache))
            with attached.stage("generation"):
                found.append(model(IDS[1:, :9], past_key_values=cache).logits)
    assert torch.equal(*found)


def test_what_may_come_back_to_any_key_is_refused_when_it_is_attached(model, tmp_path):
    for pattern, message in (
        (None, "expected a generation pattern"),
        ([SinkConfig(sink_size=2), QuestTopKConfig(heavy_size=8)], "eviction: quest_top_k may come back to any key"),
        ([SinkConfig(sink_size=0.1)], "eviction: sink may come back"),
    ):
        with pytest.raises(ValueError, match=message):
            hf.attach(model, generation=pattern, evict=True)
        assert model.config._attn_implementation != "reticle"
    with pytest.raises(ValueError, match="output_error"):
        hf.attach(
            model,
            generation={"maskers": PATTERNS["tova"]},
            evict=True,
            metrics=MetricLogger(tmp_path / "metrics.jsonl"),
        )
    with pytest.raises(ValueError, match="capacity is 9 with evict=True"):
        hf.SparseCache(capacity=9, evict=True)
    cache = hf.SparseCache(config=model.config, evict=True)
    with hf.attach(model, generation=[QuestTopKConfig(heavy_size=8)]), pytest.raises(ValueError, match="quest_top_k"):
        model(IDS, past_key_values=cache)


def test_a_model_of_its_own_attention_refuses_a_cache_that_has_evicted(model):
    cache = hf.SparseCache(config=model.config, evict=True)
    with torch.no_grad():
        with hf.attach(model, generation={"maskers": PATTERNS["tova"]}, evict=True):
            model(IDS[:1], past_key_values=cache)
        with pytest.raises(RuntimeError, match="serves the attached model that filled it"):
            model(IDS[1:, :1], past_key_values=cache)


def test_stored_keys_are_for_maskers_that_forget():
    q, k = torch.randn(1, 2, 1, 16), torch.randn(1, 1, 5, 16)
    stored = (
        torch.tensor([0, 1, 2, 8, 9], dtype=torch.int32).numpy(),
        torch.tensor([0]).numpy(),
        torch.tensor([5]).numpy(),
        10,
    )
    quest = reticle.SparseAttention.from_json('{"maskers": [{"type": "quest_top_k", "heavy_size": 2}]}')
    handler = reticle.InferenceHandler(quest, quest)
    with pytest.raises(ValueError, match="quest_top_k may come back to any key"):
        handler.attend(q, k, k, reticle.InferenceState(), stage="generation", stored=stored)
    dense = reticle.SparseAttention.from_json(
        '{"maskers": [{"type": "sink", "sink_size": 3}, {"type": "local", "window_size": 2}]}'
    )
    handler = reticle.InferenceHandler(dense, dense)
    output, _ = handler.attend(q, k, k, reticle.InferenceState(), stage="generation", stored=stored)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    torch.testing.assert_close(output, wanted)
