"""Long-context data sets, and the scores of their answers.

    from reticle.research import benchmarks

    samples = benchmarks.load("longbench", "hotpotqa")  # downloads with the `datasets` package
    samples = benchmarks.load("ruler", path="my_ruler.jsonl")  # a local file with the same columns
    samples = benchmarks.load("scbench", "scbench_kv", path="scbench_kv.jsonl")  # several questions on each context
    samples = benchmarks.generate("niah_multikey", tokenizer, length=8192, samples=50)
    samples = benchmarks.generate("qa_1", tokenizer, length=8192, source="squad-dev-v2.0.json")

Columns are context, question, answer_prefix, answers, max_new_tokens and task, as the published versions for KV-cache
compression have them; "scbench", "math500", "gsm8k", "loft" and "helmet" have the columns of their authors.
`reticle.research.evaluate` runs a model over samples.

Generated tasks are texts of words for Hugging Face models with any tokenizer; `reticle evaluate --tasks` has its own
(tools/evaluation.hpp), of bytes, for the byte models that the command runs.
"""

from __future__ import annotations

import ast
import csv
import difflib
import itertools
import json
import random
import re
import string
import unicodedata
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


def substring_match(prediction: str, sample: Sample) -> float:
    """1 if the words of an answer follow each other in the prediction, else 0. Texts are compared as in `qa_f1`
    (HELMET's substring_exact_match)."""
    said = " ".join(_words(prediction))
    return float(any(" ".join(_words(answer)) in said for answer in sample.answers))


def rouge_lsum(prediction: str, sample: Sample) -> float:
    """The best ROUGE-Lsum over the answers (Lin 2004, section 3.2, as in the package rouge_score): lines are sentences,
    and a line of the answer counts the words that are in a longest common subsequence with any line of the prediction."""

    def sentences(text: str) -> list[list[str]]:
        return [re.findall("[a-z0-9]+", line.lower()) for line in text.split("\n") if line]

    def score(predicted: str, answer: str) -> float:
        said, wanted = sentences(predicted), sentences(answer)
        left_said, left_wanted = (Counter(itertools.chain(*lines)) for lines in (said, wanted))
        words = left_said.total(), left_wanted.total()
        hits = 0
        for line in wanted:
            for place in sorted(set().union(*(_common_places(line, other) for other in said))):
                word = line[place]
                if left_said[word] > 0 and left_wanted[word] > 0:
                    hits += 1
                    left_said[word] -= 1
                    left_wanted[word] -= 1
        return _f1(hits, *words)

    return _best(score, prediction, sample)


def _common_places(a: list[str], b: list[str]) -> set[int]:
    """The places in `a` of a longest common subsequence of a and b; the last one where there are several."""
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, j in itertools.product(range(len(a)), range(len(b))):
        lengths[i + 1][j + 1] = lengths[i][j] + 1 if a[i] == b[j] else max(lengths[i][j + 1], lengths[i + 1][j])
    found = set()
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.add(i)
        elif lengths[i][j - 1] > lengths[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found


def character_f1(prediction: str, sample: Sample) -> float:
    """The best F1 of characters over the answers, without punctuation and white space (SCBench's Chinese questions)."""
    marks = (
        string.punctuation
        + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏"
    )

    def score(predicted: str, answer: str) -> float:
        a, b = (Counter(c for c in text.lower() if c not in marks and not c.isspace()) for text in (predicted, answer))
        return _f1((a & b).total(), a.total(), b.total())

    return _best(score, prediction, sample)


def _integer(prediction: str, sample: Sample) -> float:
    """1 if the first digits of the prediction are an answer, else 0 (SCBench's pass keys)."""
    first = re.search(r"\d+", prediction)
    return float(first is not None and first.group() in sample.answers)


def _found_number(prediction: str, sample: Sample) -> float:
    """1 if the first number of the prediction is an answer, without its fraction if the answer has none, else 0
    (SCBench's scbench_mf)."""
    first = re.search(r"\d+\.\d+|\d+", prediction)
    if first is None:
        return 0.0
    said = float(first.group())
    return float(any(float(answer) == (said if "." in answer else int(said)) for answer in sample.answers))


def _option(prediction: str, sample: Sample) -> float:
    """1 if the prediction names the right option by its letter or its text, else 0 (SCBench's scbench_choice_eng)."""
    said = prediction.strip()
    if said[:1] in tuple("ABCD"):
        return float(said[0] in sample.answers)
    if said in sample.answers:
        return 1.0
    plain = re.sub(" +", " ", re.sub(r"[\n\"'.,?!{}]", " ", said))
    for prefix in ("answer is:", "answer:", "answer is", "option is"):
        _, found, after = plain.partition(prefix)
        if found:
            return float(after[1:].startswith(sample.answers))
    letter = next((word for word in plain.split() if word in "ABCD"), None)
    return float(letter in sample.answers)


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} or \fbox{...} of a text holds, braces within it included; None without one."""
    found = list(re.finditer(r"\\(?:boxed|fbox)\s*\{", text))
    if not found:
        return None
    begin, depth = found[-1].end(), 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return None


def _plain_formula(formula: str) -> str:
    """A formula in the spelling in which MATH's authors compare answers (Hendrycks et al. 2021, math_equivalence.py)."""
    for word, plain in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", "")):
        formula = formula.replace(word, plain)
    for word in ("\\right", "^{\\circ}", "^\\circ", "\\$"):
        formula = formula.replace(word, "")
    formula = formula.partition("\\text{ ")[0]  # units
    for word, plain in (("\\%", ""), ("%", ""), (" .", " 0."), ("{.", "{0.")):
        formula = formula.replace(word, plain)
    formula = re.sub(r"^\.", "0.", formula)
    sides = formula.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # such as "x = 5"
        formula = sides[1]
    formula = re.sub(r"\\sqrt(?=[^{])(.)", r"\\sqrt{\1}", formula).replace(" ", "")
    formula = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", formula)
    formula = re.sub(r"\\frac([^{])(?=\{)", r"\\frac{\1}", formula)
    if formula == "0.5":
        formula = "\\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", formula)


def boxed_formula(prediction: str, sample: Sample) -> float:
    r"""1 if the last \boxed{} of the prediction holds an answer, else 0 (MATH). Formulas are equal if they are spelled
    alike, apart from white space, units, kinds of fractions and the like; nothing is computed."""
    boxed = last_boxed(prediction)
    return float(boxed is not None and _plain_formula(boxed) in {_plain_formula(answer) for answer in sample.answers})


def _plain_number(text: str) -> str:
    return text.replace(",", "").replace("$", "").rstrip(".")


def stated_number(prediction: str, sample: Sample) -> float:
    """1 if the number after the first "####" is the answer, or without such a mark the last number, else 0 (GSM8K).
    Commas, dollar signs and a final stop are left out."""
    stated = re.search(r"#### *(-?[$0-9.,]+)", prediction)
    numbers = [stated.group(1)] if stated else re.findall(r"-?\$?[0-9][0-9.,]*", prediction)
    return float(bool(numbers) and _plain_number(numbers[-1]) in sample.answers)


def loft_answers(prediction: str) -> list[str]:
    """The list that a prediction for LOFT ends with, "Final Answer: ['one', 'two']"; [] if there is none that can be
    read."""
    for line in prediction.replace("*", "").replace("`", "").strip().split("\n"):
        if "final answer" in line.lower() and "[" in line and "]" in line:
            listed = re.sub(r"([a-zA-Z0-9])'([a-zA-Z0-9])", r"\1\'\2", line[line.find("[") : line.rfind("]") + 1])
            try:
                found = ast.literal_eval(listed)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                return []
            return [str(entry) for entry in found] if isinstance(found, list) else []
    return []


_LOFT_LISTS = ("qampari", "quest")


def loft_scores(prediction: str, sample: Sample) -> dict[str, float]:
    """LOFT's scores of retrieval-augmented generation: {"em", "subspan_em", "f1"} of the first answer in the list, or
    for qampari and quest, which ask for several answers, {"em", "subspan_em", "coverage"} of the whole list.

    "subspan_em" is the one that LOFT reports: an answer occurs in the prediction; of several, each in another entry
    (or an entry in it).
    """

    def plain(text: str) -> str:
        return " ".join(_words(unicodedata.normalize("NFD", text)))

    wanted = [plain(answer) for answer in sample.answers]
    said = [plain(answer) for answer in loft_answers(prediction)]
    if sample.task in _LOFT_LISTS:
        if not said:
            return {"em": 0.0, "subspan_em": 0.0, "coverage": 0.0}
        fits = [[i for i, entry in enumerate(said) if answer in entry or entry in answer] for answer in wanted]
        return {
            "em": float(set(wanted) == set(said)),
            "subspan_em": float(_all_matched(fits)),
            "coverage": len(set(wanted) & set(said)) / max(1, len(wanted)),
        }
    first = said[0] if said else ""
    return {
        "em": float(bool(said) and first in wanted),
        "subspan_em": float(bool(said) and any(answer in first for answer in wanted)),
        "f1": qa_f1(first, replace(sample, answers=tuple(wanted))),
    }


def _all_matched(fits: Sequence[Sequence[int]]) -> bool:
    """True if every row can have one of its columns for itself (bipartite matching by augmenting paths)."""
    owner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column in fits[row]:
            if column not in tried:
                tried.add(column)
                if column not in owner or place(owner[column], tried):
                    owner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(fits)))


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


def _contains_exactly(prediction: str, sample: Sample) -> float:
    return float(any(answer in prediction for answer in sample.answers))


_SCBENCH: dict[str, Callable[[str, Sample], float]] = {
    **dict.fromkeys(["scbench_kv", "scbench_prefix_suffix"], _contains_exactly),
    "scbench_vt": lambda prediction, sample: round(contains_all(prediction, sample), 2),
    "scbench_qa_eng": contains_any,
    "scbench_many_shot": contains_any,
    "scbench_qa_chn": character_f1,
    "scbench_choice_eng": _option,
    "scbench_mf": _found_number,
    "scbench_summary": rouge_lsum,
    "scbench_passkey": _integer,
}


# --- data sets --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Benchmark:
    """Where a data set is published, its subsets, and how samples of a task are scored."""

    hub: str
    """Its name on the Hugging Face Hub, or where to find it (an address) if it is not a table there."""
    subsets: tuple[str, ...]
    score: Callable[[str, Sample], float | None]
    split: str = "test"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Published column -> field of Sample."""
    samples: Callable[[Mapping[str, Any], str], list[Sample]] | None = None
    """From a row and its subset to its questions, where columns are not enough."""
    max_new_tokens: int = 50
    """Of samples whose rows do not say it."""


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


def sample_from(
    row: Mapping[str, Any], task: str = "", columns: Mapping[str, str] | None = None, max_new_tokens: int = 50
) -> Sample:
    """A sample from a row of a table; `columns` renames columns, and `max_new_tokens` is for rows that do not say it.
    Raises ValueError, listing the columns, without a question."""
    named = {(columns or {}).get(key, key): value for key, value in row.items()}
    if not isinstance(named.get("question"), str):
        raise ValueError(f'a row without "question"; its columns are {sorted(row)}')
    answers = named["answers"] if named.get("answers") is not None else named.get("answer")
    return Sample(
        context=str(named.get("context") or ""),
        question=named["question"],
        answers=_texts(answers),
        max_new_tokens=int(named.get("max_new_tokens") or max_new_tokens),
        answer_prefix=str(named.get("answer_prefix") or ""),
        task=str(named.get("task") or task),
        all_classes=_texts(named.get("all_classes")),
    )


def _columns_of(row: Mapping[str, Any], *names: str) -> list[Any]:
    for name in names:
        if row.get(name) is None:
            raise ValueError(f'a row without "{name}"; its columns are {sorted(row)}')
    return [row[name] for name in names]


def _math_samples(row: Mapping[str, Any], subset: str) -> list[Sample]:
    problem, answer = _columns_of(row, "problem", "answer")
    question = f"{problem}\n\nReason step by step, and put your final answer within \\boxed{{}}."
    return [Sample("", question, (str(answer),), 4096, task=subset)]


def _gsm8k_samples(row: Mapping[str, Any], subset: str) -> list[Sample]:
    problem, solution = _columns_of(row, "question", "answer")
    _, mark, answer = str(solution).rpartition("#### ")
    if not mark:
        raise ValueError(f'an answer without "#### ": {solution!r}; expected a solution that ends with it and a number')
    question = f'{problem}\n\nReason step by step, and end with "#### " and the number.'
    return [Sample("", question, (_plain_number(answer.strip()),), 1024, task=subset)]


# The prompts of SCBench (Li et al. 2024; scbench/eval_utils.py of its repository) and its numbers of new tokens.
_JSON_LOOKUP = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
_READ_THE_BOOK = "Read the book and answer the question. "
_SCBENCH_PROMPTS: dict[str, tuple[str, str, int]] = {
    "scbench_kv": (_JSON_LOOKUP, "{input}", 150),
    "scbench_prefix_suffix": ("", "{input}", 150),
    "scbench_vt": ("", "{input}", 30),
    "scbench_repoqa": (
        "Based on the function description and code context, please retrieve and repeat the exact described function from "
        "the code context in a code block wrapped by ```:\n\n",
        "{input}",
        1024,
    ),
    "scbench_qa_eng": (f"{_READ_THE_BOOK}Be very concise in your answer.\n\n", "Question: {input}\nAnswer:", 40),
    "scbench_qa_chn": ("阅读以下书籍然后回答问题。\n\n", "问题：{input}\n答案：", 40),
    "scbench_choice_eng": (
        f"{_READ_THE_BOOK.strip()}\n\n",
        "Question: {input}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\n\nThe letter of the correct answer is",
        40,
    ),
    "scbench_many_shot": ("", "{input}", 10),
    "scbench_summary": ("", "{input}", 200),
    "scbench_mf": ("", "{input}", 5),
    "scbench_summary_with_needles": ("", "{input}", 800),
    "scbench_repoqa_and_kv": ("", "{input}", 1024),
}
_SCBENCH_MIXED = {"scbench_summary": 800, "scbench_passkey": 15, "scbench_repoqa": 1024, "scbench_kv": 80}


def _scbench_samples(row: Mapping[str, Any], subset: str) -> list[Sample]:
    """The questions about one context, in order."""
    if subset not in _SCBENCH_PROMPTS:
        raise ValueError(f"scbench has no subset {subset!r}; there are {', '.join(_SCBENCH_PROMPTS)}")
    lead, template, tokens = _SCBENCH_PROMPTS[subset]
    (turns,) = _columns_of(row, "multi_turns")
    context = row["context"] if row.get("context") is not None else _columns_of(row, "input")[0]
    context = context.tolist() if hasattr(context, "tolist") else context  # numbers, of scbench_mf in a parquet file
    found = []
    for number_of_turn, turn in enumerate(turns):
        asked, answer = _columns_of(turn, "input", "answer")
        answers, task, words = _texts(answer), subset, {"input": asked}
        if subset == "scbench_choice_eng":
            options = [str(option) for option in _columns_of(turn, "options")[0]]
            if len(options) != 4 or answers[0] not in options:
                raise ValueError(f"options are {options}, the answer is {answers[0]!r}; expected four, it among them")
            words |= dict(zip("abcd", options, strict=True))
            answers = (answers[0], "ABCD"[options.index(answers[0])])
        elif subset in ("scbench_summary_with_needles", "scbench_repoqa_and_kv"):
            (task,) = _columns_of(turn, "task")
            if task not in _SCBENCH_MIXED:
                raise ValueError(f"a question's task is {task!r}; expected {', '.join(_SCBENCH_MIXED)}")
            tokens = _SCBENCH_MIXED[task]
        elif subset == "scbench_mf":
            about = re.search(r"The .+ is", asked)
            if about is None:
                raise ValueError(f'a question of scbench_mf is {asked!r}; expected "The ... is" in it')
            what = f"What is {about.group()[:-3].lower()}?\n\n"
            if number_of_turn:
                words["input"] = what + asked
            else:
                lead = what
        found.append(Sample(f"{lead}{context}", "\n\n" + template.format(**words), answers, tokens, task=task))
    return found


def _loft_samples(row: Mapping[str, Any], subset: str) -> list[Sample]:
    query, answers = _columns_of(row, "query_text", "answers")
    # The prompt of LOFT (prompts/constants of its repository), without its examples.
    question = (
        "\n\n====== Now let's start! ======\nBased on the documents above, can you answer the following query? Print out "
        f"the TITLE and ID of the documents you use to answer. Then format the answers into a list.\nquery: {query.strip()}\n"
    )
    return [Sample(row["context"], question, _texts(answers), 256, task=subset)]


def _loft_rows(folder: Path) -> Iterable[Mapping[str, Any]]:
    """The queries of a folder such as rag/nq/32k, each with all its documents."""
    documents = []
    for number_of_document, row in enumerate(_rows(folder / "corpus.jsonl")):
        title, passage = (str(text).strip() for text in _columns_of(row, "title_text", "passage_text"))
        documents.append(
            f"ID: {number_of_document} | TITLE: {title} | CONTENT: {passage} | END ID: {number_of_document}"
        )
    context = (
        "You will be given a list of documents. You need to read carefully and understand all of them. Then you will be given "
        "a query, and your goal is to answer the query based on the documents you have read.\n\n"
        "Your final answer should be in a list, in the following format:\nFinal Answer: ['answer1', 'answer2', ...]\n"
        "If there is only one answer, it should be in the format:\nFinal Answer: ['answer']\n\n"
        + "\n\n".join(documents)
    )
    for row in _rows(folder / "dev_queries.jsonl"):
        yield {**row, "context": context}


_HELMET_TOKENS = {
    "json_kv": 100,
    "ruler_niah_mk_2": 50,
    "ruler_niah_mk_3": 100,
    "ruler_niah_mv": 50,
    **dict.fromkeys(["kilt_nq", "kilt_triviaqa", "kilt_hotpotqa", "kilt_popqa"], 20),
}
"""HELMET's recall and retrieval-augmented generation, and their numbers of new tokens."""


def _helmet_samples(row: Mapping[str, Any], subset: str) -> list[Sample]:
    """A question with HELMET's prompt (data.py of its repository). Examples stand before it where its row has them."""
    if subset not in _HELMET_TOKENS:
        raise ValueError(f"helmet has no subset {subset!r}; there are {', '.join(_HELMET_TOKENS)}")
    answers = _texts(row["answer"] if row.get("answer") is not None else row.get("outputs") or row.get("answers"))
    if subset.startswith("kilt"):
        asked, passages = _columns_of(row, "question", "ctxs")
        context = (
            "Use the given documents to write a concise and short answer to the question. Write your answer in the following "
            "format:\nAnswer: [answer]\n\n"
            + "\n\n".join(f"Document (Title: {passage['title']}): {passage['text']}" for passage in passages)
        )
        question, prefix = f"\n\nQuestion: {asked}", "\nAnswer:"
    elif subset == "json_kv":
        context, asked, demos = _columns_of(row, "context", "question", "demos")
        examples = "".join(f"Key: {key}\nCorresponding value: {value}\n\n" for key, value in demos[:2])
        question = f"\n\n{_JSON_LOOKUP}{examples}Key: {asked}"
        prefix = "\nCorresponding value:"
    else:
        context, asked, kind = _columns_of(row, "context", "query", "type_needle_v")
        several = subset == "ruler_niah_mv"
        what, be = (f"all the special magic {kind}", "are") if several else (f"the special magic {kind}", "is")
        context = (
            f"{'Some' if several else 'A'} special magic {kind} {be} hidden within the following text. Make sure to memorize "
            f"it. I will quiz you about the {kind} afterwards.\n{context}"
        )
        question = f"\nWhat {be} {what} for {asked} mentioned in the provided text?"
        prefix = f"\nThe special magic {kind} for {asked} mentioned in the provided text {be}"
    return [Sample(context, question, answers, _HELMET_TOKENS[subset], answer_prefix=prefix, task=subset)]


def _helmet_score(prediction: str, sample: Sample) -> float:
    if sample.task.startswith("ruler"):
        return contains_all(prediction, sample)
    # HELMET stops the answers of kilt at the end of a line.
    return (_first_line(substring_match) if sample.task.startswith("kilt") else substring_match)(prediction, sample)


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
        "Maxwell-Jia/AIME_2024",
        ("default",),
        final_number,
        "train",
        {"Problem": "question", "Answer": "answer"},
        max_new_tokens=32000,
    ),
    "aime2025": Benchmark(
        "math-ai/aime25", ("default",), final_number, "test", {"problem": "question"}, max_new_tokens=32000
    ),
    "math500": Benchmark("HuggingFaceH4/MATH-500", ("default",), boxed_formula, samples=_math_samples),
    "gsm8k": Benchmark("openai/gsm8k", ("main", "socratic"), stated_number, samples=_gsm8k_samples),
    "scbench": Benchmark(
        "microsoft/SCBench",
        tuple(_SCBENCH_PROMPTS),
        lambda prediction, sample: _SCBENCH[sample.task](prediction, sample) if sample.task in _SCBENCH else None,
        samples=_scbench_samples,
    ),
    "loft": Benchmark(
        "https://github.com/google-deepmind/loft",
        ("nq", "hotpotqa", "musique", *_LOFT_LISTS),
        lambda prediction, sample: loft_scores(prediction, sample)["subspan_em"],
        samples=_loft_samples,
    ),
    "helmet": Benchmark(
        "https://huggingface.co/datasets/princeton-nlp/HELMET",
        tuple(_HELMET_TOKENS),
        _helmet_score,
        samples=_helmet_samples,
    ),
}


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
        path: a local file (.jsonl, .csv or .parquet) with the published columns, instead of a download; for "loft" a
            folder with corpus.jsonl and dev_queries.jsonl. "loft" and "helmet" need it, because they are published as
            archives. Rows of "scbench", "loft" and "helmet" do not say their subset, so it must be given, too.
        limit: the largest number of rows per subset. A row of "scbench" is a context with several questions, which
            become neighbouring samples, as `reticle.research.evaluate.answer(shared_context=)` expects them.

    Raises:
        ValueError: for unknown names, listing the known ones, and for rows without a question.
    """
    if benchmark not in BENCHMARKS:
        raise ValueError(f"no benchmark {benchmark!r}; there are {', '.join(BENCHMARKS)}")
    chosen = BENCHMARKS[benchmark]

    def samples(rows: Iterable[Mapping[str, Any]], name: str) -> list[Sample]:
        make = chosen.samples or (lambda row, task: [sample_from(row, task, chosen.columns, chosen.max_new_tokens)])
        return [sample for row in itertools.islice(rows, limit) for sample in make(row, name)]

    if path is not None:
        if benchmark == "loft" and subset not in chosen.subsets:
            raise ValueError(f"loft has no subset {subset!r}; there are {', '.join(chosen.subsets)}")
        return samples((_loft_rows if benchmark == "loft" else _rows)(Path(path)), subset or "")
    if subset is not None and subset not in chosen.subsets:
        raise ValueError(f"{benchmark} has no subset {subset!r}; there are {', '.join(chosen.subsets)}")
    if "://" in chosen.hub:
        raise ValueError(f"{benchmark} is published as an archive; expected path=, what it unpacks to ({chosen.hub})")
    try:
        import datasets
    except ImportError:
        raise ImportError(f'"{chosen.hub}" is downloaded by the package `datasets`: pip install datasets') from None
    found: list[Sample] = []
    for name in [subset] if subset is not None else chosen.subsets:
        table = datasets.load_dataset(chosen.hub, None if name == "default" else name, split=chosen.split)
        found += samples(table, name)
    return found


def score(benchmark: str, prediction: str, sample: Sample) -> float | None:
    """The score in [0, 1] by the benchmark's metric for this sample's task; None without answers, and for tasks whose
    published score is not supported (docs/python.md)."""
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


@dataclass(frozen=True)
class _Questions:
    """Texts, and questions about them: (question, answers, places of the texts that hold them, places of texts that are
    about the same)."""

    texts: list[str]
    asked: list[tuple[str, tuple[str, ...], list[int], list[int]]]


def _questions_of(task: str, path: Path) -> _Questions:
    """RULER's qa_1 reads SQuAD (version 2, as JSON), its qa_2 HotpotQA (dev, distractor, as JSON)."""
    data = json.loads(path.read_text(encoding="utf-8"))
    places: dict[str, int] = {}
    asked: list[tuple[str, tuple[str, ...], list[int], list[int]]] = []
    try:
        if task == "qa_1":
            for article in data["data"]:
                about = [places.setdefault(part["context"], len(places)) for part in article["paragraphs"]]
                for part, place in zip(article["paragraphs"], about, strict=True):
                    related = [other for other in about if other != place]
                    asked += [
                        (each["question"], tuple(answer["text"] for answer in each["answers"]), [place], related)
                        for each in part["qas"]
                        if not each.get("is_impossible")
                    ]
        else:
            for row in data:
                texts = [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]]
                about = [places.setdefault(text, len(places)) for text in texts]
                asked.append((row["question"], (row["answer"],), about, []))
    except (KeyError, TypeError, ValueError) as error:
        expected = "SQuAD 2's JSON" if task == "qa_1" else "HotpotQA's JSON (dev, distractor)"
        raise ValueError(f"{path}: {type(error).__name__} {error}; expected {expected} for {task}") from None
    return _Questions(list(places), asked)


def _question_answering(source: _Questions, asked: int, rng: random.Random, units: int) -> Sample:
    """A question among its own texts and `units` others, of the same article first."""
    question, answers, own, related = source.asked[asked]
    others = rng.sample(related, min(units, len(related)))
    if len(others) < units:
        rest = sorted(set(range(len(source.texts))) - {*own, *related})
        others += rng.sample(rest, min(units - len(others), len(rest)))
    chosen = [*own, *others]
    rng.shuffle(chosen)
    documents = "\n\n".join(f"Document {i}:\n{source.texts[place]}" for i, place in enumerate(chosen, 1))
    order = (
        "Answer the question based on the given documents. Only give me the answer and do not output any other words."
    )
    return Sample(
        f"{order}\n\nThe following are given documents.\n\n{documents}",
        f"\n\n{order}\n\nQuestion: {question}",
        answers,
        32,
        " Answer:",
    )


QUESTION_TASKS = ("qa_1", "qa_2")
"""What generate makes of a file of questions: SQuAD 2 and HotpotQA."""


def generate(
    task: str,
    tokenizer: Tokenizer,
    length: int,
    samples: int = 10,
    seed: int = 0,
    source: str | Path | None = None,
) -> list[Sample]:
    """Samples of a generated task whose context, question and answer fill `length` tokens as closely as possible.

    The same seed gives the same texts. Their scores are those of the benchmark "ruler".

    Args:
        task: a key of TASKS, or one of QUESTION_TASKS.
        source: for "qa_1" the JSON file of SQuAD 2, for "qa_2" that of HotpotQA (dev, distractor).

    Raises:
        ValueError: for an unknown task, a length below that of the shortest text, or a source that is missing, not
            wanted, not of the task, or too small.
    """
    if task not in (*TASKS, *QUESTION_TASKS):
        raise ValueError(f"no task {task!r}; there are {', '.join([*TASKS, *QUESTION_TASKS])}")
    if (source is not None) != (task in QUESTION_TASKS):
        raise ValueError(
            f"{task}: source is {source!r}; expected a file of questions for {' and '.join(QUESTION_TASKS)} only"
        )
    questions = None if source is None else _questions_of(task, Path(source))
    order: list[int] = []
    if questions is not None:
        if samples > len(questions.asked):
            raise ValueError(f"{source}: has {len(questions.asked)} questions with answers; samples is {samples}")
        order = random.Random(f"{task} {seed}").sample(range(len(questions.asked)), samples)

    def make(index: int, units: int) -> Sample:
        rng = random.Random(f"{task} {seed} {index}")
        return (
            TASKS[task](rng, units) if questions is None else _question_answering(questions, order[index], rng, units)
        )

    def tokens(index: int, units: int) -> int:
        sample = make(index, units)
        return len(tokenizer.encode(sample.context + sample.question + sample.answer_prefix)) + sample.max_new_tokens

    made = []
    for index in range(samples):
        if tokens(index, 0) > length:
            raise ValueError(f"{task}: the shortest text has {tokens(index, 0)} tokens; length is {length}")
        low, high = 0, 1
        while tokens(index, high) <= length:
            if questions is not None and high > len(questions.texts):
                raise ValueError(
                    f"{source}: all its {len(questions.texts)} texts together are shorter than {length} tokens"
                )
            low, high = high, 2 * high
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (middle, high) if tokens(index, middle) <= length else (low, middle)
        made.append(replace(make(index, low), task=task))
    return made


if __name__ == "__main__":
    from reticle.research import _explain

    _explain(__doc__)
