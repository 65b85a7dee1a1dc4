"""Evaluation of models on data sets."""

import csv
import dataclasses
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
import reticle.hf  # noqa: E402 - after the packages that it needs

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
    with evaluate.attach(model):
        cache = reticle.hf.SparseCache()
        logits = evaluate._step(model, cache, [65, 66, 67])
        assert evaluate._continue(model, cache, logits, 5, {stop}) == []
        assert evaluate._continue(model, cache, None, 5, set()) == []


CONTEXT = "The river was wide and the bridge was old. " * 14
ASKED = [
    Sample(CONTEXT, f"\nQ: {question} A:", (answer,), 5, task="chat")
    for question, answer in (("the river was?", " wide"), ("and the bridge?", " old"), ("who was old?", " the bridge"))
]
PATTERNS = {
    "window": LOCAL["maskers"],
    "quest": [{"type": "quest_top_k", "heavy_size": 32, "page_size": 8}],
    "snap_kv": [{"type": "snap_kv", "token_capacity": 96, "approximation_window": 16}],
    "tova": [{"type": "tova", "token_capacity": 64}],
    "h2o": [{"type": "h2o", "heavy_size": 32, "recent_size": 32}],
}


def watched(monkeypatch, length):
    """Of every later run, the lengths of the steps that read at least `length` tokens, and the logits after each
    question."""
    lengths, logits = [], []
    step, go_on = evaluate._step, evaluate._continue

    def counted(model, cache, tokens):
        lengths.extend([len(tokens)] if len(tokens) >= length else [])
        return step(model, cache, tokens)

    def kept(model, cache, after, *rest):
        logits.append(after)
        return go_on(model, cache, after, *rest)

    monkeypatch.setattr(evaluate, "_step", counted)
    monkeypatch.setattr(evaluate, "_continue", kept)
    return lengths, logits


def close(found, expected):
    return torch.allclose(torch.stack(found), torch.stack(expected), atol=1e-3)


def answers(model, samples, folder, **options):
    result = evaluate.answer(model, TOKENIZER, samples, output_dir=folder, progress=False, **options)
    return [row["predicted_answer"] for row in rows(folder)], [float(row["density"]) for row in rows(folder)], result


@pytest.mark.parametrize("pattern", PATTERNS)
def test_questions_on_a_shared_context_are_answered_as_alone_in_any_order(model, tmp_path, monkeypatch, pattern):
    given = {"generation": {"maskers": PATTERNS[pattern]}}
    lengths, logits = watched(monkeypatch, len(CONTEXT))
    alone, densities, _ = answers(model, ASKED, tmp_path / "alone", **given)
    assert lengths == [len(CONTEXT)] * 3
    expected = logits.copy()
    lengths.clear()
    logits.clear()
    shared, shared_densities, _ = answers(model, ASKED, tmp_path / "shared", shared_context="requests", **given)
    assert lengths == [len(CONTEXT)], "the context is prefilled once"
    assert shared == alone and close(logits, expected)
    assert shared_densities == pytest.approx(densities) and max(densities) < 1
    logits.clear()
    turned, *_ = answers(model, ASKED[::-1], tmp_path / "turned", shared_context="requests", **given)
    assert turned == alone[::-1] and close(logits, expected[::-1])


@pytest.mark.parametrize("pattern", ["quest", "snap_kv", "tova"])
@pytest.mark.parametrize("conversation", ["turns", "dialogue"])
def test_turns_continue_the_cache_of_the_conversation(model, tmp_path, monkeypatch, conversation, pattern):
    given = {"generation": {"maskers": PATTERNS[pattern]}}
    lengths, logits = watched(monkeypatch, len(CONTEXT))
    found, *_ = answers(model, ASKED, tmp_path, shared_context=conversation, **given)
    assert lengths == [len(CONTEXT)]
    text = ""
    for sample, answer in zip(ASKED, found, strict=True):
        text += sample.question
        alone = Sample(CONTEXT, text, (), sample.max_new_tokens)
        with reticle.hf.attach(model, **given) as attached:
            assert evaluate.predict(model, TOKENIZER, attached, alone)[0] == answer
        text += sample.answers[0] if conversation == "turns" else answer
    assert close(logits[:3], logits[3:])


def test_a_stopped_conversation_goes_on_as_if_it_had_not_stopped(model, tmp_path, monkeypatch):
    given = {"generation": LOCAL, "shared_context": "dialogue"}
    whole, *_ = answers(model, ASKED, tmp_path / "whole", **given)
    inner, done = evaluate._continue, []

    def counted(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return inner(*arguments)

    monkeypatch.setattr(evaluate, "_continue", counted)
    with pytest.raises(KeyboardInterrupt):
        answers(model, ASKED, tmp_path / "stopped", **given)
    assert len(rows(tmp_path / "stopped")) == 2
    monkeypatch.setattr(evaluate, "_continue", inner)
    assert answers(model, ASKED, tmp_path / "stopped", **given)[0] == whole
    with pytest.raises(ValueError, match=r"holds results of other settings \(shared_context\)"):
        answers(model, ASKED, tmp_path / "stopped", generation=LOCAL)


def test_rows_of_scbench_are_answered_turn_by_turn(model, tmp_path, monkeypatch):
    turns = [{"input": f"{name} is", "answer": value, "task": "scbench_kv"} for name, value in (("A", "7"), ("B", "8"))]
    turns[1]["task"] = "scbench_repoqa"
    (tmp_path / "a.jsonl").write_text(json.dumps({"context": "A is 7. B is 8. " * 9, "multi_turns": turns}))
    samples = [
        dataclasses.replace(sample, max_new_tokens=3)
        for sample in benchmarks.load("scbench", "scbench_repoqa_and_kv", path=tmp_path / "a.jsonl")
    ]
    lengths, _ = watched(monkeypatch, 100)
    result = evaluate.answer(
        model, TOKENIZER, samples, benchmark="scbench", shared_context="turns", output_dir=tmp_path, progress=False
    )
    assert lengths == [144] and result.samples == 2
    assert result.task_scores["scbench_kv"] in (0, 100)
    assert result.task_scores["scbench_repoqa"] is None, "what is not scored is not counted"
    assert [row["score"] == "" for row in rows(tmp_path)] == [False, True]


def test_contexts_are_shared_by_neighbours_only_and_empty_ones_by_none():
    samples = [Sample(context, "") for context in ("a", "a", "b", "a", "", "")]
    assert evaluate._groups(samples, "turns") == [[0, 1], [2], [3], [4], [5]]
    assert evaluate._groups(samples, None) == [[0], [1], [2], [3], [4], [5]]


def test_turns_need_reference_answers_and_known_names(model):
    samples = [Sample("context", "one", ()), Sample("context", "two", ("2",))]
    with pytest.raises(
        ValueError, match=r"^the question 'one' has no answers; expected one for the next turn to follow$"
    ):
        evaluate.answer(model, TOKENIZER, samples, shared_context="turns", progress=False)
    with pytest.raises(
        ValueError, match=r'^shared_context is \'all\'; expected None, "requests", "turns" or "dialogue"$'
    ):
        evaluate.answer(model, TOKENIZER, samples, shared_context="all", progress=False)


class Turns:
    """A tokenizer of characters with a chat template that marks every turn."""

    chat_template = "..."

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return "".join(f"[{turn['role'][0]}:{turn['content']}]" for turn in turns) + "[a:"

    def encode(self, text, *, add_special_tokens):
        return list(text)


def test_a_follow_up_has_the_answer_and_the_next_question_in_the_chat_template():
    first, second, third = (Sample("con", name, answer_prefix="=") for name in ("one", "two", "three"))
    assert "".join(evaluate._follow_up(Turns(), [(first, "1")], second, True)) == "1][u:two][a:="
    assert "".join(evaluate._follow_up(Turns(), [(first, "1"), (second, "2")], third, True)) == "2][u:three][a:="
    assert "".join(evaluate._follow_up(Turns(), [(first, "1")], second, False)) == "1two="

    class Forgetful(Turns):
        def apply_chat_template(self, turns, **options):
            return super().apply_chat_template(turns[-1:], **options)

    with pytest.raises(ValueError, match=r"^the tokenizer's chat template changes earlier turns"):
        evaluate._follow_up(Forgetful(), [(first, "1")], second, True)


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


def test_a_logger_of_the_caller_gets_densities_and_scores_and_stays_open(model, tmp_path):
    with metrics.MetricLogger(tmp_path / "log.jsonl", metrics=("density",)) as log:
        evaluate.answer(model, TOKENIZER, questions(2), generation=LOCAL, metrics=log, progress=False)
        log.log("mine", 1)
    logged = metrics.records(tmp_path / "log.jsonl")
    scores = [record["metadata"] for record in logged if record["metric"] == "score"]
    assert scores == [{"task": "other", "index": 0}, {"task": "copy", "index": 1}]
    assert {record["metric"] for record in logged} == {"density", "score", "mine"}


def test_a_model_is_detached_when_results_cannot_be_written(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(evaluate._Results, "add", fail)
    with pytest.raises(OSError, match="disk full") as kept:
        evaluate.answer(model, TOKENIZER, questions(2), output_dir=tmp_path, progress=False)
    assert kept.tb is not None
    with evaluate.attach(model):
        pass


def test_ray_gives_the_rows_that_one_process_gives(model, tmp_path):
    ray = pytest.importorskip("ray", reason="ray is not installed; pip install ray")
    given = {"generation": LOCAL, "shared_context": "turns"}
    samples = [*ASKED, dataclasses.replace(ASKED[0], context="Another context. " * 20)]
    alone = answers(model, samples, tmp_path / "alone", **given)
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    try:
        spread = answers(model, samples, tmp_path / "spread", ray=True, **given)
        assert ray.is_initialized(), "a cluster of the caller is left alone"
    finally:
        ray.shutdown()
    by_index = lambda folder: sorted(
        (int(row["index"]), row["predicted_answer"], row["density"]) for row in rows(folder)
    )
    assert by_index(tmp_path / "spread") == by_index(tmp_path / "alone")
    assert spread[2] == alone[2]


def test_ray_is_refused_by_name_without_the_package_and_with_metrics(model, monkeypatch):
    import sys

    with pytest.raises(ValueError, match=r"^metrics are not collected over Ray; expected metrics=False with ray=True$"):
        evaluate.answer(model, TOKENIZER, questions(1), ray=True, metrics=True, output_dir="unused", progress=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"ray=True needs it: pip install ray$"):
        evaluate.answer(model, TOKENIZER, questions(1), ray=True, progress=False)
