"""Hugging Face models with Reticle's attention."""

import numpy as np
import pytest
import reticle
from reticle.research import metrics

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
hf = pytest.importorskip("reticle.hf")

ARCHITECTURES = ["Llama", "Mistral", "Qwen2", "Qwen3"]
LOCAL = {"maskers": [{"type": "local", "window_size": 6}]}


def tiny(architecture="Llama", causal_lm=None, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )
    return getattr(transformers, causal_lm or f"{architecture}ForCausalLM")(config).eval()


def padded_batch():
    ids = torch.randint(1, 100, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, :7] = mask[1, :7] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, batch, **options):
    with torch.no_grad():
        return model.generate(**batch, max_new_tokens=12, do_sample=False, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_output_is_the_models_own_token_for_token(architecture):
    model, batch = tiny(architecture), padded_batch()
    expected = generate(model, batch)
    with hf.attach(model) as attached:
        assert torch.equal(generate(model, batch), expected)
    assert attached.prefill.density == attached.generation.density == 1
    assert len(attached.generation.sparsity) == 11 * 3
    assert torch.equal(generate(model, batch), expected), "detached, it is as it was"


def test_a_full_mask_by_maskers_is_dense_too():
    model, batch = tiny(), padded_batch()
    everything = {"maskers": [{"type": "local", "window_size": 1.0}]}
    expected = generate(model, batch)
    with hf.attach(model, prefill=everything, generation=everything):
        assert torch.equal(generate(model, batch), expected)


def test_sparse_generation_sees_what_its_pattern_keeps():
    model, batch = tiny(), padded_batch()
    with hf.attach(model, generation=LOCAL, keep_masks=True) as attached:
        generate(model, batch)
    assert attached.prefill.density == 1
    visible = sum(range(21, 32)) + sum(range(14, 25))  # padding is not visible
    assert attached.generation.density == pytest.approx(2 * 6 * 11 / visible)
    layer, mask = attached.masks("generation")[0]
    assert (layer, mask.shape) == (0, (1, 4, 1, 21))
    assert attached.masks("generation")[1][1].shape == (1, 4, 1, 14), "each sequence alone"


@pytest.mark.parametrize("architecture", ["Mistral", "Gemma3Text", "GptOss"])
def test_layers_with_a_sliding_window_attend_to_it(architecture):
    options = {"sliding_window": 8}
    if architecture == "Gemma3Text":
        options |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "head_dim": 16}
    if architecture == "GptOss":
        options |= {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
    if not hasattr(transformers, f"{architecture}Config"):
        pytest.skip(f"this transformers has no {architecture}")
    name = (
        architecture.removesuffix("Text") if not hasattr(transformers, f"{architecture}ForCausalLM") else architecture
    )
    model, batch = tiny(architecture, causal_lm=f"{name}ForCausalLM", **options), padded_batch()
    expected = generate(model, batch)
    with hf.attach(model):
        assert torch.equal(generate(model, batch), expected)
    short = {"input_ids": batch["input_ids"][:1, :3]}
    tova = {"maskers": [{"type": "tova", "token_capacity": 2}]}
    with hf.attach(model, generation=tova) as attached:  # the window fills up twice during generation
        first = generate(model, short)
        assert torch.equal(generate(model, short), first)
    assert attached.generation.density < 1


def test_metrics_are_logged_per_layer_and_stage(tmp_path):
    model, batch = tiny(), padded_batch()
    with metrics.MetricLogger(tmp_path / "log.jsonl") as logger, hf.attach(model, generation=LOCAL, metrics=logger):
        generate(model, batch)
    logged = metrics.records(tmp_path / "log.jsonl")
    assert len(logged) == 2 * 12 * 3
    prompt = [line["value"] for line in logged if line["metadata"]["stage"] == "prefill"]
    assert sorted(prompt) == pytest.approx([0] * 3 + [1] * 3, abs=1e-6)
    first = [line for line in logged if line["metadata"] == {"layer": 0, "stage": "generation", "keys": 21}]
    assert [line["metric"] for line in first] == ["density", "output_error"]
    assert first[0]["value"] == pytest.approx(12 / 35) and 0 < first[1]["value"] < 2


def test_sink_logits_of_gpt_oss_take_part():
    if not hasattr(transformers, "GptOssConfig"):
        pytest.skip("this transformers has no gpt-oss")
    model = tiny("GptOss", head_dim=16, num_local_experts=2, num_experts_per_tok=1, rope_parameters=None)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.sinks, std=2.0)
    batch = padded_batch()
    expected = generate(model, batch)
    with hf.attach(model):
        assert torch.equal(generate(model, batch), expected)


def test_every_prompt_starts_anew():
    model, batch = tiny(), padded_batch()
    tova = {"maskers": [{"type": "tova", "token_capacity": 8}]}
    with hf.attach(model, generation=tova):
        first = generate(model, batch)
        generate(model, {"input_ids": batch["input_ids"][:1, :11]})
        assert torch.equal(generate(model, batch), first)


def test_padding_changes_nothing_for_the_padded_sequence():
    model, batch = tiny(), padded_batch()
    alone = {"input_ids": batch["input_ids"][1:, 7:]}
    with hf.attach(model, generation=LOCAL):
        np.testing.assert_array_equal(generate(model, batch)[1, 20:], generate(model, alone)[0, 13:])


def test_what_it_cannot_do_it_says():
    model, batch = tiny(), padded_batch()
    with hf.attach(model):
        with pytest.raises(ValueError, match="attached already"):
            hf.attach(model)
        with torch.no_grad(), pytest.raises(NotImplementedError, match="output_attentions is not supported"):
            model.model.layers[0].self_attn(torch.zeros(1, 2, 64), output_attentions=True)
    dropped = tiny(attention_dropout=0.5).train()
    with hf.attach(dropped), torch.no_grad(), pytest.raises(NotImplementedError, match="set attention_dropout to 0"):
        dropped(**batch)
    with pytest.raises(ValueError, match=r"BloomForCausalLM: expected attention that calls .* BloomAttention does not"):
        hf.attach(transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2)))
    with pytest.raises(reticle.ConfigError, match="sinc"):
        hf.attach(model, generation={"maskers": [{"type": "sinc"}]})
    assert model.config._attn_implementation != "reticle"
