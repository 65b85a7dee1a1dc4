"""Evaluation of models on data sets."""

import csv
import json
import os
from pathlib import Path

import pytest
from reticle.research import benchmarks, metrics
from reticle.research.benchmarks import Sample

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
evaluate = pytest.importorskip("reticle.research.evaluate")

MODEL = Path(os.environ["RETICLE_SOURCE_DIR"]) / "examples/data/byte-llama-3m-retrieval"
LOCAL = {"maskers": [{"type": "sink", "sink_size": 4}, {"type": "local", "window_size": 32}]}
TOKENIZER = evaluate.ByteTokenizer()


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def questions(count=3):
    text = "The river was wide and the bridge was old. " * 6
    return [
        Sample(text, f"Line {i}: The river was", (" wide",), 6, task="copy" if i else "other") for i in range(count)
    ]


def rows(folder):
    with (folder / "raw_results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_dense_answers_are_those_of_generate(model, tmp_path):
    sample = questions(1)[0]
    ids = torch.tensor([TOKENIZER.encode(sample.context + sample.question)])
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    result = evaluate.answer(model, TOKENIZER, [sample], output_dir=tmp_path, progress=False)
    assert rows(tmp_path)[0]["predicted_answer"] == TOKENIZER.decode(expected)
    assert result.samples == 1 and result.density == 1
    assert result.overall_score == 100 * (" wide" in TOKENIZER.decode(expected))


def test_results_are_files_and_a_stopped_run_goes_on(model, tmp_path, monkeypatch):
    done = []
    inner = evaluate._continue

    def counted(*arguments):
        done.append(arguments)
        if len(done) == 3:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(evaluate, "_continue", counted)
    run = lambda **options: evaluate.answer(
        model, TOKENIZER, questions(4), generation=LOCAL, output_dir=tmp_path, metrics=True, progress=False, **options
    )
    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(rows(tmp_path)) == 2 and not (tmp_path / "metrics.json").exists()
    with (tmp_path / "raw_results.csv").open("a") as file:
        file.write('2,copy,"cut sho')  # the state that a power failure leaves
    result = run()
    assert len(done) == 3 + 2, "two samples were left"
    assert [int(row["index"]) for row in rows(tmp_path)] == [0, 1, 2, 3]
    assert set(result.task_scores) == {"copy", "other"} and 0 < result.density < 1
    assert json.loads((tmp_path / "metrics.json").read_text())["samples"] == 4
    assert json.loads((tmp_path / "config.json").read_text())["generation"]["maskers"][1]["window_size"] == 32
    assert metrics.summary(tmp_path / "micro_metrics.jsonl")["output_error"] > 0
    with pytest.raises(ValueError, match=r"holds results of other settings \(max_context_length\)"):
        run(max_context_length=10)
    assert len(rows(tmp_path)) == 4, "nothing is lost"


def test_contexts_are_shortened_at_the_end_or_in_the_middle(model, tmp_path):
    assert evaluate._shortened([1, 2, 3, 4, 5], 3, "first") == [1, 2, 3]
    assert evaluate._shortened([1, 2, 3, 4, 5], 3, "middle") == [1, 2, 5]
    assert evaluate._shortened([1, 2], 3, "middle") == [1, 2]
    evaluate.answer(
        model, TOKENIZER, questions(1), max_context_length=50, truncation="middle", output_dir=tmp_path, progress=False
    )
    assert rows(tmp_path)[0]["context_tokens"] == "50"


def test_chat_templates_and_special_tokens_stand_once():
    class Chat:
        chat_template = "..."

        def apply_chat_template(self, turns, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return f"<s>[{turns[0]['content']}]:"

        def encode(self, text, *, add_special_tokens):
            return (["<s>"] if add_special_tokens else []) + list(text)

    sample = Sample("con", "que", answer_prefix="pre")
    assert evaluate._encode(Chat(), sample, True) == (list("<s>[con"), list("que]:pre"))
    assert evaluate._encode(Chat(), sample, False) == (["<s>", *"con"], list("quepre"))
    with pytest.raises(ValueError, match="has none"):
        evaluate._encode(TOKENIZER, sample, True)


def test_an_end_of_text_stops_even_as_the_first_token(model):
    stop = int(model(torch.tensor([[65, 66, 67]])).logits[0, -1].argmax())
    with evaluate.attach(model) as attached:
        assert evaluate._continue(model, attached, [65, 66], [67], 5, {stop}) == []
        assert evaluate._continue(model, attached, [], [], 5, set()) == []


def test_loss_is_the_models_own_when_dense_and_sparsity_is_reported(model):
    ids = torch.tensor([[32, *b"It was the best of times, it was the worst of times, it was the age."]])
    example = {
        "input_ids": ids,
        "attention_mask": (ids != 32).long() | (torch.arange(ids.shape[1]) > 0),
        "output_length": 20,
    }
    real_ids = ids[:, 1:]
    with torch.no_grad():
        logits = model(real_ids).logits[0, -21:-1]
    expected = torch.nn.functional.cross_entropy(logits, real_ids[0, -20:])
    dense = evaluate.loss(model, [example, example], progress=False)
    assert dense.loss == pytest.approx(expected.item(), abs=1e-5)
    assert (dense.prefill_sparsity, dense.generation_sparsity, dense.examples) == (0, 0, 2)
    window = {"maskers": [{"type": "local", "window_size": 8}]}
    sparse = evaluate.loss(model, [example], generation=window, progress=False)
    assert sparse.loss > dense.loss and sparse.prefill_sparsity == 0
    # Of 68 tokens the last 20 have 48 or more tokens before them, and keep the last 8 keys up to their position.
    assert sparse.generation_sparsity == pytest.approx(1 - 20 * 8 / sum(range(49, 69)), abs=1e-6)
    last = evaluate.loss(model, [{**example, "output_length": 1}], generation=window, progress=False)
    assert last.generation_sparsity == pytest.approx(1 - 8 / 68, abs=1e-6)
    with pytest.raises(ValueError, match="output_length is 90 of 68 tokens"):
        evaluate.loss(model, [{"input_ids": real_ids, "attention_mask": None, "output_length": 90}], progress=False)
    with pytest.raises(ValueError, match="no examples"):
        evaluate.loss(model, [], progress=False)


def test_generated_tasks_run_through_a_model(model):
    samples = [benchmarks.generate(task, TOKENIZER, 3400, samples=1)[0] for task in ("niah_single", "vt", "fwe")]
    result = evaluate.answer(model, TOKENIZER, samples, generation=LOCAL, progress=False)
    assert set(result.task_scores) == {"niah_single", "vt", "fwe"} and result.density < 0.05
    with pytest.raises(ValueError, match="no benchmark"):
        evaluate.answer(model, TOKENIZER, samples, benchmark="glue")
