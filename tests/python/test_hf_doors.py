"""Careless use of attached models: each case gets the right result, or an error that names the unsupported option."""

import copy
import threading

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
hf = pytest.importorskip("reticle.hf")

from reticle.maskers import LocalConfig  # noqa: E402

SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
QUEST = {"maskers": [{"type": "quest_top_k", "heavy_size": 8, "page_size": 4, "min_pages": 1}]}
SNAP = {"maskers": [{"type": "snap_kv", "token_capacity": 12, "approximation_window": 4, "kernel_size": 3}]}
WINDOW = {"maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 8}]}


def make(name="Llama", **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **options})
    return getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def model():
    return make()


def drawn(*lengths):
    random = torch.Generator().manual_seed(1)
    found = [torch.randint(3, 97, (1, length), generator=random) for length in lengths]
    return found[0] if len(found) == 1 else found


def test_threads_generate_each_as_alone(model):
    prompts = drawn(30, 37, 44, 51)
    options = {"max_new_tokens": 8, "do_sample": False}
    for pattern in (WINDOW, SNAP):
        with hf.attach(model, generation=pattern):
            alone = [model.generate(ids, **options) for ids in prompts]
            together = [None] * len(prompts)

            def run(i, ids, together=together):
                together[i] = model.generate(ids, **options)

            threads = [threading.Thread(target=run, args=pair) for pair in enumerate(prompts)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("pattern", [WINDOW, QUEST])
def test_patterns_choose_within_packed_documents(model, pattern):
    parts = drawn(20, 13, 7)
    packed, lengths = torch.cat(parts, 1), torch.tensor([0, 20, 33, 40], dtype=torch.int32)
    positions = torch.cat([torch.arange(part.shape[1]) for part in parts])[None]
    with hf.attach(model, prefill=pattern) as attached:
        alone = torch.cat([model(part, use_cache=False).logits for part in parts], 1)
        found = model(packed, position_ids=positions, use_cache=False).logits
        density = attached.prefill.density
        told = model(
            packed, position_ids=positions, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths, use_cache=False
        ).logits
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(told, alone, atol=1e-4, rtol=1e-4)
    assert density < 1


@torch.no_grad()
@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("pattern", [WINDOW, QUEST])
def test_padding_told_by_a_mask_of_four_dimensions_is_padding(model, pattern, additive):
    ids = drawn(45)
    padded = torch.cat([torch.zeros(1, 10, dtype=torch.long), ids], 1)
    at = torch.arange(55)
    mask = ((at[:, None] >= at) & (at >= 10))[None, None]
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -1e9)
    positions = (at - 10).clamp(min=0)[None]
    with hf.attach(model, prefill=pattern):
        alone = model(ids).logits
        found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 10:]
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_masks_of_four_dimensions_that_are_no_causal_masks_are_refused_by_value(model):
    ids = drawn(20)
    with hf.attach(model, prefill=WINDOW):
        with pytest.raises(NotImplementedError, match="numbers above -10000"):
            model(ids, attention_mask=torch.full((1, 1, 20, 20), -5.0))
        with pytest.raises(NotImplementedError, match=r"is of torch\.int64; expected booleans, or floats"):
            model(ids, attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.long))


@torch.no_grad()
def test_keys_that_are_edited_in_place_are_read_again(model):
    ids = drawn(45)
    found = []
    for fresh in (False, True):
        with hf.attach(model, generation=QUEST):
            cache = hf.SparseCache(config=model.config)
            model(ids, past_key_values=cache)
            model(ids[:, :1], past_key_values=cache)
            for layer in cache.layers:
                layer.keys[:, :, 20:24] *= 3
            if fresh:
                theirs = transformers.DynamicCache(config=model.config)
                for index, layer in enumerate(cache.layers):
                    theirs.update(layer.keys.clone(), layer.values.clone(), index)
                cache = theirs
            found.append(model(ids[:, 1:2], past_key_values=cache).logits)
    assert torch.equal(*found)


def test_attention_weights_are_refused_however_they_are_asked_for(model):
    asking = copy.deepcopy(model)
    asking.config.output_attentions = True
    for attached_model, options in ((asking, {}), (model, {"output_attentions": True})):
        with hf.attach(attached_model), pytest.raises(NotImplementedError, match="output_attentions"):
            attached_model(drawn(9), **options)


def test_generate_takes_its_words_as_the_model_does():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=97,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_mel_bins=8,
        max_source_positions=40,
        max_target_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    features = torch.randn(1, 8, 80)
    expected = model.generate(input_features=features, max_new_tokens=5)
    with hf.attach(model):
        assert torch.equal(model.generate(input_features=features, max_new_tokens=5), expected)
        assert torch.equal(model.generate(features, max_new_tokens=5), expected)


def test_layers_that_call_attention_twice_keep_two_states():
    model, ids = make("DiffLlama"), drawn(45)
    options = {"max_new_tokens": 8, "do_sample": False}
    with hf.attach(model, generation=SNAP):
        whole = model.generate(ids, **options)
        assert torch.equal(model.generate(ids, prefill_chunk_size=16, **options), whole)
    with (
        hf.attach(model, generation=SNAP, evict=True),
        pytest.raises(NotImplementedError, match="calls its attention twice"),
    ):
        model.generate(ids, **options)


def test_caches_of_latents_are_not_evicted_from():
    latent = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    model = make("DeepseekV3", **latent, **experts, moe_intermediate_size=32, num_key_value_heads=4)
    with hf.attach(model, generation=WINDOW, evict=True), pytest.raises(NotImplementedError, match="latents"):
        model.generate(drawn(45), max_new_tokens=4, do_sample=False)


def test_layers_that_share_a_module_take_no_patterns():
    options = {"mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4, "num_key_value_heads": 4}
    model = make(
        "Zamba2", layers_block_type=["mamba", "hybrid"] * 2, hybrid_layer_ids=[1, 3], num_hidden_layers=4, **options
    )
    with pytest.raises(ValueError, match="share one attention module"):
        hf.attach(model, generation=SNAP)
    with torch.no_grad():
        expected = model(drawn(20)).logits
        with hf.attach(model):
            torch.testing.assert_close(model(drawn(20)).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_prompt_that_an_attachment_has_not_seen_is_said(model):
    ids, cache = drawn(45), hf.SparseCache(config=model.config)
    with hf.attach(model, generation=SNAP):
        model(ids, past_key_values=cache)
    with hf.attach(model, generation=SNAP), pytest.raises(ValueError, match="has seen none of this cache's sequence"):
        model(ids[:, :1], past_key_values=cache)


def test_a_copy_of_an_attached_model_has_its_own_attention(model):
    ids = drawn(20)
    expected = model(ids).logits
    with hf.attach(model, prefill=WINDOW):
        twin = copy.deepcopy(model)
        assert twin.config._attn_implementation == "eager" and torch.equal(twin(ids).logits, expected)
        assert not torch.equal(model(ids).logits, expected), "still attached"
        with pytest.raises(TypeError, match="copy the model, or detach it first"):
            copy.deepcopy(model.model)
    assert torch.equal(model(ids).logits, expected)
    with hf.attach(twin, prefill=WINDOW):
        pass


def test_gradients_and_evicted_caches_are_told_apart_and_the_cache_stays(model):
    ids, cache = drawn(45), hf.SparseCache(config=model.config, evict=True)
    with hf.attach(model, generation=WINDOW, evict=True):
        with torch.no_grad():
            model(ids, past_key_values=cache)
        with pytest.raises(NotImplementedError, match=r"under torch\.no_grad"):
            model(ids[:, :1], past_key_values=cache)


def test_second_derivatives_are_refused():
    x = torch.randn(1, 2, 9, 16, requires_grad=True)
    import reticle

    (first,) = torch.autograd.grad(reticle.attention(x, x, x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(first.sum(), x)


def test_wrong_arguments_are_refused_by_name(model):
    with hf.attach(model, generation=LocalConfig(window_size=3)):
        pass
    for pattern in (3, True, [3], transformers.LlamaConfig):
        with pytest.raises(TypeError, match=r"a pattern is .* expected a SparseAttention"):
            hf.attach(model, generation=pattern)
    for wrong in (None, "gpt2", torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match="expected a model of transformers"):
            hf.attach(wrong)
    for word, options in (
        ("metrics is 3", {"metrics": 3}),
        ("keep_masks is 'x'", {"keep_masks": "x"}),
        ("evict is 3", {"evict": 3}),
    ):
        with pytest.raises(TypeError, match=word):
            hf.attach(model, **options)
    for capacity in (-1, 1.5, "a", True):
        with pytest.raises(ValueError, match="capacity is"):
            hf.SparseCache(capacity=capacity)
    with pytest.raises(TypeError, match="evict is 3"):
        hf.SparseCache(evict=3)
    assert model.config._attn_implementation == "eager"
