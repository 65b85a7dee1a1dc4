"""sparse-attention-hub's adapter for Hugging Face models: answers questions about a context, through `reticle.hf`.

    adapter = ModelAdapterHF("meta-llama/Llama-3.2-1B-Instruct", ResearchAttentionConfig(masker_configs=[...]))
    answer = adapter.process_request(Request(context=text, questions="Who wrote it?"), {"max_new_tokens": 20}, {}).responses

The context is prefilled densely; the maskers choose keys for questions and answers, token by token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reticle.hub.attention import ResearchAttention, ResearchAttentionConfig, SparseAttention, SparseAttentionConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from reticle.hf import Attachment


@dataclass
class Request:
    """Questions about a context, each answered independently of the others."""

    context: str
    questions: str | list[str]
    answer_prefix: str = ""


@dataclass
class RequestResponse:
    """An answer if the request had one question as a string, or a list of answers if it had a list."""

    responses: str | list[str]


class ModelHubAdapterInterface(ABC):
    """Interface of adapters that answer requests."""

    @abstractmethod
    def process_request(
        self,
        request: Request,
        generation_kwargs: dict[str, Any] | None = None,
        request_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> RequestResponse:
        """Answers the questions of a request."""


class SparseAttentionAdapterInterface(ABC):
    """Interface of adapters that attend sparsely."""

    @abstractmethod
    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """`sparse_attention` as an attention function of transformers."""


class ModelAdapter(ModelHubAdapterInterface, SparseAttentionAdapterInterface):
    """Base of adapters for models."""

    @abstractmethod
    def enable_sparse_mode(self) -> AbstractContextManager[None]:
        """A context in which the model attends sparsely."""


class ModelAdapterHF(ModelAdapter):
    """A model, its tokenizer, and the attention that generates its answers."""

    def __init__(
        self,
        model_name: str,
        sparse_attention_config: SparseAttentionConfig | None,
        model_kwargs: dict[str, Any] | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        device: str | None = None,
        *,
        model: Any = None,
        tokenizer: Any = None,
    ) -> None:
        """
        Args:
            model_name: a name or folder for transformers' from_pretrained.
            sparse_attention_config: a ResearchAttentionConfig; None: dense attention.
            model_kwargs, tokenizer_kwargs: arguments for from_pretrained.
            device: default: a GPU if torch finds one, else the CPU.
            model, tokenizer: used instead of those that from_pretrained returns.

        Raises:
            TypeError: for a config of another type.
        """
        if sparse_attention_config is not None and not isinstance(sparse_attention_config, ResearchAttentionConfig):
            raise TypeError(f"Expected ResearchAttentionConfig, got {type(sparse_attention_config).__name__}")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model_name, self.sparse_attention_config = model_name, sparse_attention_config
        self.sparse_attention = (
            None if sparse_attention_config is None else ResearchAttention.create_from_config(sparse_attention_config)
        )
        self.model_kwargs, self.tokenizer_kwargs = dict(model_kwargs or {}), dict(tokenizer_kwargs or {})
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        load: Any = AutoModelForCausalLM.from_pretrained
        loaded = load(model_name, **self.model_kwargs) if model is None else model
        self.model: Any = loaded.to(self.device).eval()
        self.tokenizer: Any = (
            AutoTokenizer.from_pretrained(model_name, **self.tokenizer_kwargs) if tokenizer is None else tokenizer
        )

        if getattr(self.tokenizer, "pad_token", "") is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._attached: Attachment | None = None

    @property
    def torch_dtype(self) -> Any:
        """The dtype of the model."""
        return self.model.dtype

    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """`sparse_attention` as an attention function of transformers: (module, queries, keys, values, attention_mask,
        scaling, dropout, **kwargs) -> (output, weights). It requires `sparse_meta_data`; `layer_idx` comes from the
        module."""

        def attend(
            module: Any,
            queries: Tensor,
            keys: Tensor,
            values: Tensor,
            attention_mask: Tensor | None,
            scaling: float = 1.0,
            dropout: float = 0.0,
            **kwargs: Any,
        ) -> tuple[Tensor, Tensor | None]:
            if kwargs.get("sparse_meta_data") is None:
                raise ValueError("sparse_meta_data must be provided while calling model.forward()")
            if hasattr(module, "layer_idx"):
                kwargs = {"layer_idx": module.layer_idx, **kwargs}
            return sparse_attention.custom_attention(
                module, queries, keys, values, attention_mask, scaling, dropout, **kwargs
            )

        return attend

    def _attach(self, *, prefill: bool) -> Attachment:
        import reticle.hf

        config = self.sparse_attention_config
        pattern = config.masker_configs if isinstance(config, ResearchAttentionConfig) else None
        return reticle.hf.attach(self.model, prefill=pattern if prefill else None, generation=pattern)

    @contextmanager
    def enable_sparse_mode(self) -> Iterator[None]:
        """A context in which the maskers choose all keys that the model attends to, in prompts too. Passing
        `sparse_meta_data` to the model is unnecessary: masker states live with the sequence's cache.

        Raises:
            RuntimeError: when the adapter has no sparse attention.
        """
        if self.sparse_attention_config is None:
            raise RuntimeError("Cannot enable sparse mode: sparse attention is not available")
        if self._attached is not None:  # nested contexts
            yield
            return

        def without_metadata(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {word: value for word, value in kwargs.items() if word != "sparse_meta_data"}

        hook = self.model.register_forward_pre_hook(without_metadata, with_kwargs=True)
        try:
            with self._attach(prefill=True) as self._attached:
                yield
        finally:
            self._attached = None
            hook.remove()

    def process_request(
        self,
        request: Request,
        generation_kwargs: dict[str, Any] | None = None,
        request_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> RequestResponse:
        """Answers, greedily decoded; the tokenizer's chat template is used where it has one.

        Args:
            generation_kwargs: `max_new_tokens`, 50 by default; also accepted as a keyword, as in older versions of
                sparse-attention-hub.
            request_kwargs: `max_context_length`: the number of leading context tokens to keep; default: all.

        Raises:
            ValueError: for other settings.
        """
        from reticle.research import evaluate
        from reticle.research.benchmarks import Sample

        settings = {**(generation_kwargs or {}), **(request_kwargs or {}), **kwargs}
        if settings.pop("do_sample", False):
            raise ValueError(
                "do_sample: answers are decoded greedily; use reticle.hf.attach and model.generate to sample"
            )
        count, longest = settings.pop("max_new_tokens", 50), settings.pop("max_context_length", None)
        if settings:
            raise ValueError(f"{', '.join(settings)}: not supported; expected max_new_tokens or max_context_length")
        asked = [request.questions] if isinstance(request.questions, str) else request.questions
        samples = [
            Sample(request.context, question, (), count, answer_prefix=request.answer_prefix) for question in asked
        ]
        chat = bool(getattr(self.tokenizer, "chat_template", None))
        with self._attach(prefill=False) as attached:
            answers = evaluate.predictions(
                self.model, self.tokenizer, attached, samples, max_context_length=longest, chat_template=chat
            )
            found = [answer for answer, _ in answers]
        return RequestResponse(found[0] if isinstance(request.questions, str) else found)
