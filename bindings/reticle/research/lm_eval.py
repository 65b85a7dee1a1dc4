"""Sparse attention in EleutherAI's lm-evaluation-harness: its model `hf`, with patterns attached.

    lm_eval --model reticle --tasks hellaswag \
        --model_args pretrained=DIR,prefill=configs/x_attention.json
    lm_eval --model reticle --tasks gsm8k \
        --model_args pretrained=DIR,generation=configs/quest.json
    lm_eval --model reticle --tasks hellaswag \
        --model_args pretrained=DIR,generation=configs/quest.json,continuation=generation

Versions of the harness that find models of other packages need nothing else (those after 0.4.13). With earlier ones,
`python -m reticle.research.lm_eval` is the same command as `lm_eval`, and knows the model.
"""

from __future__ import annotations

import copy
import inspect
import json
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm.auto import tqdm

from reticle._metrics import DENSITY
from reticle.hf import SparseCache, attach, pipeline_of
from reticle.hf._attach import STAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reticle.hf._attach import Config


class _Densities:
    """Mean densities by stage, over calls and layers; attention logs to it."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {stage: (0.0, 0) for stage in STAGES}

    def wants(self, metric: str, /) -> bool:
        return metric == DENSITY

    def log(self, _: str, value: float, /, **where: Any) -> None:
        total, count = self._sums[where["stage"]]
        self._sums[where["stage"]] = total + value, count + 1

    def mean(self, stage: str) -> float | None:
        total, count = self._sums[stage]
        return total / count if count else None


@register_model("reticle")
class ReticleLM(HFLM):  # type: ignore[misc]  # the harness is untyped
    """The harness's Hugging Face model with its attention computed by Reticle.

    `generate_until` tasks prefill their prompts by the pattern `prefill` and generate by `generation`, as
    reticle.hf.attach does. Loglikelihood tasks generate nothing: their whole input is one prompt for the pattern
    `prefill`, unless `continuation="generation"`.

    Results contain both patterns and the densities that they had, under config, model "reticle".
    """

    def __init__(
        self,
        pretrained: Any,
        *,
        prefill: Config = None,
        generation: Config = None,
        continuation: str | None = None,
        **arguments: Any,
    ) -> None:
        """Loads a model as HFLM does, and attaches patterns to it.

        Args:
            pretrained: a folder, a name on the Hub, or a model of transformers.
            prefill, generation: patterns as in reticle.hf.attach; on the command line, JSON files. None: dense.
            continuation: the stage that computes the continuations of loglikelihood tasks. "prefill": context and
                continuation are one prompt. "generation": the context, its last token excepted, is prefilled; that
                token and the continuation follow through the pattern `generation`, which thus computes every logit that
                counts, those of answers of one token included. Requests with equal contexts in a row share one prefill.
                None: "prefill", and loglikelihood tasks are refused when there is a generation pattern, which they
                would not use.
            arguments: those of lm_eval.models.huggingface.HFLM. Loglikelihood requests are computed one by one,
                whatever the batch size, because patterns choose by the tokens of a whole sequence.

        Raises:
            TypeError: for an argument that neither Reticle, HFLM nor transformers knows.
            ValueError: for an encoder-decoder, another `continuation`, or a pattern that is not one.
        """
        if continuation not in (None, *STAGES):
            raise ValueError(f'continuation is {continuation!r}; expected "prefill" or "generation"')
        if "attn_implementation" in arguments:
            raise TypeError("attn_implementation was given; Reticle computes the attention: expected no such argument")
        own = [name for name in inspect.signature(ReticleLM.__init__).parameters if name not in ("self", "arguments")]
        known = [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
        others = sorted(set(arguments) - set(known))
        expected = f"expected {', '.join(own)}, or those of lm_eval's model hf: {', '.join(known[1:])}"
        if others and not isinstance(pretrained, str):
            raise TypeError(f"model arguments {', '.join(others)} are not known for a model that is loaded; {expected}")
        patterns: dict[str, Any] = {"prefill": pipeline_of(prefill), "generation": pipeline_of(generation)}
        try:
            super().__init__(pretrained, **arguments)
        except TypeError as error:
            if not others:
                raise
            raise TypeError(
                f"model arguments {', '.join(others)}: transformers does not accept them ({error}); {expected}"
            ) from error
        if self.backend != "causal":
            raise ValueError(f"{type(self.model).__name__} has an encoder; expected a model that only decodes")
        self._densities = _Densities()
        self._patterns = {stage: json.loads(pattern.to_json()) for stage, pattern in patterns.items()}
        self._generation_is_given = generation is not None
        self._continuation = continuation
        self._observes = patterns["generation"].observed_queries > 0
        self._attached = attach(self.model, **patterns, metrics=self._densities)
        self._prefilled: tuple[list[int], SparseCache] | None = None

    def get_model_info(self) -> dict[str, Any]:
        """What the harness records of the model, and under "reticle" the patterns, where continuations were computed,
        and the mean density of each stage (None where it did not run)."""
        densities = {f"{stage}_density": self._densities.mean(stage) for stage in STAGES}
        return {
            **super().get_model_info(),
            "reticle": {**self._patterns, "continuation": self._continuation or "prefill", **densities},
        }

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """For each (texts, context, continuation): the log likelihood of the continuation in nats, and whether greedy
        decoding would say it."""
        if self._generation_is_given and self._continuation is None:
            raise ValueError(
                "a loglikelihood task, which would not use the generation pattern; expected the argument "
                "continuation=generation, or continuation=prefill to compute such tasks by the prefill pattern"
            )
        answers = []
        for texts, context, continuation in tqdm(requests, disable=disable_tqdm or self.rank != 0):
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation has {len(continuation)} tokens; expected at most the model's {self.max_length}"
                )
            tokens = (context + continuation)[-(self.max_length + 1) :]  # HFLM cuts off the same tokens
            logits = self._logits(tokens[:-1], len(continuation))
            logs = functional.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
            wanted = torch.tensor(continuation, device=logs.device)
            chosen = logs.gather(1, wanted[:, None]).sum().item()
            answers.append((chosen, bool((logs.argmax(-1) == wanted).all())))
            if texts is not None:  # windows of loglikelihood_rolling have none
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        self._prefilled = None
        return answers

    def _logits(self, tokens: list[int], last: int) -> torch.Tensor:
        """The logits (last, vocabulary) of the last tokens."""
        if self._continuation != "generation":
            with self._attached.stage("prefill"):
                return self._forward(tokens, last)
        before, after = tokens[:-last], tokens[-last:]
        if not before and self._observes:
            raise ValueError(
                "a request without context: the generation pattern chooses what to keep of a prompt, and there is none; "
                "expected continuation=prefill for such tasks"
            )
        if self._prefilled is None or self._prefilled[0] != before:
            cache = SparseCache(config=self.model.config)
            if before:
                with self._attached.stage("prefill"):
                    self._forward(before, 1, cache)
            self._prefilled = before, cache
        with self._attached.stage("generation"):
            return self._forward(after, last, copy.deepcopy(self._prefilled[1]))

    @torch.no_grad()
    def _forward(self, tokens: list[int], last: int, cache: SparseCache | None = None) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.device)
        mixed = self.mixed_precision_dtype
        with torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            found = self.model(ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=last)
        logits: torch.Tensor = found.logits[0, -last:]
        return logits


def main() -> None:
    """The harness's command, with the model "reticle" known to it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
