"""One pattern for the prompt and another for what is generated after it, by nano-sparse-attention's names."""

from __future__ import annotations

from typing import Any, TypeVar

from reticle._core import Mask, SequenceState, SparseAttention

Array = TypeVar("Array")


class InferenceState(SequenceState):
    """A SequenceState that records what its calls attended to: `prefill` and `generation`, a StageRecord each."""

    def __init__(self) -> None:
        super().__init__(record="figures")


class InferenceHandler:
    """Causal attention by SparseAttention.by_stage(prefill, generation), every call recorded in its InferenceState.

    Args:
        prefill: the pipeline whose prefill stage serves prompts.
        generation: the pipeline whose generation stage serves what comes after them. ConfigError when the two differ in
            seed or merge rule.
        keep_masks: whether records keep every call's mask.
    """

    def __init__(self, prefill: SparseAttention, generation: SparseAttention, *, keep_masks: bool = False) -> None:
        self.sparse = SparseAttention.by_stage(prefill, generation)
        self.keeps_masks = keep_masks

    def attend(
        self, queries: Array, keys: Array, values: Array, state: SequenceState, **options: Any
    ) -> tuple[Array, Array]:
        """(output, lse), as SparseAttention.attend with causal=True."""
        return self.sparse.attend(queries, keys, values, self._recording(state), **_causal(options))

    def mask(self, queries: Any, keys: Any, values: Any, state: SequenceState, **options: Any) -> Mask:
        """The keys that the stage's pipeline chooses, recorded: for attention that is computed elsewhere."""
        return self.sparse.mask(queries, keys, values, self._recording(state), **_causal(options))

    def lasting(self, queries: Any, keys: Any, values: Any, state: SequenceState, **options: Any) -> Mask:
        """The keys that generation may attend to from a position on, as SparseAttention.lasting with causal=True."""
        return self.sparse.lasting(queries, keys, values, state, **_causal(options))

    def require_forgetful(self) -> None:
        """Raises ValueError, naming the generation's maskers that may come back to any key, where there are some."""
        self.sparse.require_forgetful()

    def _recording(self, state: SequenceState) -> SequenceState:
        """The state, recording at least what this handler records."""
        if not isinstance(state, SequenceState):
            raise TypeError(f"state is {state!r}; expected an InferenceState, which lives as long as its sequence")
        if self.keeps_masks:
            state.record = "masks"
        elif state.record == "none":
            state.record = "figures"
        return state


def _causal(options: dict[str, Any]) -> dict[str, Any]:
    if "causal" in options:
        raise TypeError("causal: is not an option of InferenceHandler, whose attention is causal")
    return {"causal": True, **options}
