"""sparse-attention-hub's adapter of Hugging Face models: questions about a context, through `reticle.hf`.

    adapter = ModelAdapterHF("meta-llama/Llama-3.2-1B-Instruct", ResearchAttentionConfig(masker_configs=[...]))
    answer = adapter.process_request(Request(context=text, questions="Who wrote it?"), {"max_new_tokens": 20}, {}).responses

The context is prefilled densely; questions and answers attend by the maskers, token by token.
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
    """Questions about a context, each answered as if it were alone."""

    context: str
    questions: str | list[str]
    answer_prefix: str = ""


@dataclass
class RequestResponse:
    """An answer, or a list of them, as the request had questions."""

    responses: str | list[str]


class ModelHubAdapterInterface(ABC):
    """What answers requests."""

    @abstractmethod
    def process_request(
        self,
        request: Request,
        generation_kwargs: dict[str, Any] | None = None,
        request_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> RequestResponse:
        """The answers to a request's questions."""


class SparseAttentionAdapterInterface(ABC):
    """What attends sparsely."""

    @abstractmethod
    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """`sparse_attention` as transformers calls an attention."""


class ModelAdapter(ModelHubAdapterInterface, SparseAttentionAdapterInterface):
    """What adapters of models derive from."""

    @abstractmethod
    def enable_sparse_mode(self) -> AbstractContextManager[None]:
        """Within it the model attends sparsely."""


class ModelAdapterHF(ModelAdapter):
    """A model, its tokenizer, and the attention that its answers are generated with."""

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
            sparse_attention_config: a ResearchAttentionConfig; None: dense.
            model_kwargs, tokenizer_kwargs: for from_pretrained.
            device: default: a GPU where torch sees one.
            model, tokenizer: instead of those that from_pretrained gives.

        Raises:
            TypeError: for another config.
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
        own = load(model_name, **self.model_kwargs) if model is None else model
        self.model: Any = own.to(self.device).eval()
        self.tokenizer: Any = (
            AutoTokenizer.from_pretrained(model_name, **self.tokenizer_kwargs) if tokenizer is None else tokenizer
        )

        if getattr(self.tokenizer, "pad_token", "") is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._attached: Attachment | None = None

    @property
    def torch_dtype(self) -> Any:
        """The model's."""
        return self.model.dtype

    def get_custom_attention_function(self, sparse_attention: SparseAttention) -> Callable[..., Any]:
        """`sparse_attention` as transformers calls an attention: (module, queries, keys, values, attention_mask, scaling,
        dropout, **kwargs) -> (output, weights). It needs `sparse_meta_data`; `layer_idx` is the module's."""

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
        """Within it all that the model attends to, prompts too, is chosen by the maskers. `sparse_meta_data` that the model is
        called with is not needed: what maskers keep of a sequence lives with its cache.

        Raises:
            RuntimeError: when the adapter has no sparse attention.
        """
        if self.sparse_attention_config is None:
            raise RuntimeError("Cannot enable sparse mode: sparse attention is not available")
        if self._attached is not None:  # within another
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
            generation_kwargs: `max_new_tokens`, 50 by default; also given by keyword, as in older versions there.
            request_kwargs: `max_context_length`: the first tokens of the context that are kept; default all.

        Raises:
            ValueError: for other settings.
        """
        from reticle import evaluate
        from reticle.benchmarks import Sample

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
            found = [
                evaluate.predict(
                    self.model, self.tokenizer, attached, sample, max_context_length=longest, chat_template=chat
                )[0]
                for sample in samples
            ]
        return RequestResponse(found[0] if isinstance(request.questions, str) else found)
