"""Data sets, scores and generated tasks."""

import csv
import json
import re

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
    assert benchmarks.load("aime2024", path=file) == [Sample("", "1 + 1?", ("2",), 32000)]
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


# --- data sets with the columns of their authors: rows made here in the published format --------------------------------


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SCBENCH = {
    "scbench_kv": {"context": '{"k1": "v1"}', "multi_turns": [{"input": 'Key: "k1"', "answer": "v1"}]},
    "scbench_prefix_suffix": {"context": "xay", "multi_turns": [{"input": "x...y?", "answer": "xay"}]},
    "scbench_vt": {"context": "VAR A = 1", "multi_turns": [{"input": "Which are 1?", "answer": ["A", "B", "C"]}]},
    "scbench_repoqa": {
        "context": "def f(): ...",
        "multi_turns": [{"input": "It...", "answer": "def f()", "name": "f"}],
    },
    "scbench_qa_eng": {"context": "A book.", "multi_turns": [{"input": "Who?", "answer": "Anne"}]},
    "scbench_qa_chn": {"context": "书", "multi_turns": [{"input": "谁？", "answer": "天气好"}]},
    "scbench_choice_eng": {
        "context": "A book.",
        "multi_turns": [{"input": "Who?", "answer": "Ben", "options": ["Anne", "Ben", "Cid", "Dora"]}],
    },
    "scbench_many_shot": {
        "context": "Q: a A: (B)",
        "multi_turns": [{"input": "Q: b A:", "answer": "(A)"}],
        "task": "x",
    },
    "scbench_summary": {"context": "A paper.", "multi_turns": [{"input": "Summarise.", "answer": "One two.\nThree."}]},
    "scbench_mf": {
        "context": [3, 1, 2],
        "multi_turns": [
            {"input": "The largest number of the list is:", "answer": 3},
            {"input": "The smallest number of the list is:", "answer": 1},
        ],
    },
    "scbench_summary_with_needles": {
        "context": "A paper.",
        "multi_turns": [
            {"input": "Summarise.", "answer": "Short.", "task": "scbench_summary"},
            {"input": "The pass key is", "answer": "71432", "task": "scbench_passkey"},
        ],
    },
    "scbench_repoqa_and_kv": {
        "context": "def f(): ...",
        "multi_turns": [
            {"input": "It...", "answer": "def f()", "task": "scbench_repoqa", "name": "f"},
            {"input": "Key", "answer": "v", "task": "scbench_kv"},
        ],
    },
}


@pytest.mark.parametrize("subset", SCBENCH)
def test_rows_of_scbench_are_questions_on_one_context(tmp_path, subset):
    rows = [{"id": 0, **SCBENCH[subset]}, {"id": 1, **SCBENCH[subset], "context": "another"}]
    loaded = benchmarks.load("scbench", subset, path=written(tmp_path / "a.jsonl", rows))
    turns = SCBENCH[subset]["multi_turns"]
    assert len(loaded) == 2 * len(turns)
    assert len({sample.context for sample in loaded[: len(turns)]}) == 1, "shared by the questions of a row"
    assert str(SCBENCH[subset]["context"]) in loaded[0].context and "another" in loaded[-1].context
    for sample, turn in zip(loaded, turns, strict=False):
        assert turn["input"] in sample.question and str(sample.answers[0]) in str(turn["answer"])
    assert len(benchmarks.load("scbench", subset, path=tmp_path / "a.jsonl", limit=1)) == len(turns)


def test_prompts_and_lengths_are_those_of_scbench(tmp_path):
    def load(subset):
        return benchmarks.load("scbench", subset, path=written(tmp_path / "a.jsonl", [SCBENCH[subset]]))

    (choice,) = load("scbench_choice_eng")
    assert choice.context == "Read the book and answer the question.\n\nA book."
    assert choice.question == (
        "\n\nQuestion: Who?\nA. Anne\nB. Ben\nC. Cid\nD. Dora\n\nThe letter of the correct answer is"
    )
    assert choice.answers == ("Ben", "B") and choice.max_new_tokens == 40
    first, second = load("scbench_mf")
    assert first.context == second.context == "What is the largest number of the list?\n\n[3, 1, 2]"
    assert first.question == "\n\nThe largest number of the list is:" and first.answers == ("3",)
    assert second.question == ("\n\nWhat is the smallest number of the list?\n\nThe smallest number of the list is:")
    assert [sample.max_new_tokens for sample in load("scbench_summary_with_needles")] == [800, 15]
    assert [sample.task for sample in load("scbench_repoqa_and_kv")] == ["scbench_repoqa", "scbench_kv"]


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "expected"),
    [
        ("scbench_kv", 'it is "v1".', ["v1"], 1),
        ("scbench_kv", "V1", ["v1"], 0),
        ("scbench_vt", "a and c", ["A", "B", "C"], 0.67),  # rounded, as published
        ("scbench_qa_eng", "it was ANNE.", ["Anne"], 1),
        ("scbench_many_shot", "the answer is (a)", ["(A)"], 1),
        ("scbench_qa_chn", "天气很好。", ["天气好"], 2 * 3 / 7),
        ("scbench_choice_eng", "B", ["Ben", "B"], 1),
        ("scbench_choice_eng", "Because", ["Ben", "B"], 1),  # the first letter counts, as published
        ("scbench_choice_eng", "I say the answer is Ben.", ["Ben", "B"], 1),
        ("scbench_choice_eng", "I say the answer is Anne, not B", ["Ben", "B"], 0),
        ("scbench_choice_eng", "that would be B I think", ["Ben", "B"], 1),
        ("scbench_choice_eng", "", ["Ben", "B"], 0),
        ("scbench_mf", "3.7 or 4", ["3"], 1),  # a whole answer is compared without the fraction, as published
        ("scbench_mf", "about 2.50", ["2.5"], 1),
        ("scbench_mf", "none", ["3"], 0),
        ("scbench_passkey", "key 71432.5", ["71432"], 1),
        ("scbench_passkey", "key 7", ["71432"], 0),
        # One line of two words and one of one, against one of three words: 3 hits of 3, and of 4 words.
        ("scbench_summary", "Three, one two four", ["One two.\nThree."], 2 * 3 / 7),
        ("scbench_repoqa", "def f()", ["def f()"], None),
    ],
)
def test_scores_of_scbench(task, prediction, answers, expected):
    assert benchmarks.score("scbench", prediction, sample(*answers, task=task)) == (
        None if expected is None else pytest.approx(expected)
    )


def test_rouge_lsum_is_that_of_the_package_rouge_score():
    import random

    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeLsum"], use_stemmer=False)
    rng = random.Random(1)
    for _ in range(200):
        said, wanted = (
            "\n".join(" ".join(rng.choices(["a", "b", "the", "c."], k=rng.randrange(6))) for _ in range(3))
            for _ in range(2)
        )
        expected = scorer.score(wanted, said)["rougeLsum"].fmeasure
        assert benchmarks.rouge_lsum(said, sample(wanted)) == pytest.approx(expected)


def test_rows_of_math_and_gsm8k_ask_for_the_form_that_is_scored(tmp_path):
    row = {"problem": "1/2?", "solution": "...", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1}
    (math,) = benchmarks.load("math500", path=written(tmp_path / "a.jsonl", [row]))
    assert math.question.startswith("1/2?\n\n") and math.question.endswith("\\boxed{}.")
    assert math.answers == ("\\frac{1}{2}",) and math.max_new_tokens == 4096 and math.context == ""
    row = {"question": "How many?", "answer": "2 + 2 = <<2+2=4>>4\nThus 1,004.\n#### 1,004"}
    (gsm,) = benchmarks.load("gsm8k", "main", path=written(tmp_path / "a.jsonl", [row]))
    assert gsm.answers == ("1004",) and "####" in gsm.question and gsm.task == "main"


@pytest.mark.parametrize(
    ("name", "prediction", "answer", "expected"),
    [
        ("math500", r"\boxed{2}, no: \boxed{\dfrac12}", r"\frac{1}{2}", 1),
        ("math500", r"\boxed{\left(3, \frac{\pi}{2}\right)}", r"\left( 3, \frac{\pi}{2} \right)", 1),
        ("math500", r"\boxed{x = 1/2}", r"\frac{1}{2}", 1),
        ("math500", r"\boxed{.5}", "0.5", 1),
        ("math500", r"\boxed{5\text{ cm}}", "5", 1),
        ("math500", r"\boxed{\sqrt3}", r"\sqrt{3}", 1),
        ("math500", r"\boxed{90^\circ}", "90", 1),
        ("math500", r"\boxed{2 + 3}", "5", 0),  # nothing is computed
        ("math500", r"the answer is \frac{1}{2}", r"\frac{1}{2}", 0),
        ("math500", r"\boxed{\frac{1}{2}", r"\frac{1}{2}", 0),
        ("gsm8k", "5 and 6\n#### 18\nQ: 7", "18", 1),
        ("gsm8k", "first 5, so it is $1,018.", "1018", 1),
        ("gsm8k", "-3 degrees", "-3", 1),
        ("gsm8k", "18.0", "18", 0),
        ("gsm8k", "none", "18", 0),
    ],
)
def test_scores_of_mathematics(name, prediction, answer, expected):
    assert benchmarks.score(name, prediction, sample(answer)) == expected


def test_a_folder_of_loft_is_queries_on_all_its_documents(tmp_path):
    corpus = [
        {"pid": "p7", "title_text": "Rome", "passage_text": " It is old. ", "metadata": {}},
        {"pid": "p9", "title_text": "Oslo", "passage_text": "It is cold.", "metadata": {}},
    ]
    queries = [
        {"qid": "1", "query_text": "What is old?", "metadata": {}, "answers": ["Rome"]},
        {"qid": "2", "query_text": "What is cold?", "metadata": {}, "answers": ["Oslo", "Christiania"]},
    ]
    written(tmp_path / "corpus.jsonl", corpus)
    written(tmp_path / "dev_queries.jsonl", queries)
    first, second = benchmarks.load("loft", "nq", path=tmp_path)
    assert first.context == second.context and first.context.endswith(
        "\n\nID: 0 | TITLE: Rome | CONTENT: It is old. | END ID: 0"
        "\n\nID: 1 | TITLE: Oslo | CONTENT: It is cold. | END ID: 1"
    )
    assert first.question.endswith("query: What is old?\n") and second.answers == ("Oslo", "Christiania")
    with pytest.raises(ValueError, match=r"^loft has no subset None; there are nq, hotpotqa, musique, qampari, quest$"):
        benchmarks.load("loft", path=tmp_path)
    with pytest.raises(ValueError, match=r"^loft is published as an archive; expected path=, .*google-deepmind/loft"):
        benchmarks.load("loft", "nq")


@pytest.mark.parametrize(
    ("task", "prediction", "answers", "expected"),
    [
        ("nq", "I think.\n**Final Answer: ['The city of Rome']**", ["Rome"], {"em": 0, "subspan_em": 1, "f1": 0.5}),
        ("nq", "Final Answer: ['Rome', 'Oslo']", ["Oslo"], {"em": 0, "subspan_em": 0, "f1": 0}),  # the first counts
        ("nq", "Final Answer: ['the devil's sleep']", ["Devil's Sleep"], {"em": 1, "subspan_em": 1, "f1": 1}),
        ("nq", "Rome", ["Rome"], {"em": 0, "subspan_em": 0, "f1": 0}),  # no list
        ("nq", "Final Answer: [Rome]", ["Rome"], {"em": 0, "subspan_em": 0, "f1": 0}),  # not a list of texts
        ("quest", "Final Answer: ['B film', 'A']", ["A", "B"], {"em": 0, "subspan_em": 1, "coverage": 0.5}),
        ("quest", "Final Answer: ['A B']", ["A", "B"], {"em": 0, "subspan_em": 0, "coverage": 0}),  # one entry for two
        ("quest", "Final Answer: []", ["A"], {"em": 0, "subspan_em": 0, "coverage": 0}),
    ],
)
def test_scores_of_loft(task, prediction, answers, expected):
    answers = [answer.replace("A", "alpha").replace("B", "beta") if task == "quest" else answer for answer in answers]
    prediction = re.sub(r"\bA\b", "alpha", re.sub(r"\bB\b", "beta", prediction)) if task == "quest" else prediction
    assert benchmarks.loft_scores(prediction, sample(*answers, task=task)) == pytest.approx(expected)
    assert benchmarks.score("loft", prediction, sample(*answers, task=task)) == expected["subspan_em"]


HELMET = {
    "json_kv": {
        "context": 'JSON data:\n{"k": "v"}',
        "question": "k",
        "answer": "v",
        "demos": [["a", "1"], ["b", "2"], ["c", "3"]],
        "num_kvs": 1,
    },
    "ruler_niah_mk_2": {"context": "One is 7.", "query": "one", "type_needle_v": "number", "outputs": ["7"]},
    "ruler_niah_mk_3": {"context": "One is 7.", "query": "one", "type_needle_v": "uuid", "answer": ["7"]},
    "ruler_niah_mv": {"context": "One is 7, 8.", "query": "one", "type_needle_v": "numbers", "outputs": ["7", "8"]},
    "kilt_nq": {
        "question": "who?",
        "answers": ["Anne"],
        "ctxs": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}],
    },
}


@pytest.mark.parametrize("subset", HELMET)
def test_rows_of_helmet_have_its_prompts(tmp_path, subset):
    (found,) = benchmarks.load("helmet", subset, path=written(tmp_path / "a.jsonl", [HELMET[subset]]))
    text = found.context + found.question + found.answer_prefix
    if subset == "json_kv":
        assert found.context == HELMET[subset]["context"]
        assert text.endswith(
            "Key: a\nCorresponding value: 1\n\nKey: b\nCorresponding value: 2\n\nKey: k\nCorresponding value:"
        )
    elif subset == "kilt_nq":
        assert text.endswith("\n\nDocument (Title: T): x\n\nDocument (Title: U): y\n\nQuestion: who?\nAnswer:")
    elif subset == "ruler_niah_mv":
        assert text.startswith("Some special magic numbers are hidden within")
        assert text.endswith(
            "What are all the special magic numbers for one mentioned in the provided text?\n"
            "The special magic numbers for one mentioned in the provided text are"
        )
    else:
        assert text.startswith(f"A special magic {HELMET[subset]['type_needle_v']} is hidden within")
    assert benchmarks.score("helmet", f"it is {' and '.join(found.answers)}", found) == 1
    assert benchmarks.score("helmet", "nothing", found) == 0


def test_scores_of_helmet():
    assert benchmarks.score("helmet", "7 only", sample("7", "8", task="ruler_niah_mv")) == 0.5
    assert benchmarks.score("helmet", "it is the Anne!", sample("anne", task="kilt_nq")) == 1
    assert benchmarks.score("helmet", "no\nAnne", sample("Anne", task="kilt_nq")) == 0, "only the first line counts"
    assert benchmarks.score("helmet", "well\nv.", sample("v", task="json_kv")) == 1


@pytest.mark.parametrize(
    ("name", "subset", "row", "message"),
    [
        ("scbench", None, SCBENCH["scbench_kv"], r"^scbench has no subset ''; there are scbench_kv, "),
        ("scbench", "scbench_kv", {"context": "a"}, r'^a row without "multi_turns"; its columns are \[\'context\'\]$'),
        (
            "scbench",
            "scbench_choice_eng",
            {"context": "a", "multi_turns": [{"input": "b", "answer": "c", "options": ["d"]}]},
            r"^options are \['d'\], the answer is 'c'; expected four, it among them$",
        ),
        (
            "scbench",
            "scbench_repoqa_and_kv",
            {"context": "a", "multi_turns": [{"input": "b", "answer": "c", "task": "d"}]},
            r"^a question's task is 'd'; expected scbench_summary, ",
        ),
        (
            "scbench",
            "scbench_mf",
            {**SCBENCH["scbench_mf"], "multi_turns": [{"input": "?", "answer": 1}]},
            "The ... is",
        ),
        ("math500", None, {"question": "a"}, r'^a row without "problem"; its columns are \[\'question\'\]$'),
        ("gsm8k", None, {"question": "a", "answer": "4"}, r'^an answer without "#### ": \'4\'; expected'),
        ("helmet", "icl", HELMET["json_kv"], r"^helmet has no subset 'icl'; there are json_kv, "),
        ("helmet", "kilt_nq", {"question": "a", "answers": []}, r'^a row without "ctxs"'),
    ],
)
def test_rows_of_another_form_are_refused_by_name(tmp_path, name, subset, row, message):
    with pytest.raises(ValueError, match=message):
        benchmarks.load(name, subset, path=written(tmp_path / "a.jsonl", [row]))


SQUAD = {
    "data": [
        {
            "title": f"t{article}",
            "paragraphs": [
                {
                    "context": f"Text {article}.{part} says that item {article}.{part} is number {article * 10 + part}.",
                    "qas": [
                        {
                            "question": f"Which number is item {article}.{part}?",
                            "answers": [{"text": f"number {article * 10 + part}", "answer_start": 0}],
                            "is_impossible": part == 2,
                        }
                    ],
                }
                for part in range(3)
            ],
        }
        for article in range(12)
    ]
}
HOTPOT = [
    {
        "question": f"What holds {i}?",
        "answer": f"box {i}",
        "context": [[f"Title {i}.{j}", [f"Box {i} holds {i}.", f" So it is box {i}."]] for j in range(2)],
    }
    for i in range(12)
]


@pytest.mark.parametrize(("task", "data", "beginning"), [("qa_1", SQUAD, "Text "), ("qa_2", HOTPOT, "Title ")])
def test_questions_of_ruler_are_among_documents_of_the_source(tmp_path, task, data, beginning):
    source = tmp_path / "questions.json"
    source.write_text(json.dumps(data))
    made = benchmarks.generate(task, Bytes(), 1400, samples=5, seed=3, source=source)
    assert made == benchmarks.generate(task, Bytes(), 1400, samples=5, seed=3, source=source)
    assert len({each.question for each in made}) == 5
    for each in made:
        assert 1250 < len(each.context + each.question + each.answer_prefix) + each.max_new_tokens <= 1400
        documents = re.findall(r"Document \d+:\n(.*)", each.context)
        assert len(documents) == len(set(documents)) > 5 and all(text.startswith(beginning) for text in documents)
        assert benchmarks.score("ruler", f"It is {each.answers[0]}.", each) == 1 and each.task == task
        asked = re.search(r"[\d.]+\d|\d+", each.question.rpartition("Question:")[2]).group()
        assert any(asked in text for text in documents), "its own document is there"
    assert not any(".2?" in each.question for each in made), "questions without answers are left out"


def test_sources_of_questions_are_checked(tmp_path):
    source = tmp_path / "questions.json"
    source.write_text(json.dumps(SQUAD))
    with pytest.raises(
        ValueError, match=r"^qa_1: source is None; expected a file of questions for qa_1 and qa_2 only$"
    ):
        benchmarks.generate("qa_1", Bytes(), 1000)
    with pytest.raises(ValueError, match=r"^vt: source is .* only$"):
        benchmarks.generate("vt", Bytes(), 1000, source=source)
    with pytest.raises(ValueError, match=r"questions.json: .*; expected HotpotQA's JSON \(dev, distractor\) for qa_2$"):
        benchmarks.generate("qa_2", Bytes(), 1000, source=source)
    with pytest.raises(ValueError, match=r"questions.json: has 24 questions with answers; samples is 99$"):
        benchmarks.generate("qa_1", Bytes(), 1000, samples=99, source=source)
    with pytest.raises(ValueError, match=r"questions.json: all its 36 texts together are shorter than 90000 tokens$"):
        benchmarks.generate("qa_1", Bytes(), 90000, samples=1, source=source)
