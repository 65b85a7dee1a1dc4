"""Data sets, scores and generated tasks."""

import csv
import json

import pytest
from reticle.research import benchmarks
from reticle.research.benchmarks import Sample

ROW = {
    "context": "It rained all day.",
    "question": "What did it do?",
    "answer_prefix": "Answer:",
    "answers": ["rain", "It rained."],
    "max_new_tokens": 7,
    "task": "hotpotqa",
    "length": 4,
}


class Bytes:
    def encode(self, text, *, add_special_tokens=True):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(tokens).decode()


def sample(*answers, task="", classes=()):
    return Sample("", "", tuple(answers), task=task, all_classes=tuple(classes))


def test_rows_of_jsonl_csv_and_parquet_are_the_same_samples(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW) + "\n\n" + json.dumps({**ROW, "task": "qasper"}) + "\n")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerow({**ROW, "answers": json.dumps(ROW["answers"])})
    expected = Sample(
        "It rained all day.", "What did it do?", ("rain", "It rained."), 7, answer_prefix="Answer:", task="hotpotqa"
    )
    loaded = benchmarks.load("longbench", path=tmp_path / "a.jsonl")
    assert loaded[0] == expected and loaded[1].task == "qasper"
    assert benchmarks.load("longbench", path=tmp_path / "a.jsonl", limit=1) == [expected]
    assert benchmarks.load("longbench", path=tmp_path / "a.csv") == [expected]
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame([ROW]).to_parquet(tmp_path / "a.parquet")
    assert benchmarks.load("longbench", path=tmp_path / "a.parquet") == [expected]


def test_other_columns_are_mapped_and_the_subset_names_the_task(tmp_path):
    file = tmp_path / "aime.jsonl"
    file.write_text(json.dumps({"ID": "2024-I-1", "Problem": "1 + 1?", "Solution": "...", "Answer": 2}))
    assert benchmarks.load("aime2024", path=file) == [Sample("", "1 + 1?", ("2",))]
    file.write_text(json.dumps({"context": "c", "question": "q", "answer": ["7"]}))
    assert benchmarks.load("infinite_bench", "passkey", path=file)[0].task == "passkey"


def test_downloads_ask_for_the_published_set(monkeypatch):
    import sys
    import types

    asked = []

    def load_dataset(name, subset, split):
        asked.append((name, subset, split))
        return [ROW, ROW]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert len(benchmarks.load("ruler", "4096")) == 2
    assert len(benchmarks.load("loogle", limit=1)) == 4
    benchmarks.load("aime2025")
    assert asked[0] == ("simonjegou/ruler", "4096", "test") and asked[1][1] == "shortdep_qa"
    assert asked[-1] == ("math-ai/aime25", None, "test")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no benchmark 'rulr'; there are .*ruler"):
        benchmarks.load("rulr")
    with pytest.raises(ValueError, match="ruler has no subset '4095'; there are 4096"):
        benchmarks.load("ruler", "4095")
    (tmp_path / "a.jsonl").write_text('{"question": "a"}\n{')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        benchmarks.load("ruler", path=tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match=r"""without "question"; its columns are \['prompt'\]"""):
        benchmarks.load("ruler", path=tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"\.jsonl, \.csv or \.parquet"):
        benchmarks.load("ruler", path=tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("score", "prediction", "of", "expected"),
    [
        (benchmarks.qa_f1, "The cat sat.", sample("a cat", "dog"), 2 * 1 / 3),
        (benchmarks.qa_f1, "", sample("cat"), 0),
        (benchmarks.qa_f1, "天气好", sample("天气很好"), 2 * 3 / 7),
        (benchmarks.rouge_l, "one two three four", sample("one three four five"), 0.75),
        (benchmarks.contains_all, "12 and\n34", sample("12", "34", "56"), 2 / 3),
        (benchmarks.contains_any, "It is PARIS", sample("Paris", "London"), 1),
        (benchmarks.classification, "a city or a county", sample("city", classes=["city", "county"]), 0.5),
        (benchmarks.classification, "what city", sample("other city", classes=["city", "other city"]), 0),
        (benchmarks.classification, "other city", sample("other city", classes=["city", "other city"]), 1),
        (benchmarks.counting, "Paragraph 3 or 4", sample("Paragraph 3"), 0.5),
        (benchmarks.counting, "none", sample("3"), 0),
        (benchmarks.code_similarity, "# note\nreturn x", sample("return x"), 1),
        (benchmarks.choice, "I think the answer is (C), not B", sample("C"), 1),
        (benchmarks.number, "It is 42.", sample("42"), 1),
        (benchmarks.final_number, r"so 3, thus \boxed{070} done 9", sample("70"), 1),
        (benchmarks.final_number, "no number", sample("70"), 0),
    ],
)
def test_scores(score, prediction, of, expected):
    assert score(prediction, of) == pytest.approx(expected)


def test_benchmarks_score_by_task():
    assert benchmarks.score("longbench", "cat\nand more", sample("cat", task="triviaqa")) == 1
    assert benchmarks.score("longbench", "cat and more", sample("cat", task="qasper_e")) == pytest.approx(0.5)
    assert benchmarks.score("ruler", "1 2", sample("1", "3", task="niah_multivalue")) == 0.5
    assert benchmarks.score("ruler", "1 2", sample("1", "3", task="qa_1")) == 1
    assert benchmarks.score("infinite_bench", "key is 5", sample("5", task="passkey")) == 1
    assert benchmarks.score("zero_scrolls", "anything", sample()) is None


@pytest.mark.parametrize("task", benchmarks.TASKS)
def test_generated_tasks_fill_their_length_and_hold_their_answers(task):
    made = benchmarks.generate(task, Bytes(), 6000, samples=3, seed=5)
    assert made == benchmarks.generate(task, Bytes(), 6000, samples=3, seed=5)
    assert made != benchmarks.generate(task, Bytes(), 6000, samples=3, seed=6)
    for each in made:
        tokens = len(each.context + each.question + each.answer_prefix) + each.max_new_tokens
        assert 5600 < tokens <= 6000
        assert each.task == task and all(answer in each.context for answer in each.answers)
        assert benchmarks.score("ruler", " ".join(each.answers), each) == 1
        assert benchmarks.score("ruler", "nothing of it", each) == 0


def test_needles_answer_what_is_asked_and_nothing_else():
    single = benchmarks.generate("niah_multikey", Bytes(), 4000, samples=1)[0]
    assert len(single.answers) == 1 and single.context.count("A secret number of") == 4
    key = single.question.split("numbers of ")[1].split(" in the")[0]
    assert f"A secret number of {key} is {single.answers[0]}." in single.context
    assert len(benchmarks.generate("niah_multiquery", Bytes(), 4000, samples=1)[0].answers) == 4
    with pytest.raises(ValueError, match="the shortest text has"):
        benchmarks.generate("cwe", Bytes(), 100)
    with pytest.raises(ValueError, match="no task 'needle'; there are niah_single"):
        benchmarks.generate("needle", Bytes(), 100)
