"""nano-sparse-attention's classes against its recorded results."""

import json
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
nano = pytest.importorskip("reticle.nano")
GOLDEN = Path(os.environ["RETICLE_SOURCE_DIR"]) / "tests/golden/patterns"
MODEL = Path(os.environ["RETICLE_SOURCE_DIR"]) / "examples/data/byte-llama-3m-retrieval"


def load(case):
    safetensors = pytest.importorskip("safetensors.torch")
    return json.loads((GOLDEN / f"{case}.json").read_text()), safetensors.load_file(GOLDEN / f"{case}.safetensors")


def pattern_of(params):
    options = dict(params)
    return getattr(nano, options.pop("name"))(**options)


def cases(*starts):
    return sorted(path.stem for start in starts for path in GOLDEN.glob(f"nano_{start}*.json"))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def test_masks_and_sparsity_are_the_recorded_ones():
    golden, tensors = load("nano_mask_utils")
    params, ratio = golden["params"], nano.Attention.calculate_sparsity_ratio
    made = {
        "causal": nano.Attention.get_causal_mask(params["seq_len"], "cpu"),
        "local": nano.Attention.get_local_mask(params["seq_len"], params["window_size"], "cpu"),
        "generation": nano.Attention.get_generation_mask(params["gen_len"], params["prefill_len"], "cpu"),
    }
    for name, mask in made.items():
        assert torch.equal(~mask, tensors[name].bool()), name
    for name, expected in golden["expected"]["sparsity"].items():
        assert ratio(~tensors[name].bool()) == pytest.approx(expected, abs=1e-6), name
    average = nano.Attention.calculate_average_sparsity_ratio
    assert average([0.5, 1.0]) == 0.75 and average([]) == golden["expected"]["average_of_empty_list"]


@pytest.mark.parametrize("case", cases("handler"))
def test_a_handler_switches_by_stage_as_recorded(case):
    golden, tensors = load(case)
    params, expected = golden["params"], golden["expected"]
    handler = nano.InferenceHandler(pattern_of(params["prefill"]), pattern_of(params["generation"]))
    assert handler.name == golden["handler_name"]
    handler.set_output_length(params["output_length"])
    for layer in range(params["num_layer_calls"]):
        q, k, v = (tensors[name][layer] for name in ("queries", "keys", "values"))
        close(handler(q, k, v, layer_idx=layer), tensors["output"][layer])
    info = handler.info()
    assert info["prefill"]["sparsity"] == pytest.approx(expected["prefill_sparsity_avg"], abs=1e-6)
    assert info["generation"]["sparsity"] == pytest.approx(expected["generation_sparsity_avg"], abs=1e-6)
    assert len(info["prefill"]["masks"]) == expected["prefill_masks_saved"]
    prompt = q.shape[2] - params["output_length"]
    for mask, layer in zip(info["prefill"]["masks"], expected["prefill_saved_layer_calls"], strict=True):
        assert (~mask == tensors["mask_dense"][layer][0, 0, :prompt, :prompt].numpy()).all()
    assert info["prefill"]["params"] == {k: v for k, v in params["prefill"].items() if k != "name"}


@pytest.mark.parametrize("case", cases("block_sparse", "local_sinks", "snapkv", "tova", "vertical_slash", "dense"))
def test_patterns_give_the_recorded_outputs_and_ratios(case):
    golden, tensors = load(case)
    pattern = pattern_of({"name": golden["pattern"], **golden["params"]})
    if "gen_queries" in tensors:
        names = [f"{stage}_{kind}" for stage in ("prefill", "gen") for kind in ("queries", "keys", "values")]
        output = pattern.generation_forward(*(tensors[name] for name in names))
    else:
        output = pattern(tensors["queries"], tensors["keys"], tensors["values"])
    close(output, tensors["output"])
    ratios = [golden["expected"]["sparsity_ratio"]] if golden["pattern"] != "DenseAttention" else []
    assert pattern.sparsity_ratios == pytest.approx(ratios, abs=1e-6)


def test_attention_prunes_where_its_mask_says_and_gives_scores_and_gradients():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 8, requires_grad=True) for _ in range(3))
    mask = nano.Attention.get_local_mask(6, 3)
    output, scores = nano.Attention.attention(q, k, v, mask, return_attention_scores=True)
    weights = (q @ k.mT / 8**0.5).masked_fill(mask, -torch.inf).softmax(-1)
    torch.testing.assert_close(output, weights @ v)
    torch.testing.assert_close(scores, weights.detach())
    gradients = torch.autograd.grad(output.square().sum(), (q, k, v))
    for got, wanted in zip(gradients, torch.autograd.grad((weights @ v).square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nano.Attention.attention(q, k, v, mask.int()), output)
    assert not nano.Attention.attention(q, k, v, torch.ones(1, 1, 6, 6, dtype=torch.bool)).any()
    with pytest.raises(TypeError, match="expected bool, True where a connection is pruned"):
        nano.Attention.attention(q, k, v, torch.zeros(1, 1, 6, 6))


def test_stages_that_a_pattern_does_not_serve_and_lengths_that_leave_nothing_are_named():
    q = torch.zeros(1, 1, 6, 8)
    handler = nano.InferenceHandler(nano.TOVAAttention(4), nano.DenseAttention())
    with pytest.raises(ValueError, match="output_length is not set"):
        handler(q, q, q)
    handler.set_output_length(2)
    with pytest.raises(NotImplementedError, match="TOVAAttention has no forward: it does not serve the prefill"):
        handler(q, q, q)
    with pytest.raises(ValueError, match="output_length is 0; expected 1 token or more"):
        handler.set_output_length(0)
    handler.set_output_length(6)
    with pytest.raises(ValueError, match="output_length is 6 of 6 tokens; expected less"):
        handler(q, q, q)
    with pytest.raises(AttributeError, match="token_budget"):
        _ = nano.TOVAAttention(4).token_budget
    assert nano.TOVAAttention(4).token_capacity == 4


def test_a_models_loss_and_sparsity_are_those_of_its_cached_evaluation():
    transformers = pytest.importorskip("transformers")
    evaluate = pytest.importorskip("reticle.research.evaluate")
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    text = b"It was the best of times, it was the worst of times, it was the age of wisdom."
    examples = [{"input_ids": torch.tensor([list(text)]), "attention_mask": None, "output_length": n} for n in (1, 20)]
    config = {"maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 8}]}
    before = model(examples[0]["input_ids"]).logits
    for stages in ({"prefill": config}, {"generation": config}, {"prefill": config, "generation": config}):
        cached = evaluate.loss(model, examples, **stages, progress=False)
        patterns = [
            nano.LocalAndSinksAttention(8, 2) if stage in stages else nano.DenseAttention()
            for stage in ("prefill", "generation")
        ]
        handler = nano.InferenceHandler(*patterns)
        loss = nano.model_forward(model, examples, handler)
        assert loss == pytest.approx(cached.loss, abs=1e-4)
        assert handler.info()["prefill"]["sparsity"] == pytest.approx(cached.prefill_sparsity, abs=1e-6)
        assert handler.info()["generation"]["sparsity"] == pytest.approx(cached.generation_sparsity, abs=1e-6)
        with pytest.raises(NotImplementedError, match="use_cache=False"):
            model.generate(examples[0]["input_ids"], max_new_tokens=2)
        nano.update_attention(model, None)
    assert torch.equal(model(examples[0]["input_ids"]).logits, before)
    with (
        evaluate.attach(model),
        pytest.raises(ValueError, match="is attached to a pattern by"),
    ):
        nano.update_attention(model, handler)
    with pytest.raises(ValueError, match="has no examples"):
        nano.model_forward(model, [], handler)
    nano.update_attention(model, None)
