"""Long-context data sets, and the scores of their answers.

    from reticle.research import benchmarks

    samples = benchmarks.load("longbench", "hotpotqa")  # downloads with the `datasets` package
    samples = benchmarks.load("ruler", path="my_ruler.jsonl")  # a local file with the same columns
    samples = benchmarks.generate("niah_multikey", tokenizer, length=8192, samples=50)

Columns are context, question, answer_prefix, answers, max_new_tokens and task, as the published versions for KV-cache
compression have them. `reticle.research.evaluate` runs a model over samples.

Generated tasks are texts of words for Hugging Face models with any tokenizer; `reticle evaluate --tasks` has its own
(tools/evaluation.hpp), of bytes, for the byte models that the command runs.
"""

from __future__ import annotations

import csv
import difflib
import json
import random
import re
import string
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer's interface that is used here."""

    def encode(self, text: str, /, *, add_special_tokens: bool = ...) -> list[int]:
        """The tokens of a text."""
        ...

    def decode(self, token_ids: Any, /) -> Any:
        """The text of tokens."""
        ...


@dataclass(frozen=True)
class Sample:
    """One question about one context. Without answers nothing is scored, and only the prediction is recorded."""

    context: str
    question: str
    answers: tuple[str, ...] = ()
    max_new_tokens: int = 50
    answer_prefix: str = ""
    task: str = ""
    all_classes: tuple[str, ...] = ()


# --- scores in [0, 1] -------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares them; single characters for Chinese."""
    plain = "".join(c for c in text.lower() if c not in string.punctuation + "，。！？；：、“”‘’（）《》")
    plain = re.sub(r"([\u4e00-\u9fff])", r" \1 ", plain)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def _f1(common: int, predicted: int, wanted: int) -> float:
    return 2 * common / (predicted + wanted) if common else 0.0


def _best(score: Callable[[str, str], float], prediction: str, sample: Sample) -> float:
    return max((score(prediction, answer) for answer in sample.answers), default=0.0)


def qa_f1(prediction: str, sample: Sample) -> float:
    """The best word F1 over the answers (SQuAD, LongBench)."""

    def score(predicted: str, answer: str) -> float:
        a, b = Counter(_words(predicted)), Counter(_words(answer))
        return _f1((a & b).total(), a.total(), b.total())

    return _best(score, prediction, sample)


def rouge_l(prediction: str, sample: Sample) -> float:
    """The best F1 of the longest common subsequence of words (ROUGE-L) over the answers."""

    def score(predicted: str, answer: str) -> float:
        a, b = _words(predicted), _words(answer)
        row = [0] * (len(b) + 1)
        for word in a:
            diagonal = 0
            for j, other in enumerate(b, 1):
                diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
        return _f1(row[-1], len(a), len(b))

    return _best(score, prediction, sample)


def _clean(text: str) -> str:
    return re.sub(r"[\x00-\x1f]", " ", text).lower()


def contains_all(prediction: str, sample: Sample) -> float:
    """The share of the answers that occur in the prediction (RULER)."""
    found = sum(_clean(answer) in _clean(prediction) for answer in sample.answers)
    return found / max(1, len(sample.answers))


def contains_any(prediction: str, sample: Sample) -> float:
    """1 if an answer occurs in the prediction, else 0 (RULER's questions)."""
    return float(any(_clean(answer) in _clean(prediction) for answer in sample.answers))


def classification(prediction: str, sample: Sample) -> float:
    """1 / (number of classes that the prediction names) if the right class is among them, else 0 (LongBench)."""

    def score(predicted: str, answer: str) -> float:
        named = [name for name in sample.all_classes if name in predicted]
        named = [name for name in named if name == answer or name not in answer]
        return 1 / len(named) if answer in named else 0.0

    return _best(score, prediction, sample)


def _share_of_numbers(prediction: str, wanted: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def counting(prediction: str, sample: Sample) -> float:
    """The share of the prediction's numbers that equal the answer (LongBench's counts and paragraph numbers)."""

    def score(predicted: str, answer: str) -> float:
        number = re.search(r"\d+", answer)
        return _share_of_numbers(predicted, number.group()) if number else 0.0

    return _best(score, prediction, sample)


def code_similarity(prediction: str, sample: Sample) -> float:
    """Similarity of the prediction's first line of code to the answer (LongBench)."""
    lines = prediction.lstrip("\n").split("\n")
    first = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return _best(lambda a, b: difflib.SequenceMatcher(None, a, b, autojunk=False).ratio(), first, sample)


def choice(prediction: str, sample: Sample) -> float:
    """1 if the chosen letter is the answer, else 0. The letter follows "answer is", or is the first that stands
    alone."""
    stated = re.search(r"answer is:?\s*\(?([A-D])\b", prediction) or re.search(r"\b([A-D])\b", prediction)
    return float(stated is not None and stated.group(1) in sample.answers)


def number(prediction: str, sample: Sample) -> float:
    """1 if the first number in the prediction is the answer, else 0."""
    first = re.search(r"-?\d+(?:\.\d+)?", prediction)
    return float(first is not None and first.group() in sample.answers)


def final_number(prediction: str, sample: Sample) -> float:
    """1 if the boxed integer, or without one the last integer, is the answer, else 0 (AIME)."""
    boxed = re.findall(r"\\boxed\{\s*(\d+)\s*\}", prediction)
    numbers = boxed or re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) in {int(answer) for answer in sample.answers})


def _first_line(score: Callable[[str, Sample], float]) -> Callable[[str, Sample], float]:
    return lambda prediction, sample: score(prediction.lstrip("\n").split("\n")[0], sample)


_RULER_QA = re.compile(r"^qa(_|$)")
_LONGBENCH: dict[str, Callable[[str, Sample], float]] = {
    **dict.fromkeys(["gov_report", "qmsum", "multi_news", "vcsum", "dureader"], rouge_l),
    "samsum": _first_line(rouge_l),
    "triviaqa": _first_line(qa_f1),
    **dict.fromkeys(["trec", "lsht"], _first_line(classification)),
    **dict.fromkeys(["passage_count", "passage_retrieval_en", "passage_retrieval_zh"], counting),
    **dict.fromkeys(["lcc", "repobench-p"], code_similarity),
}
_INFINITE_BENCH: dict[str, Callable[[str, Sample], float]] = {
    **dict.fromkeys(["passkey", "number_string", "math_find"], number),
    **dict.fromkeys(["kv_retrieval", "longdialogue_qa_eng"], contains_any),
    **dict.fromkeys(["longbook_choice_eng", "code_debug"], choice),
    "code_run": final_number,
    "longbook_sum_eng": rouge_l,
}


# --- data sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """Where a data set is published, its subsets, and how samples of a task are scored."""

    hub: str
    subsets: tuple[str, ...]
    score: Callable[[str, Sample], float]
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)  # published column -> field of Sample


_LONGBENCH_SUBSETS = (
    *("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa", "musique", "dureader"),
    *("gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht", "passage_count"),
    *("passage_retrieval_en", "passage_retrieval_zh", "lcc", "repobench-p"),
)
_LONGBENCH_E = (
    *("qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum"),
    *("passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)

BENCHMARKS: dict[str, Benchmark] = {
    "longbench": Benchmark(
        "Xnhyacinth/LongBench",
        (*_LONGBENCH_SUBSETS, *(f"{name}_e" for name in _LONGBENCH_E)),
        lambda prediction, sample: _LONGBENCH.get(sample.task.removesuffix("_e"), qa_f1)(prediction, sample),
    ),
    "longbench_v2": Benchmark("Xnhyacinth/LongBench-v2", ("0shot", "cot"), choice),
    "ruler": Benchmark(
        "simonjegou/ruler",
        ("4096", "8192", "16384", "32768"),
        lambda prediction, sample: (contains_any if _RULER_QA.match(sample.task) else contains_all)(prediction, sample),
    ),
    "infinite_bench": Benchmark(
        "MaxJeblick/InfiniteBench",
        (*_INFINITE_BENCH, "longbook_qa_eng"),
        lambda prediction, sample: _INFINITE_BENCH.get(sample.task, qa_f1)(prediction, sample),
    ),
    "loogle": Benchmark(
        "simonjegou/loogle",
        ("shortdep_qa", "longdep_qa", "shortdep_cloze", "longdep_summarization"),
        lambda prediction, sample: (contains_all if "cloze" in sample.task else rouge_l)(prediction, sample),
    ),
    "zero_scrolls": Benchmark("simonjegou/zero_scrolls", ("default",), rouge_l),
    "aime2024": Benchmark(
        "Maxwell-Jia/AIME_2024", ("default",), final_number, "train", {"Problem": "question", "Answer": "answer"}
    ),
    "aime2025": Benchmark("math-ai/aime25", ("default",), final_number, "test", {"problem": "question"}),
}


def _texts(value: Any) -> tuple[str, ...]:
    """Answers as texts: from one text, several, a list that a table holds as text, or an array."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return ()
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            return _texts(json.loads(value))
        except ValueError:
            return (value,)
    if isinstance(value, (list, tuple)):
        return tuple(str(entry) for entry in value)
    return (str(value),)


def sample_from(row: Mapping[str, Any], task: str = "", columns: Mapping[str, str] | None = None) -> Sample:
    """A sample from a row of a table; `columns` renames columns. Raises ValueError, listing the columns, without a
    question."""
    named = {(columns or {}).get(key, key): value for key, value in row.items()}
    if not isinstance(named.get("question"), str):
        raise ValueError(f'a row without "question"; its columns are {sorted(row)}')
    answers = named["answers"] if named.get("answers") is not None else named.get("answer")
    return Sample(
        context=str(named.get("context") or ""),
        question=named["question"],
        answers=_texts(answers),
        max_new_tokens=int(named.get("max_new_tokens") or 50),
        answer_prefix=str(named.get("answer_prefix") or ""),
        task=str(named.get("task") or task),
        all_classes=_texts(named.get("all_classes")),
    )


def _rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            for number_of_line, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}: line {number_of_line} is not JSON: {error}") from None
                yield row
    elif path.suffix == ".csv":
        csv.field_size_limit(1 << 30)  # a whole context is one field
        with path.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)
    elif path.suffix == ".parquet":
        import pandas

        yield from pandas.read_parquet(path).to_dict("records")
    else:
        raise ValueError(f"{path}: expected a file .jsonl, .csv or .parquet")


def load(
    benchmark: str, subset: str | None = None, *, path: str | Path | None = None, limit: int | None = None
) -> list[Sample]:
    """The samples of a benchmark, from one subset or all.

    Args:
        benchmark: a key of BENCHMARKS.
        subset: a task for "longbench", a length for "ruler", and so on; None: all subsets.
        path: a local file (.jsonl, .csv or .parquet) with the published columns, instead of a download.
        limit: the largest number of samples per subset.

    Raises:
        ValueError: for unknown names, listing the known ones, and for rows without a question.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}")
    chosen = BENCHMARKS[benchmark]
    if path is not None:
        rows = [sample_from(row, subset or "", chosen.columns) for row in _rows(Path(path))]
        return rows[:limit]
    if subset is not None and subset not in chosen.subsets:
        raise ValueError(f"{benchmark} has no subset {subset!r}; there are {', '.join(chosen.subsets)}")
    try:
        import datasets
    except ImportError:
        raise ImportError(f'"{chosen.hub}" is downloaded by the package `datasets`: pip install datasets') from None
    samples: list[Sample] = []
    for name in [subset] if subset is not None else chosen.subsets:
        table = datasets.load_dataset(chosen.hub, None if name == "default" else name, split=chosen.split)
        samples += [sample_from(row, name, chosen.columns) for row in table][:limit]
    return samples


def score(benchmark: str, prediction: str, sample: Sample) -> float | None:
    """The score in [0, 1] by the benchmark's metric for this sample's task; None without answers."""
    return BENCHMARKS[benchmark].score(prediction, sample) if sample.answers else None


# --- generated tasks --------------------------------------------------------------------------------------------------
# RULER's tasks (Hsieh et al. 2024): retrieval, tracing and aggregation in texts of any length. `units` is the amount of
# text; the amount that fills a given length is found by search with the model's tokenizer.

_WORDS = """
amber bitter brisk calm clever crimson distant eager faint gentle golden hollow humble icy jagged keen lively mellow narrow
odd pale quiet rapid rough silent slender solemn stark subtle tall tender vivid warm weary wild young
|
anchor basket beacon bridge canyon castle cedar cliff comet desert falcon forest garden glacier harbor island kettle lantern
ledger meadow mirror orchard pebble piano quarry raven river saddle shadow temple thicket tower valley violin wagon window
|
crossed followed passed noticed remembered reached watched left praised sketched
"""
_ADJECTIVES, _NOUNS, _VERBS = (words.split() for words in _WORDS.split("|"))


def _key(rng: random.Random) -> str:
    return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("bcdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3))


def _distinct(rng: random.Random, make: Callable[[random.Random], str], count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[make(rng)] = None
    return list(found)


def _filler(rng: random.Random, sentences: int) -> list[str]:
    def sentence() -> str:
        noun, other = rng.sample(_NOUNS, 2)
        return f"The {rng.choice(_ADJECTIVES)} {noun} {rng.choice(_VERBS)} the {rng.choice(_ADJECTIVES)} {other}."

    return [sentence() for _ in range(sentences)]


def _hidden(rng: random.Random, units: int, needles: Sequence[str]) -> str:
    """A text with the needles inserted at random places, in order."""
    text = _filler(rng, units)
    for place, needle in zip(
        sorted(rng.choices(range(units + 1), k=len(needles)), reverse=True), reversed(needles), strict=True
    ):
        text.insert(place, needle)
    return " ".join(text)


def _niah(keys: int, values: int, queried: int) -> Callable[[random.Random, int], Sample]:
    def make(rng: random.Random, units: int) -> Sample:
        names = _distinct(rng, _key, keys)
        numbers = _distinct(rng, lambda r: str(r.randrange(1000000, 9999999)), keys * values)
        facts = [
            (name, numbers[i * values + j], f"A secret number of {name} is {numbers[i * values + j]}.")
            for i, name in enumerate(names)
            for j in range(values)
        ]
        rng.shuffle(facts)
        asked = names[:queried]
        listed = " and ".join(asked)
        return Sample(
            "Some secret numbers are hidden in the following text. Remember them.\n"
            + _hidden(rng, units, [fact[2] for fact in facts])
            + "\n",
            f"What are all the secret numbers of {listed} in the text?",
            tuple(n for name, n, _ in facts if name in asked),
            32 + 16 * values * queried,
            f" The secret numbers of {listed} are",
        )

    return make


def _variable_tracking(rng: random.Random, units: int) -> Sample:
    chains, hops = 2, 4
    names = _distinct(rng, lambda r: "".join(r.choices(string.ascii_uppercase, k=5)), chains * (hops + 1))
    values = _distinct(rng, lambda r: str(r.randrange(10000, 99999)), chains)
    lines: list[list[str]] = []
    for chain in range(chains):
        variables = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        lines.append([f"VAR {variables[0]} = {values[chain]}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(variables))])
    order = [i for i, chain in enumerate(lines) for _ in chain]
    rng.shuffle(order)
    rest = [iter(chain) for chain in lines]
    context = _hidden(rng, units, [f"{next(rest[i])}." for i in order])
    return Sample(
        f"Variables are assigned in the following text. Remember them.\n{context}\n",
        f"Which variables have the value {values[0]}, directly or through others?",
        tuple(names[: hops + 1]),
        60,
        f" The variables with the value {values[0]} are",
    )


def _common_words(rng: random.Random, units: int) -> Sample:
    words = _distinct(rng, _word, 10 + max(10, units))
    listed = words[:10] * 30 + words[10 : 10 + units] * 3
    rng.shuffle(listed)
    context = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
    return Sample(
        f"Below is a numbered list of words. Some occur more often than others.\n{context}\n",
        "What are the 10 words that occur most often in the list?",
        tuple(words[:10]),
        120,
        " The 10 words that occur most often are",
    )


def _frequent_words(rng: random.Random, units: int) -> Sample:
    words = _distinct(rng, _word, 200)
    weights = [1 / rank**2 for rank in range(1, len(words) + 1)]
    text = rng.choices(words, weights, k=max(60, 10 * units))
    for i, word in enumerate(words[:3]):  # a margin keeps the three most frequent words unambiguous
        text += [word] * ((3 - i) * len(text) // 20)
    rng.shuffle(text)
    counts = Counter(text)
    return Sample(
        f"Read the following coded text and count its words.\n{' '.join(text)}\n",
        "What are the three most frequent words of the coded text?",
        tuple(word for word, _ in counts.most_common(3)),
        50,
        " The three most frequent words are",
    )


TASKS: dict[str, Callable[[random.Random, int], Sample]] = {
    "niah_single": _niah(1, 1, 1),
    "niah_multikey": _niah(4, 1, 1),
    "niah_multivalue": _niah(1, 4, 1),
    "niah_multiquery": _niah(4, 1, 4),
    "vt": _variable_tracking,
    "cwe": _common_words,
    "fwe": _frequent_words,
}
"""What generate makes: a needle in a haystack (one; one of many keys; many values; many questions), variable tracking,
and common and frequent words."""


def generate(task: str, tokenizer: Tokenizer, length: int, samples: int = 10, seed: int = 0) -> list[Sample]:
    """Samples of a generated task whose context, question and answer fill `length` tokens as closely as possible.

    The same seed gives the same texts. Their scores are those of the benchmark "ruler".

    Raises:
        ValueError: for an unknown task, or a length below that of the shortest text.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")

    def make(index: int, units: int) -> Sample:
        return TASKS[task](random.Random(f"{task} {seed} {index}"), units)

    def tokens(index: int, units: int) -> int:
        sample = make(index, units)
        return len(tokenizer.encode(sample.context + sample.question + sample.answer_prefix)) + sample.max_new_tokens

    made = []
    for index in range(samples):
        if tokens(index, 0) > length:
            raise ValueError(f"{task}: the shortest text has {tokens(index, 0)} tokens; length is {length}")
        low, high = 0, 1
        while tokens(index, high) <= length:
            low, high = high, 2 * high
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if tokens(index, middle) <= length else (low, middle)
        made.append(replace(make(index, low), task=task))
    return made
