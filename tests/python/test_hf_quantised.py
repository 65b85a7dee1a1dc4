"""Caches that hold keys and values in 8 or 4 bits, through the doors of transformers."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
hf = pytest.importorskip("reticle.hf")

from small_models import small_llama  # noqa: E402

PATTERNS = {
    "dense": None,
    "sinks, window and top-k": {
        "maskers": [
            {"type": "sink", "sink_size": 4},
            {"type": "local", "window_size": 16},
            {"type": "oracle_top_k", "heavy_size": 40},
        ]
    },
    "quest": {"maskers": [{"type": "quest_top_k", "heavy_size": 64, "page_size": 8}]},
    "snap_kv": {"maskers": [{"type": "snap_kv", "token_capacity": 60, "approximation_window": 8}]},
}
#: Mean differences in standard deviations of the logits; patterns that choose by the keys may choose others.
TOLERANCE = {8: 0.1, 4: 0.5}


@pytest.fixture(scope="module")
def model():
    return small_llama()


IDS = torch.randint(3, 60, (2, 180), generator=torch.Generator().manual_seed(1))
PADDED = torch.ones_like(IDS)
PADDED[1, :37] = 0


def logits(model, pattern, cache, ids=IDS, mask=PADDED, prompt=150):
    """Logits of the tokens after the prompt, given one by one."""
    found = []
    with torch.no_grad(), hf.attach(model, generation=pattern):
        model(ids[:, :prompt], attention_mask=mask[:, :prompt], past_key_values=cache)
        for end in range(prompt + 1, ids.shape[1] + 1):
            found.append(
                model(ids[:, end - 1 : end], attention_mask=mask[:, :end], past_key_values=cache).logits[:, -1]
            )
    return torch.stack(found)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("bits", [8, 4])
def test_logits_differ_by_the_rounding_of_the_keys_and_values(model, pattern, bits):
    plain = logits(model, pattern, hf.SparseCache(config=model.config))
    found = logits(model, pattern, hf.SparseCache(config=model.config, bits=bits, recent=16))
    spread = plain.std()
    assert 0 < (found - plain).abs().mean() / spread < TOLERANCE[bits]


def test_tokens_that_are_all_recent_are_read_as_they_were_given(model):
    plain = logits(model, None, hf.SparseCache(config=model.config))
    found = logits(model, None, hf.SparseCache(config=model.config, bits=4, recent=512))
    assert torch.allclose(found, plain, atol=1e-5)


def test_a_prompt_is_prefilled_with_its_keys_as_they_are(model):
    with torch.no_grad(), hf.attach(model):
        plain = model(IDS, past_key_values=hf.SparseCache(config=model.config)).logits
        found = model(IDS, past_key_values=hf.SparseCache(config=model.config, bits=4, recent=0)).logits
    assert torch.allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize("recent", [0, 3, 16, 200])
def test_cropping_and_copying_give_the_logits_of_a_cache_that_never_saw_what_was_dropped(model, recent):
    def cache():
        return hf.SparseCache(config=model.config, bits=8, recent=recent)

    with torch.no_grad(), hf.attach(model):
        straight, cropped = cache(), cache()
        model(IDS[:1, :60], past_key_values=straight)
        model(IDS[:1, :60], past_key_values=cropped)
        for token in range(5):
            model(IDS[:1, 100 + token : 101 + token], past_key_values=cropped)
        fork = copy.deepcopy(cropped)
        cropped.crop(-5)
        for token in range(60, 80):
            expected = model(IDS[:1, token : token + 1], past_key_values=straight).logits
            found = model(IDS[:1, token : token + 1], past_key_values=cropped).logits
            # Tokens that were dropped had taken the place of recent ones.
            assert torch.allclose(found, expected, atol=1e-5 if recent in (0, 200) else 0.05)
        assert fork.get_seq_length() == 65
        model(IDS[:1, :1], past_key_values=fork)


def test_beams_are_reordered_with_their_codes(model):
    options = {"max_new_tokens": 12, "num_beams": 3, "do_sample": False, "attention_mask": PADDED}
    with torch.no_grad(), hf.attach(model):
        plain = model.generate(IDS, past_key_values=hf.SparseCache(config=model.config), **options)
        cache = hf.SparseCache(config=model.config, bits=8, recent=512)
        assert torch.equal(model.generate(IDS, past_key_values=cache, **options), plain)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_cache_takes_the_bytes_of_its_bits(model, bits):
    with torch.no_grad(), hf.attach(model):
        caches = [
            hf.SparseCache(config=model.config, capacity=512),
            hf.SparseCache(config=model.config, capacity=512, bits=bits, recent=0),
        ]
        for cache in caches:
            model(IDS, past_key_values=cache)
    # Of float32 heads of 16 channels: a group of 32 codes, half of them padding, a multiplier and a scale.
    assert caches[1].nbytes / caches[0].nbytes == pytest.approx({8: 37, 4: 21}[bits] / 64)


def test_what_a_quantised_cache_cannot_do_is_refused_by_name(model):
    for bits in (2, 16, "8", True):
        with pytest.raises(ValueError, match="expected 8, 4 or None"):
            hf.SparseCache(config=model.config, bits=bits)
    for recent in (-1, 1.5, True):
        with pytest.raises(ValueError, match="recent"):
            hf.SparseCache(config=model.config, bits=8, recent=recent)
    with pytest.raises(ValueError, match="without bits"):
        hf.SparseCache(config=model.config, recent=5)
    with pytest.raises(ValueError, match="evict=True"):
        hf.SparseCache(config=model.config, bits=8, evict=True)
    with hf.attach(model), pytest.raises(NotImplementedError, match="gradients"):
        model(IDS, past_key_values=hf.SparseCache(config=model.config, bits=8))
    with torch.no_grad(), pytest.raises(TypeError, match="attach the model"):
        model(IDS, past_key_values=hf.SparseCache(config=model.config, bits=8))
