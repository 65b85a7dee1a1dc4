"""Models x ways of running them, attached: a covering pattern equals the model's eager attention, and patterns with
state choose as they would for each sequence alone and from the start. Unsupported combinations raise a specific
message."""

import copy

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
hf = pytest.importorskip("reticle.hf")

COVERING = {"maskers": [{"type": "causal"}]}
SMALL = {
    "vocab_size": 60,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.15,
}
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
MODELS = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 12}),
    "gemma3": ("Gemma3Text", {"head_dim": 16, "sliding_window": 12, "sliding_window_pattern": 2}),
    "gpt-oss": ("GptOss", {"head_dim": 16, "sliding_window": 12, "rope_parameters": None, **MOE}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 256}),
    "gpt-neox": ("GPTNeoX", {}),
    "mixtral": ("Mixtral", MOE),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {
            **MLA,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
        },
    ),
    "llama4": (
        "Llama4Text",
        {"head_dim": 16, "attention_chunk_size": 16, "num_experts_per_tok": 1, "num_local_experts": 2},
    ),
    "qwen3_next": ("Qwen3Next", {"head_dim": 16, "num_hidden_layers": 4, "num_experts": 2, "num_experts_per_tok": 1}),
}
STATEFUL = {
    "quest": {"type": "quest_top_k", "heavy_size": 8, "page_size": 4, "min_pages": 1},
    "snap_kv": {"type": "snap_kv", "token_capacity": 10, "approximation_window": 4},
    "magic_pig": {"type": "magic_pig", "lsh_l": 8, "lsh_k": 4},
    "h2o": {"type": "h2o", "heavy_size": 5, "recent_size": 5},
    "moba": {"type": "moba", "block_size": 8, "top_k": 2},
    "hash_attention": {
        "type": "hash_attention_top_k",
        "heavy_size": 8,
        "hat_bits": 32,
        "hat_mlp_layers": 1,
    },
}


@pytest.fixture(scope="module")
def stateful(tmp_path_factory):
    """A config by name; the weights of hash attention have the shape of the small models."""
    random = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(SMALL["num_hidden_layers"]):
        for kind in ("key", "query"):
            weights[f"hat.{layer}.{kind}_matrix.0"] = torch.randn(4, 16, 32, generator=random)
            weights[f"hat.{layer}.{kind}_bias.0"] = torch.zeros(4, 32)
    path = tmp_path_factory.mktemp("weights") / "hash.safetensors"
    pytest.importorskip("safetensors.torch").save_file(weights, path)
    configs = {**STATEFUL, "hash_attention": {**STATEFUL["hash_attention"], "hat_weight_file": str(path)}}
    return lambda name: {"maskers": [configs[name]]}


def make(name):
    architecture, options = MODELS[name]
    if not hasattr(transformers, f"{architecture}Config"):
        pytest.skip(f"this transformers has no {architecture}")
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **options})
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def models():
    made = {}
    return lambda name: made.setdefault(name, make(name))


IDS = torch.randint(3, 60, (2, 24), generator=torch.Generator().manual_seed(1)) if torch else None


def padded(side):
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    padding = slice(0, 7) if side == "left" else slice(-7, None)
    ids[1, padding] = mask[1, padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model, **inputs):
    """The logits of real tokens; those of padding are not compared."""
    found = model(**inputs).logits
    mask = inputs.get("attention_mask")
    return found if mask is None or mask.dim() != 2 else found[mask.bool()[:, -found.shape[1] :]]


def generated(model, **options):
    inputs = {"input_ids": IDS[:1], "attention_mask": torch.ones_like(IDS[:1]), "max_new_tokens": 8, "do_sample": False}
    return model.generate(**{**inputs, **options}).float()


def in_chunks(model):
    cache = transformers.DynamicCache(config=model.config)
    parts = [model(IDS[:, at : at + 8], past_key_values=cache).logits for at in (0, 8, 16)]
    return torch.cat(parts, 1)


def cropped(model):
    cache = transformers.DynamicCache(config=model.config)
    model(IDS, past_key_values=cache)
    model(IDS[:, :3], past_key_values=cache)
    cache.crop(-3)
    return model(IDS[:, 5:6], past_key_values=cache).logits


def two_sequences(model):
    caches = [transformers.DynamicCache(config=model.config) for _ in range(2)]
    for row, cache in enumerate(caches):
        model(IDS[row : row + 1], past_key_values=cache)
    found = [model(IDS[:1, step : step + 1], past_key_values=caches[step % 2]).logits for step in range(4)]
    return torch.cat(found, 1)


def second_turn(model):
    cache = transformers.DynamicCache(config=model.config)
    first = model.generate(IDS[:1], past_key_values=cache, max_new_tokens=4, do_sample=False)
    turn = torch.cat([first, IDS[1:, :9]], 1)
    return model.generate(turn, past_key_values=cache, max_new_tokens=4, do_sample=False).float()


def packed(model):
    positions = torch.cat([torch.arange(10), torch.arange(14)])[None].expand(2, -1)
    return model(IDS, position_ids=positions, use_cache=False).logits


def with_mask_of_four_dimensions(model):
    allowed = torch.ones(24, 24, dtype=torch.bool).tril()
    allowed[12:, 2:9] = False
    bias = torch.zeros(1, 1, 24, 24).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return model(IDS, attention_mask=bias, use_cache=False).logits


def assisted(model):
    name = next(
        name
        for name, (architecture, _) in MODELS.items()
        if type(model).__name__.startswith(architecture.removesuffix("Text"))
    )
    return generated(model, assistant_model=make(name), num_assistant_tokens=3)


def static(model):
    return generated(model, cache_implementation="static", disable_compile=True)


WAYS = {
    "plain": lambda model: logits(model, input_ids=IDS),
    "left padding": lambda model: logits(model, **padded("left")),
    "right padding": lambda model: logits(model, **padded("right")),
    "generated": generated,
    "padded and generated": lambda model: generated(model, **padded("left")),
    "chunks": in_chunks,
    "beams": lambda model: generated(model, num_beams=3, num_return_sequences=3),
    "assisted": assisted,
    "lookup": lambda model: generated(model, prompt_lookup_num_tokens=3),
    "packed": packed,
    "4-D mask": with_mask_of_four_dimensions,
    "no cache": lambda model: generated(model, use_cache=False),
    "crop": cropped,
    "two sequences": two_sequences,
    "second turn": second_turn,
    "static": static,
}
#: Combinations that the model's eager attention does not support either, so there is nothing to compare with.
NOT_THE_MODELS = {
    ("qwen3_next", "packed"),
    ("qwen3_next", "4-D mask"),
    ("qwen3_next", "chunks"),
    ("qwen3_next", "crop"),
    ("qwen3_next", "static"),
    ("qwen3_next", "assisted"),
    ("qwen3_next", "lookup"),
    ("qwen3_next", "right padding"),
}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(MODELS))
def test_a_covering_pattern_is_the_models_own_attention(models, name, way):
    if (name, way) in NOT_THE_MODELS:
        pytest.skip("not supported by the model itself")
    model, run = models(name), WAYS[way]
    with torch.no_grad():
        try:
            expected = run(model)
        except Exception as error:
            pytest.skip(f"the model itself: {type(error).__name__}: {str(error)[:80]}")
        with hf.attach(model, prefill=COVERING, generation=COVERING):
            found = run(model)
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < 1e-3


def encoder(name):
    """Models whose attention is not causal, entirely or in part, and a function that runs each."""
    torch.manual_seed(0)
    t, ids = transformers, IDS[:, :20]
    plain = {
        name: value
        for name, value in SMALL.items()
        if name not in ("num_key_value_heads", "bos_token_id", "eos_token_id")
    }
    if name == "bert":
        return t.BertModel(t.BertConfig(**plain)), lambda model, **given: model(ids, **given)[0]
    if name == "modernbert":
        config = t.ModernBertConfig(**plain, local_attention=8, cls_token_id=1, sep_token_id=2)
        return t.ModernBertModel(config), lambda model, **given: model(ids, **given)[0]
    sides = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    if name == "bart":
        sizes = {"vocab_size": 60, "d_model": 64, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.15}
        model = t.BartForConditionalGeneration(t.BartConfig(**sizes, **sides, max_position_embeddings=64))
    elif name == "t5":
        config = t.T5Config(
            vocab_size=60, d_model=64, d_kv=16, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        model = t.T5ForConditionalGeneration(config)
    else:
        sides = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = t.CLIPVisionConfig(**sides, image_size=16, patch_size=4, projection_dim=32)
        text = t.LlamaConfig(**{**SMALL, "bos_token_id": 1, "eos_token_id": 2})
        config = t.LlavaConfig(vision_config=vision, text_config=text, image_token_id=59)
        shown = torch.cat([ids[:, :2], torch.full((2, 16), 59), ids[:, 2:8].clamp(max=50)], 1)
        pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
        return t.LlavaForConditionalGeneration(
            config
        ), lambda model, **_: model(input_ids=shown, pixel_values=pixels).logits
    return model, lambda model, **given: model(input_ids=ids, decoder_input_ids=ids[:, :9], **given).logits


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("name", ["bert", "modernbert", "bart", "t5", "llava"])
def test_what_is_not_causal_attends_as_the_model_does(name, side):
    model, run = encoder(name)
    given = {} if side is None else {"attention_mask": padded(side)["attention_mask"][:, :20]}
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        expected = run(model, **given)
        with hf.attach(model):
            found = run(model, **given)
    if side is not None and name in ("bert", "modernbert"):
        expected, found = (tensor[given["attention_mask"].bool()] for tensor in (expected, found))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-3


def test_patterns_choose_under_masks_of_four_dimensions_or_refuse_them(models):
    model, local = models("llama"), {"maskers": [{"type": "local", "window_size": 3}]}
    causal = torch.ones(24, 24, dtype=torch.bool).tril()
    with torch.no_grad(), hf.attach(model, prefill=local):
        expected = model(IDS, use_cache=False).logits
        found = model(IDS, attention_mask=causal[None, None], use_cache=False).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        causal[:, :8] = True
        with pytest.raises(NotImplementedError, match="lets queries see keys behind them"):
            model(IDS, attention_mask=causal[None, None], use_cache=False)


def test_prefill_patterns_of_attention_that_is_not_causal_are_refused():
    model, run = encoder("bert")
    with (
        torch.no_grad(),
        hf.attach(model.eval(), prefill={"maskers": [{"type": "sink"}]}),
        pytest.raises(
            NotImplementedError, match="its attention is not causal; prefill patterns are for causal attention"
        ),
    ):
        run(model)


#: Combinations that eviction rules refuse, with the message.
REFUSED = {
    ("h2o", "chunks"): "a prompt in parts",
    ("h2o", "second turn"): "a prompt in parts",
}


def recomputed(model, pattern, tokens):
    """The logits of each token of a sequence, recomputed from the start: a dense prompt of 24 tokens, then the
    pattern."""
    with hf.attach(model, generation=pattern):
        cache = hf.SparseCache(config=model.config)
        rows = [model(tokens[:, :24], past_key_values=cache).logits]
        rows += [model(tokens[:, at : at + 1], past_key_values=cache).logits for at in range(24, tokens.shape[1])]
    return torch.cat(rows, 1)


@pytest.mark.parametrize(
    "way", ["plain", "generated", "padded and generated", "chunks", "beams", "assisted", "lookup", "no cache"]
)
@pytest.mark.parametrize("pattern", list(STATEFUL))
def test_what_maskers_keep_follows_however_tokens_come(models, stateful, pattern, way):
    model, config = models("llama"), stateful(pattern)
    with torch.no_grad():
        if (pattern, way) in REFUSED:
            with hf.attach(model, generation=config), pytest.raises(NotImplementedError, match=REFUSED[pattern, way]):
                generated(model, prefill_chunk_size=8)
            return
        alone = generated_by(model, config)
        if way == "plain":
            found = alone
            expected = recomputed(model, config, alone.long())[0, 23:-1].argmax(-1)
            assert torch.equal(found[0, 24:].long(), expected)
            return
        with hf.attach(model, generation=config):
            if way == "chunks":
                assert torch.equal(generated(model, prefill_chunk_size=8), alone)
            elif way == "beams":
                beams = generated(model, num_beams=3, num_return_sequences=3).long()
        if way == "beams":
            for beam in beams:
                score = recomputed(model, config, beam[None])[0, 23:-1].log_softmax(-1)
                assert torch.isfinite(score).all()
            with hf.attach(model, generation=config):
                scored = model.generate(
                    IDS[:1],
                    num_beams=3,
                    max_new_tokens=8,
                    do_sample=False,
                    return_dict_in_generate=True,
                    output_scores=True,
                )
            chosen = scored.sequences
            own = recomputed(model, config, chosen)[0, 23:-1].log_softmax(-1)
            total = own.gather(-1, chosen[0, 24:, None]).sum() / 8
            assert total.item() == pytest.approx(scored.sequences_scores.item(), abs=1e-4)
        elif way == "padded and generated":
            batch = padded("left")
            with hf.attach(model, generation=config):
                both = generated(model, **batch)
            assert torch.equal(both[0], alone[0])
            own = {"input_ids": IDS[1:, 7:], "attention_mask": torch.ones_like(IDS[1:, 7:])}
            assert torch.equal(both[1, 7:], generated_by(model, config, **own)[0])
        elif way in ("assisted", "lookup", "no cache"):
            with hf.attach(model, generation=config):
                assert torch.equal(WAYS[way](model), alone)


def generated_by(model, config, **options):
    with hf.attach(model, generation=config):
        return generated(model, **options)


@pytest.mark.parametrize("pattern", list(STATEFUL))
def test_a_copied_prefix_serves_several_prompts(models, stateful, pattern):
    model, config = models("llama"), stateful(pattern)
    with torch.no_grad(), hf.attach(model, generation=config):
        for cache in (hf.SparseCache(config=model.config), transformers.DynamicCache(config=model.config)):
            model(IDS[:1], past_key_values=cache)
            found = []
            for token in (5, 9, 5):
                copied = copy.deepcopy(cache)
                steps = [model(torch.tensor([[token + step]]), past_key_values=copied).logits for step in range(4)]
                found.append(torch.cat(steps, 1))
            assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])
            expected = recomputed_tokens(model, [5, 6, 7, 8])
            torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def recomputed_tokens(model, tokens):
    cache = hf.SparseCache(config=model.config)
    model(IDS[:1], past_key_values=cache)
    return torch.cat([model(torch.tensor([[token]]), past_key_values=cache).logits for token in tokens], 1)


def test_eviction_refuses_a_crop_into_its_prompt(models):
    model = models("llama")
    with torch.no_grad(), hf.attach(model, generation={"maskers": [STATEFUL["snap_kv"]]}):
        cache = hf.SparseCache(config=model.config)
        model(IDS[:1], past_key_values=cache)
        cache.crop(-6)
        with pytest.raises(
            ValueError, match='masker "snap_kv" cannot follow its sequence: it chose what to keep from a prompt'
        ):
            model(IDS[:1, :1], past_key_values=cache)


def test_gradients_go_through_patterns_and_dense_attention(models):
    model = copy.deepcopy(models("llama"))
    eager = model(IDS, labels=IDS)
    eager.loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    with hf.attach(model, prefill=COVERING):
        model(IDS, labels=IDS).loss.backward()
    for parameter, wanted in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, atol=1e-4, rtol=1e-3)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model.train()
    with hf.attach(model, prefill={"maskers": [{"type": "oracle_top_k", "heavy_size": 5}]}):
        model(IDS, labels=IDS, use_cache=False).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_sink_logits_get_gradients():
    model = make("gpt-oss")
    model(IDS, labels=IDS).loss.backward()
    expected = [layer.self_attn.sinks.grad.clone() for layer in model.model.layers]
    model.zero_grad()
    with hf.attach(model):
        model(IDS, labels=IDS).loss.backward()
    for layer, wanted in zip(model.model.layers, expected, strict=True):
        torch.testing.assert_close(layer.self_attn.sinks.grad, wanted, atol=1e-6, rtol=1e-3)


def test_a_decode_step_copies_no_older_keys_and_allocates_no_cache(models):
    cache = hf.SparseCache(capacity=64)
    keys = torch.randn(1, 2, 30, 16)
    cache.update(keys, keys, 0)
    where = cache.layers[0].keys.data_ptr()
    for _ in range(34):
        found, _ = cache.update(keys[:, :, :1], keys[:, :, :1], 0)
        assert found.data_ptr() == where and found.shape[2] == cache.get_seq_length()
    cache.update(keys[:, :, :1], keys[:, :, :1], 0)
    assert cache.layers[0].keys.data_ptr() != where, "grown"
    assert torch.equal(cache.layers[0].keys[:, :, :30], keys)


@pytest.mark.parametrize("capacity", [0, 100])
def test_the_cache_is_a_dynamic_cache(capacity):
    ours, theirs = hf.SparseCache(capacity=capacity), transformers.DynamicCache()
    random = torch.Generator().manual_seed(0)
    for step in (
        lambda c, x: c.update(x, x, 0),
        *(lambda c, x: c.update(x[:, :, :1], x[:, :, :1], 0) for _ in range(3)),
    ):
        x = torch.randn(2, 2, 9, 4, generator=random)
        a, b = step(ours, x), step(theirs, x)
        assert torch.equal(a[0], b[0]) and ours.get_seq_length() == theirs.get_seq_length()
    for change in (
        lambda c: c.crop(-2),
        lambda c: c.reorder_cache(torch.tensor([1, 0])),
        lambda c: c.batch_repeat_interleave(2),
        lambda c: c.batch_select_indices(torch.tensor([0, 3])),
        lambda c: c.update(torch.ones(2, 2, 1, 4), torch.ones(2, 2, 1, 4), 0),
    ):
        change(ours), change(theirs)
        assert torch.equal(ours.layers[0].keys, theirs.layers[0].keys)
        assert ours.get_mask_sizes(3, 0) == theirs.get_mask_sizes(3, 0)
        assert torch.equal(copy.deepcopy(ours).layers[0].keys, theirs.layers[0].keys)
    ours.reset()
    assert ours.get_seq_length() == 0


def test_models_switch_to_it_by_name(models):
    model = copy.deepcopy(models("llama"))
    with torch.no_grad():
        expected = model(IDS).logits
        model.set_attn_implementation("reticle")
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        model.config.reticle = {"generation": {"maskers": [{"type": "local", "window_size": 3}]}}
        by_config = generated(model)
        model.set_attn_implementation("eager")
        with hf.attach(model, generation={"maskers": [{"type": "local", "window_size": 3}]}):
            assert torch.equal(generated(model), by_config)
        model.config.reticle = {"generation": None, "decode": None}
        model.set_attn_implementation("reticle")
        with pytest.raises(ValueError, match=r"config\.reticle is"):
            model(IDS)


def test_compiled_models_attend_as_they_did(models):
    model = copy.deepcopy(models("llama"))
    with torch.no_grad():
        expected = model(IDS).logits
        with hf.attach(model):
            torch.testing.assert_close(
                torch.compile(model, backend="eager", dynamic=True)(IDS).logits, expected, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("prefill", [None, {"maskers": [{"type": "local", "window_size": 6}]}])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_compiled_models_train_as_they_did_without_a_graph_break_per_layer(name, prefill):
    architecture, options = MODELS[name]
    inputs = {**padded("left"), "labels": IDS}
    graphs = []
    for layers in (2, 3):
        torch.manual_seed(0)
        config = getattr(transformers, f"{architecture}Config")(**{**SMALL, **options, "num_hidden_layers": layers})
        model = transformers.AutoModelForCausalLM.from_config(config)
        with hf.attach(model, prefill=prefill):
            model(**inputs).loss.backward()
            wanted = [parameter.grad.clone() for parameter in model.parameters()]
            model.zero_grad()
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            torch.compile(model, backend="aot_eager")(**inputs).loss.backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        for parameter, expected in zip(model.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad, expected, atol=1e-6, rtol=1e-4)
    assert graphs[0] == graphs[1]


def test_stages_can_be_told(models):
    model, config = models("llama"), {"maskers": [{"type": "local", "window_size": 3}]}
    with torch.no_grad(), hf.attach(model, generation=config) as attached:
        model(IDS)
        assert attached.generation.density == 1 and len(attached.prefill.sparsity) == 2
        with attached.stage("generation"):
            model(IDS)
        assert attached.generation.density < 1
        with attached.stage(lambda new, total: "generation" if new < 24 else "prefill"):
            model(IDS)
        with pytest.raises(ValueError, match=r"stage is .decode.; expected"), attached.stage("decode"):
            pass
        with pytest.raises(ValueError, match="stage is None"), attached.stage(lambda new, total: None):
            model(IDS)
