"""Measures what sparse patterns cost a Hugging Face model: answers to long-context questions, and loss.

    from reticle.research import benchmarks, evaluate

    samples = benchmarks.generate("niah_multikey", tokenizer, length=8192, samples=50)
    result = evaluate.answer(
        model, tokenizer, samples, benchmark="ruler", generation="configs/quest.json", output_dir="results/quest"
    )
    print(result.overall_score, result.task_scores)

The pipeline `prefill` (dense by default) computes the context; `generation` computes the question and the answer, as in
sparse-attention-hub. Results are files: raw_results.csv gets a row as soon as a sample is done, so that a stopped run
can be resumed; metrics.json; config.json; micro_metrics.jsonl (density and error, on request).
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import itertools
import json
import os
import time
from collections import defaultdict
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

import reticle._core as _core
from reticle.hf import SparseCache, attach, pipeline_of
from reticle.hf._attach import STAGES
from reticle.research import benchmarks
from reticle.research.metrics import MetricLogger

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

    from reticle import Mask
    from reticle._metrics import MetricLog
    from reticle.hf import Attachment
    from reticle.hf._attach import Config
    from reticle.research.benchmarks import Sample, Tokenizer

_CONVERSATIONS = ("turns", "dialogue")
_SEPARATOR = "\x1e reticle: the context ends here \x1e"
_COLUMNS = ("index", "task", "question", "answers", "predicted_answer", "score", "context_tokens", "density", "seconds")


class ByteTokenizer:
    """A tokenizer whose tokens are bytes, for byte-level models such as the bundled one."""

    eos_token_id: int | None = None
    chat_template: str | None = None

    @overload
    def encode(self, text: str, /, *, add_special_tokens: bool = True, return_tensors: None = None) -> list[int]: ...
    @overload
    def encode(
        self, text: str, /, *, add_special_tokens: bool = True, return_tensors: Literal["pt"]
    ) -> torch.Tensor: ...
    def encode(
        self, text: str, /, *, add_special_tokens: bool = True, return_tensors: Literal["pt"] | None = None
    ) -> list[int] | torch.Tensor:
        """The bytes of the text in UTF-8; with return_tensors="pt" a tensor (1, length), as transformers' tokenizers
        return it."""
        if return_tensors not in (None, "pt"):
            raise ValueError(f'return_tensors is {return_tensors!r}; expected None or "pt"')
        tokens = list(text.encode())
        return tokens if return_tensors is None else torch.tensor([tokens])

    def __call__(self, text: str, /, *, return_tensors: Literal["pt"]) -> dict[str, torch.Tensor]:
        """{input_ids, attention_mask}, (1, length) each."""
        ids = self.encode(text, return_tensors=return_tensors)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def decode(self, token_ids: Iterable[int], /) -> str:
        """The text of the bytes; invalid UTF-8 becomes replacement characters."""
        return bytes(int(token) for token in token_ids).decode(errors="replace")


@dataclass(frozen=True)
class Result:
    """Scores are means in [0, 100]; None if nothing could be scored."""

    overall_score: float | None
    task_scores: dict[str, float | None]
    samples: int
    density: float
    """Keys that questions and answers attended to, over those that causality left."""


def _progress(count: int, shown: bool, label: str) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=count, desc=label, disable=not shown)


def _encode(tokenizer: Any, sample: Sample, chat_template: bool) -> tuple[list[int], list[int]]:
    """Tokens of the context and of the text after it. Special tokens occur at the beginning only."""
    before, after = sample.context, sample.question
    special = True
    if chat_template:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("chat_template was asked for, and the tokenizer has none")
        turn = [{"role": "user", "content": before + _SEPARATOR + after}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, after = text.split(_SEPARATOR)
        special = False  # the template contains them
    context = tokenizer.encode(before, add_special_tokens=special)
    return context, tokenizer.encode(after + sample.answer_prefix, add_special_tokens=False)


def _shortened(tokens: list[int], longest: int | None, truncation: str) -> list[int]:
    if longest is None or len(tokens) <= longest:
        return tokens
    if truncation == "first":
        return tokens[:longest]
    return tokens[: (longest + 1) // 2] + tokens[len(tokens) - longest // 2 :]


def _follow_up(tokenizer: Any, asked: Sequence[tuple[Sample, str]], sample: Sample, chat_template: bool) -> list[int]:
    """Tokens that follow the last question of a conversation: the answer that was given to it, and the next question."""
    last, said = asked[-1]
    text = said + sample.question
    if chat_template:
        turns: list[dict[str, str]] = []
        for number, (earlier, answer) in enumerate(asked):
            question = earlier.question if number else earlier.context + earlier.question
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": earlier.answer_prefix + answer})
        turns.append({"role": "user", "content": sample.question})
        before, whole = (
            tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=True)
            for part in (turns[:-2], turns)
        )
        before += last.answer_prefix
        if not whole.startswith(before):
            raise ValueError(
                "the tokenizer's chat template changes earlier turns when a turn is added, so a cache cannot continue; "
                'expected another template, chat_template=False, or shared_context="requests"'
            )
        text = whole[len(before) :]
    tokens: list[int] = tokenizer.encode(text + sample.answer_prefix, add_special_tokens=False)
    return tokens


@torch.no_grad()
def _step(model: Any, cache: SparseCache, tokens: list[int]) -> torch.Tensor:
    """The logits (vocabulary) after tokens that are appended to the cache."""
    ids = torch.tensor([tokens], device=model.device)
    logits: torch.Tensor = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    return logits


def _continue(model: Any, cache: SparseCache, logits: torch.Tensor | None, count: int, stops: set[int]) -> list[int]:
    """Greedy tokens after those in the cache, whose last logits are given. Stops before a stop token, so the result may
    be empty."""
    generated: list[int] = []
    while logits is not None and len(generated) < count:
        token = int(logits.argmax())
        if token in stops:
            break
        generated.append(token)
        if len(generated) < count:
            logits = _step(model, cache, [token])
    return generated


def predictions(
    model: Any,
    tokenizer: Any,
    attached: Attachment,
    samples: Sequence[Sample],
    *,
    conversation: str | None = None,
    max_context_length: int | None = None,
    truncation: str = "first",
    chat_template: bool = False,
) -> Iterator[tuple[str, int]]:
    """An attached model's greedy answers to questions about one context, each with the number of context tokens.

    The context, which is that of the first sample, is prefilled once. Its cache and the states of the maskers are
    copied for what must not be seen by the next question: one copy less than there are questions, each of the size of
    the cache.

    Args:
        conversation: None: each question directly follows the context. "turns": it also follows the earlier questions
            and their reference answers (the first of `answers`). "dialogue": it follows the earlier questions and the
            model's answers.

        The other arguments are those of `answer`.

    Raises:
        ValueError: for "turns" with a sample that has no answers, or a chat template that cannot be continued.
    """
    if not samples:
        return
    context, rest = _encode(tokenizer, samples[0], chat_template)
    context = _shortened(context, max_context_length, truncation)
    stops = _stops(model, tokenizer)
    cache = SparseCache()
    after_context = _step(model, cache, context) if context else None
    asked: list[tuple[Sample, str]] = []
    for number, sample in enumerate(samples):
        is_last = number == len(samples) - 1
        if asked and conversation:
            rest = _follow_up(tokenizer, asked, sample, chat_template)
        elif asked:
            rest = _encode(tokenizer, sample, chat_template)[1]
        sequence = cache if is_last or conversation else copy.deepcopy(cache)
        logits = after_context
        if rest:
            with attached.stage("generation"):
                logits = _step(model, sequence, rest)
        if conversation and not is_last:
            sequence = copy.deepcopy(cache)
        prediction = str(tokenizer.decode(_continue(model, sequence, logits, sample.max_new_tokens, stops)))
        del sequence  # before the next copy is made
        if conversation == "turns" and not is_last and not sample.answers:
            raise ValueError(
                f"the question {sample.question!r} has no answers; expected one for the next turn to follow"
            )
        asked.append((sample, sample.answers[0] if conversation == "turns" and sample.answers else prediction))
        yield prediction, len(context)


def predict(
    model: Any,
    tokenizer: Any,
    attached: Attachment,
    sample: Sample,
    *,
    max_context_length: int | None = None,
    truncation: str = "first",
    chat_template: bool = False,
) -> tuple[str, int]:
    """An attached model's greedy answer to a sample, and the number of context tokens; the arguments are those of
    `answer`."""
    (found,) = predictions(
        model,
        tokenizer,
        attached,
        [sample],
        max_context_length=max_context_length,
        truncation=truncation,
        chat_template=chat_template,
    )
    return found


def _stops(model: Any, tokenizer: Any) -> set[int]:
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), tokenizer):
        token = getattr(holder, "eos_token_id", None)
        found |= set(token) if isinstance(token, (list, tuple)) else {token} if token is not None else set()
    return found


def _digest(*parts: Any) -> str:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:16]


def _digest_of_model(model: Any, tokenizer: Any) -> str:
    """A digest of the model's type, of each weight's extents and some of its numbers, and of the tokens of one
    sentence."""
    weights = []
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 16)].float().cpu().tolist()
        weights.append((name, tuple(weight.shape), str(weight.dtype), some))
    words = tokenizer.encode("The quick brown fox: 0123456789.")
    return _digest(type(model).__name__, weights, words, getattr(tokenizer, "chat_template", None))


def _digest_of_samples(samples: Sequence[Sample]) -> str:
    return _digest(*(repr(sample) for sample in samples))


class _Results:
    """raw_results.csv of a run, and the settings that produced it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.json"
        if config.exists():
            before = json.loads(config.read_text())
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                raise ValueError(
                    f"{folder}: holds results of other settings ({', '.join(changed)}); choose another output_dir"
                )
        _core.write_file(config, json.dumps(dict(settings), indent=1).encode())
        self._path = folder / "raw_results.csv"
        self.rows: dict[int, dict[str, str]] = {}
        if self._path.exists():
            text = self._path.read_bytes().decode("utf-8", errors="replace")
            whole = list(csv.DictReader(io.StringIO(text, newline="")))
            if whole and not text.endswith("\n"):
                del whole[-1]  # the row was cut off when the run was stopped; its sample runs again
            self.rows = {int(row["index"]): row for row in whole}
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows.values())
        _core.write_file(self._path, table.getvalue().encode())

    def add(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, _COLUMNS).writerow(row)
            file.flush()
            os.fsync(file.fileno())
        self.rows[int(row["index"])] = {key: str(value) for key, value in row.items()}


def _summary(rows: Mapping[int, Mapping[str, Any]]) -> Result:
    by_task: dict[str, list[float]] = defaultdict(list)
    for row in rows.values():
        by_task[row["task"]] += [float(row["score"])] if row["score"] not in ("", None) else []
    means = {task: 100 * sum(scores) / len(scores) if scores else None for task, scores in by_task.items()}
    known = [mean for mean in means.values() if mean is not None]
    densities = [float(row["density"]) for row in rows.values()]
    return Result(sum(known) / len(known) if known else None, means, len(rows), sum(densities) / max(1, len(densities)))


@dataclass(frozen=True)
class _Run:
    """The settings of `answer` by which samples become rows of results. Picklable, for Ray."""

    benchmark: str
    stages: Mapping[str, Any]
    conversation: str | None
    max_context_length: int | None
    truncation: str
    chat_template: bool

    def rows(
        self,
        model: Any,
        tokenizer: Any,
        groups: Iterable[Sequence[tuple[int, Sample]]],
        log: MetricLog | None = None,
    ) -> Generator[dict[str, Any]]:
        """A row to each (index, sample). The samples of a group share their context."""
        for group in groups:
            with attach(model, **self.stages, metrics=log) as attached:
                answers = predictions(
                    model,
                    tokenizer,
                    attached,
                    [sample for _, sample in group],
                    conversation=self.conversation,
                    max_context_length=self.max_context_length,
                    truncation=self.truncation,
                    chat_template=self.chat_template,
                )
                attended = (0.0, 0.0)
                for index, sample in group:
                    began, before = time.perf_counter(), attended
                    prediction, context_tokens = next(answers)
                    seconds = time.perf_counter() - began
                    attended = attached.generation.entries, attached.generation.visible
                    entries, visible = (now - then for now, then in zip(attended, before, strict=True))
                    score = benchmarks.score(self.benchmark, prediction, sample)
                    yield {
                        "index": index,
                        "task": sample.task,
                        "question": sample.question,
                        "answers": json.dumps(sample.answers),
                        "predicted_answer": prediction,
                        "score": "" if score is None else score,
                        "context_tokens": context_tokens,
                        "density": entries / visible if visible else 1.0,
                        "seconds": round(seconds, 3),
                    }


class _Worker:
    """An actor of Ray: a copy of the model, which answers groups of samples."""

    def __init__(self, run: _Run, model: Any, tokenizer: Any) -> None:
        self._run, self._model, self._tokenizer = run, model, tokenizer

    def rows(self, group: Sequence[tuple[int, Sample]]) -> list[dict[str, Any]]:
        return list(self._run.rows(self._model, self._tokenizer, [group]))


def _over_ray(
    run: _Run, model: Any, tokenizer: Any, groups: Sequence[Sequence[tuple[int, Sample]]]
) -> Generator[dict[str, Any]]:
    """The rows of all groups in the order in which they are done. A cluster that this starts is shut down."""
    if not groups:
        return
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise ImportError(f"{error}; ray=True needs it: pip install ray") from None
    starts = not ray.is_initialized()
    if starts:
        ray.init()
    try:
        on_gpu = model.device.type == "cuda"
        count = int(ray.cluster_resources().get("GPU", 0)) if on_gpu else sum(node["Alive"] for node in ray.nodes())
        if count == 0:
            raise ValueError("the model is on a GPU, and the Ray cluster has none; move one of them")
        worker = ray.remote(num_gpus=int(on_gpu), scheduling_strategy="SPREAD")(_Worker)
        shared = [ray.put(held) for held in (run, model, tokenizer)]
        pool = ActorPool([worker.remote(*shared) for _ in range(min(count, len(groups)))])
        for rows in pool.map_unordered(lambda actor, group: actor.rows.remote(group), groups):
            yield from rows
    finally:
        if starts:
            ray.shutdown()


def _groups(samples: Sequence[Sample], shared_context: str | None) -> list[list[int]]:
    """The indices of samples that share a prefilled context: neighbours with equal contexts, or each alone. Samples
    without context have nothing to share."""
    keys = [sample.context or index for index, sample in enumerate(samples)]
    if shared_context is None:
        return [[index] for index in range(len(samples))]
    return [list(group) for _, group in itertools.groupby(range(len(samples)), key=keys.__getitem__)]


def answer(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    samples: Sequence[Sample],
    *,
    benchmark: str = "ruler",
    prefill: Config = None,
    generation: Config = None,
    output_dir: str | Path | None = None,
    max_context_length: int | None = None,
    truncation: str = "first",
    chat_template: bool = False,
    shared_context: str | None = None,
    metrics: bool | MetricLog = False,
    ray: bool = False,
    progress: bool = True,
) -> Result:
    """Answers every sample greedily and scores the answers.

    Args:
        samples: from reticle.research.benchmarks, or your own.
        benchmark: a key of reticle.research.benchmarks.BENCHMARKS, which determines the scores.
        prefill, generation: pipelines as in reticle.hf.attach, for the context, and for the question and the answer.
        output_dir: folder for the results. A stopped run is resumed from there; the model, the samples and the settings
            must be the same. None: nothing is written.
        max_context_length: the largest number of context tokens to keep; None: all.
        truncation: "first" keeps the first tokens; "middle" drops the middle and keeps the first and the last.
        chat_template: put context and question into the tokenizer's chat template.
        shared_context: what neighbouring samples with equal contexts share. None: nothing, each prefills its context.
            Otherwise the context is prefilled, and compressed, once: with "requests" each question gets a copy of the
            cache (kvpress's query_aware=False, SCBench's multi-request mode); with "turns" each follows the earlier
            questions and their reference answers (SCBench's multi-turn mode); with "dialogue" it follows the earlier
            questions and the model's own answers.
        metrics: log densities, output errors, which cost a dense attention per call, and scores. True: as JSON lines,
            micro_metrics.jsonl in the output_dir. Or a logger of reticle.research.metrics, which stays open.
        ray: spread the contexts over a Ray cluster: an actor to each GPU, or to each machine for a model on the CPU,
            whose attention uses all its cores. The answers are the same; metrics are not collected from there.

    Raises:
        ValueError: for unknown settings, or an output_dir with results of other settings.
    """
    if benchmark not in benchmarks.BENCHMARKS:
        raise ValueError(f"no benchmark {benchmark!r}; there are {', '.join(benchmarks.BENCHMARKS)}")
    if truncation not in ("first", "middle"):
        raise ValueError(f'truncation is {truncation!r}; expected "first" or "middle"')
    if shared_context not in (None, "requests", *_CONVERSATIONS):
        raise ValueError(f'shared_context is {shared_context!r}; expected None, "requests", "turns" or "dialogue"')
    if metrics is True and output_dir is None:
        raise ValueError("metrics need an output_dir to be written to")
    if metrics and ray:
        raise ValueError("metrics are not collected over Ray; expected metrics=False with ray=True")
    stages: dict[str, Any] = {"prefill": pipeline_of(prefill), "generation": pipeline_of(generation)}
    results = None
    if output_dir is not None:
        settings = {
            "benchmark": benchmark,
            "max_context_length": max_context_length,
            "truncation": truncation,
            "chat_template": chat_template,
            "shared_context": shared_context,
            "samples": len(samples),
            "samples_digest": _digest_of_samples(samples),
            "model_digest": _digest_of_model(model, tokenizer),
            **{stage: json.loads(pipeline.to_json()) for stage, pipeline in stages.items()},
        }
        results = _Results(Path(output_dir), settings)
    rows: dict[int, Mapping[str, Any]] = dict(results.rows) if results else {}
    conversation = shared_context if shared_context in _CONVERSATIONS else None
    run = _Run(benchmark, stages, conversation, max_context_length, truncation, chat_template)
    groups = []
    for group in _groups(samples, shared_context):
        missing = [index for index in group if index not in rows]
        if missing:  # of a conversation, the turns before the missing ones are repeated
            groups.append([(index, samples[index]) for index in (group if conversation else missing)])
    logger: Any = nullcontext(metrics or None)
    if metrics is True and output_dir:
        logger = MetricLogger(Path(output_dir) / "micro_metrics.jsonl")
    with logger as log, _progress(len(samples), progress, benchmark) as bar:
        bar.update(len(rows))
        found = _over_ray(run, model, tokenizer, groups) if ray else run.rows(model, tokenizer, groups, log)
        with closing(found):  # detaches the model, whatever happens here
            for row in found:
                index = row["index"]
                if index in rows:
                    continue
                rows[index] = row
                bar.update()
                if results:
                    results.add(row)
                if log is not None and row["score"] != "":
                    log.log("score", row["score"], task=row["task"], index=index)
    result = _summary(rows)
    if output_dir is not None:
        _core.write_file(Path(output_dir, "metrics.json"), json.dumps(result.__dict__, indent=1).encode())
    return result


@dataclass(frozen=True)
class Loss:
    """Means over the examples, in the form that nano-sparse-attention reports."""

    loss: float
    """Cross entropy of the last output_length tokens, nats."""
    prefill_sparsity: float
    generation_sparsity: float
    """Of the queries of the last output_length tokens, the very last included, which predicts what is not known."""
    examples: int
    masks: Mapping[str, list[Mask]] = field(default_factory=dict, repr=False)
    """Of the first example, where asked for: by stage a mask to each layer, the stage's queries below each other."""


def tokens_of(example: Mapping[str, Any], number: int) -> tuple[torch.Tensor, int]:
    """The real tokens (1, length) of an example {input_ids, attention_mask, output_length}, and the number of tokens at
    their end that are generated.

    Raises:
        ValueError: for several sequences in one example, an attention mask of other extents, or an output_length that
            leaves no prompt or no token.
    """
    ids = torch.as_tensor(example["input_ids"])
    if ids.numel() != ids.shape[-1]:
        raise ValueError(
            f"example {number}: input_ids are {tuple(ids.shape)}; expected one sequence, (length) or (1, length), to an example"
        )
    ids = ids.reshape(1, -1)
    if example.get("attention_mask") is not None:
        counts = torch.as_tensor(example["attention_mask"])
        if counts.numel() != ids.shape[1]:
            raise ValueError(
                f"example {number}: attention_mask is {tuple(counts.shape)}; expected as many numbers as input_ids, {ids.shape[1]}"
            )
        ids = ids[:, counts.reshape(-1).bool()]
    output = example["output_length"]
    if int(output) != output:
        raise ValueError(f"example {number}: output_length is {output}; expected a whole number of tokens")
    output = int(output)
    if not 0 < output < ids.shape[1]:
        raise ValueError(f"example {number}: output_length is {output} of {ids.shape[1]} tokens")
    return ids, output


def _by_layer(masks: list[tuple[int, Mask]]) -> list[Mask]:
    """One mask per layer: the masks of its calls stacked along queries, with the number of keys of the last call."""
    found: dict[int, list[Mask]] = defaultdict(list)
    for layer, mask in masks:
        found[layer].append(mask)
    joined = []
    for _, calls in sorted(found.items()):
        keys = calls[-1].shape[3]
        first, *others = (mask.append_keys(keys - mask.shape[3]) for mask in calls)
        for mask in others:
            first = first.append_queries(mask)
        joined.append(first)
    return joined


@torch.no_grad()
def loss(
    model: Any,
    dataset: Iterable[Mapping[str, Any]],
    *,
    prefill: Config = None,
    generation: Config = None,
    masks: bool = False,
    progress: bool = True,
) -> Loss:
    """Loss of the last tokens of each example. They attend to earlier tokens by the pipeline `generation`; the tokens
    before them attend to each other by `prefill`.

    Args:
        dataset: any iterable of {input_ids, attention_mask, output_length}: tokens (length) or (1, length), which of
            them are real (left padding is removed), and the number of tokens at the end that are generated.
        masks: keep the masks of the first example.

    Raises:
        ValueError: when an output_length leaves no prompt or no token.
    """
    import torch.nn.functional as functional

    found: list[tuple[float, float, float]] = []
    kept: dict[str, list[Mask]] = {}
    examples = list(dataset)
    bar = _progress(len(examples), progress, "loss")
    for number, example in enumerate(examples):
        ids, output = tokens_of(example, number)
        ids, prompt = ids.to(model.device), ids.shape[1] - output
        cache = SparseCache()
        keeps = masks and number == 0
        with attach(model, prefill=prefill, generation=generation, keep_masks=keeps) as attached:
            first = model(ids[:, :prompt], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:]
            # The last token predicts nothing that is known, but it attends like the others.
            with attached.stage("generation"):
                others = model(ids[:, prompt:], past_key_values=cache, use_cache=True).logits[:, :-1]
            if keeps:
                kept = {stage: _by_layer(attached.masks(stage)) for stage in STAGES}
        logits = torch.cat((first, others), 1)[0].float()
        nats = functional.cross_entropy(logits, ids[0, prompt:]).item()
        found.append((nats, attached.prefill.mean_sparsity, attached.generation.mean_sparsity))
        bar.update()
    bar.close()
    if not found:
        raise ValueError("the data set has no examples")
    nats, before, after = (sum(column) / len(found) for column in zip(*found, strict=True))
    return Loss(nats, before, after, len(found), kept)


if __name__ == "__main__":
    from reticle.research import _explain

    _explain(__doc__)
