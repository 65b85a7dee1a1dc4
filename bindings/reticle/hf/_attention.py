"""The attention function that a model's layers call, and the interpretation of all their arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import masking_utils
from transformers.cache_utils import Cache, EncoderDecoderCache

import reticle
import reticle._core as _core
import reticle.torch
from reticle._layer_words import WITHOUT_EFFECT, not_understood
from reticle.hf import _compiled
from reticle.hf._cache import Row, marks_of
from reticle.hf._evicting import STEPS_BACK, EvictingLayer, StoredRow
from reticle.hf._visibility import Visibility

if TYPE_CHECKING:
    from reticle.hf._attach import Patterns, Stage

_SAID_BY_MASKS = WITHOUT_EFFECT | {"sliding_window"}


@dataclass(frozen=True)
class Call:
    """The arguments of a layer that affect its scores, beside queries, keys and values."""

    scaling: float | None
    soft_cap: float | None
    sink_logits: Tensor | None
    bias: Tensor | None  # (batch or 1, heads or 1, queries or 1, keys), added to the scores

    def differentiable(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, causal: bool, bias: Tensor | None
    ) -> Tensor:
        """Attention over a mask, with gradients for queries, keys, values and sink logits; the choice of the mask has
        none."""
        if bias is not None and bias.requires_grad:
            raise NotImplementedError(
                "gradients by a position bias are not supported; freeze it, or use eager attention"
            )
        if self.sink_logits is None:
            output, _ = reticle.torch.attention(
                query,
                key,
                value,
                mask,
                scaling=self.scaling,
                causal=causal,
                attention_mask=bias,
                soft_cap=self.soft_cap,
            )
            return output
        # A sink is one more key, with score 0 plus its logit, and with value 0.
        shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        if mask is None:
            mask = _core.Mask.full(shape)
        if causal:
            mask = mask.restrict_causal()
        sink = _core.Mask.runs((1, 1, 1, shape[3] + 1), [0, 1], [[shape[3], shape[3] + 1]])
        logits = torch.zeros((1, shape[1], 1, shape[3] + 1), device=query.device)
        logits[..., -1] = self.sink_logits.detach().float()[None, :, None]
        if bias is not None:
            logits = logits + torch.nn.functional.pad(bias.float(), (0, 1))
        output, lse = reticle.torch.attention(
            query,
            _with_zeros(key),
            _with_zeros(value),
            mask.append_keys(1) | sink.broadcast_to((*shape[:3], shape[3] + 1)),
            scaling=self.scaling,
            attention_mask=logits,
            soft_cap=self.soft_cap,
        )
        attended: Tensor = _SinkGradient.apply(output, lse, self.sink_logits)  # type: ignore[no-untyped-call]
        return attended


def _with_zeros(tensor: Tensor) -> Tensor:
    """The tensor with one token of zeros appended."""
    return torch.cat([tensor, tensor.new_zeros((*tensor.shape[:2], 1, tensor.shape[3]))], 2)


class _SinkGradient(torch.autograd.Function):
    """Returns the output unchanged; in the backward pass, a sink's logit takes mass exp(logit - lse) from it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, lse: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(output, lse, logits)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, Tensor]:
        output, lse, logits = ctx.saved_tensors
        mass = torch.exp(logits.float()[None, :, None] - lse)
        by_logit = -(mass * (upstream.float() * output.float()).sum(-1)).sum((0, 2))
        return upstream, None, by_logit.to(logits.dtype)


def forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Visibility | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls for "reticle": output (batch, queries, heads, value_dim), contiguous, and no
    weights."""
    if (
        torch.compiler.is_compiling()
        and not dropout
        and _compiled.traceable(attention_mask, query, key, others, _SAID_BY_MASKS)
    ):
        seen = cast("Visibility", attention_mask)
        return _compiled.attend(module, query, key, value, seen, scaling, softcap), None
    attended: tuple[Tensor, None] = _untraced(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, softcap=softcap, **others
    )
    return attended


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch cannot trace maskers
def _untraced(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Visibility | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    from reticle.hf._attach import patterns_of

    name = type(module).__name__
    refuse_unknown(name, others)
    if dropout:
        raise NotImplementedError(f"{name}: attention dropout is not supported; set attention_dropout to 0")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    attached = patterns_of(module)
    layer = None if attached is None else attached.cache_layer(module)
    evicting = layer if isinstance(layer, EvictingLayer) and layer.rows is not None else None
    tokens = key.shape[2] if evicting is None else evicting.get_seq_length()
    seen, bias = _seen(name, attention_mask, query, tokens, causal)
    if evicting is None and seen is not None and key.shape[2] > seen.keys:  # a static cache has unused slots
        key, value = key[:, :, : seen.keys], value[:, :, : seen.keys]
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
    if seen is None and attached is not None and attached.chooses(query.shape[2], key.shape[2]):
        seen, is_all = _causal_under(name, cast("Tensor", attention_mask), query.shape[2], tokens)
        if is_all:
            bias = position_bias
    call = Call(scaling, softcap, s_aux, bias)
    packed = _documents(cu_seq_lens_q, cu_seq_lens_k, query, key)
    if packed is not None:
        seen = packed
    call_number = 1 if attached is None else attached.next_call()
    if evicting is not None and call_number > 1:
        raise NotImplementedError(f"{name}: calls its attention twice; evict=True is not supported by this model")
    if evicting is not None:
        if attached is None or bias is not None or not follows_pattern(module, seen):
            raise NotImplementedError(
                f"{name}: a cache that has evicted keys, with packed sequences, an attention_mask of four dimensions or a "
                "position bias; expected causal self-attention"
            )
        output = _by_stored_keys(attached, module, query, key, value, cast("Visibility", seen), call, evicting)
    elif attached is not None and _is_packed(attached, module, seen):
        output = _by_documents(attached, module, query, key, value, cast("Visibility", seen), call)
    elif attached is not None and follows_pattern(module, seen):
        output = _by_pattern(attached, module, query, key, value, cast("Visibility", seen), call)
    else:
        if attached is not None:
            attached.refuse_patterns(module, seen)
        output = _dense(query, key, value, seen, call)
    return output.transpose(1, 2).contiguous(), None


def _is_packed(attached: Patterns, module: Any, seen: Visibility | None) -> bool:
    """True if a pattern chooses keys within each document of packed rows."""
    if seen is None or seen.documents is None or seen.padding is not None:
        return False
    return attached.chooses(seen.queries, seen.keys) and not getattr(module, "is_cross_attention", False)


def follows_pattern(module: Any, seen: Visibility | None) -> bool:
    """True if patterns apply: causal self-attention over a cache that holds every key."""
    return (
        seen is not None
        and seen.causal
        and seen.key_offset == 0
        and isinstance(getattr(module, "layer_idx", None), int)
        and not getattr(module, "is_cross_attention", False)
    )


def refuse_unknown(name: str, others: dict[str, Any]) -> None:
    """Raises NotImplementedError for unknown keyword arguments of a layer, naming them."""
    for word in not_understood(others):
        raise NotImplementedError(
            f'{name}: passes {word} to its attention, which "reticle" does not support; use attn_implementation="eager"'
        )


def _seen(
    name: str, attention_mask: Tensor | Visibility | None, query: Tensor, keys: int, causal: bool
) -> tuple[Visibility | None, Tensor | None]:
    """(what queries see, bias added to the scores). A mask tensor with four dimensions is expressed entirely by the
    bias."""
    batch, queries = query.shape[0], query.shape[2]
    if isinstance(attention_mask, Visibility):
        if attention_mask.queries != queries or attention_mask.given_keys != keys:
            raise NotImplementedError(
                f"{name}: its mask is of {attention_mask.queries} queries and {attention_mask.given_keys} keys, its attention "
                f"of {queries} and {keys}; this is not supported"
            )
        return attention_mask, None
    if attention_mask is None:
        function = masking_utils.causal_mask_function if causal else masking_utils.bidirectional_mask_function
        return Visibility(function, batch=batch, queries=queries, keys=keys, query_offset=keys - queries), None
    if attention_mask.dim() != 4:
        raise NotImplementedError(
            f"{name}: attention_mask has {attention_mask.dim()} dimensions at its attention; expected (batch, heads, queries, "
            "keys)"
        )
    if attention_mask.shape[3] < keys:
        raise NotImplementedError(f"{name}: attention_mask is of {attention_mask.shape[3]} keys, there are {keys}")
    mask = attention_mask[..., :keys]
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise NotImplementedError(
            f"{name}: attention_mask of four dimensions is of {mask.dtype}; expected booleans, or floats that are added"
        )
    if not mask.is_floating_point():
        mask = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(~mask, -torch.inf)
    return None, mask


#: The largest bias that counts as forbidding a key: the key's weight is 0, or close to it, in any dtype.
_FORBIDS = -1e4


def _causal_under(name: str, attention_mask: Tensor, queries: int, keys: int) -> tuple[Visibility, bool]:
    """(visibility, whether it is equivalent to the mask) of a mask with four dimensions, for patterns to choose from.
    The mask must forbid the keys after each query; keys that no query sees are padding."""
    later = torch.ones(queries, keys, dtype=torch.bool, device=attention_mask.device).triu(keys - queries + 1)
    mask = attention_mask[..., :keys]
    allowed = mask > _FORBIDS if mask.is_floating_point() else mask
    if bool((allowed & later).any()):
        raise NotImplementedError(
            f"{name}: an attention_mask of four dimensions lets queries see keys behind them, by booleans or by numbers above "
            f"{_FORBIDS:g}; patterns are for causal attention"
        )
    real = allowed.any(2).any(1)
    real_queries = real[:, None, keys - queries :, None]
    plain = bool(((allowed == (real[:, None, None] & ~later)) | ~real_queries).all())
    if plain and mask.is_floating_point():
        plain = not bool((mask[allowed.expand(mask.shape)] != 0).any())
    seen = Visibility(
        masking_utils.causal_mask_function,
        batch=mask.shape[0],
        queries=queries,
        keys=keys,
        query_offset=keys - queries,
        padding=real if plain else None,
    )
    return seen, plain


def _documents(q: Tensor | None, k: Tensor | None, query: Tensor, key: Tensor) -> Visibility | None:
    """The visibility of sequences packed into one row, from flash attention's cumulative lengths; None without them."""
    if q is None and k is None:
        return None
    if q is None or k is None or not torch.equal(q, k) or query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise NotImplementedError(
            "cu_seq_lens_q and cu_seq_lens_k: expected the same offsets, for one row without a cache"
        )
    if int(q[-1]) != query.shape[2] or int(q[0]) != 0:
        raise ValueError(
            f"cu_seq_lens_q: {q.tolist()}; expected offsets from 0 to the {query.shape[2]} tokens of the row"
        )
    ends = torch.bucketize(torch.arange(query.shape[2], device=q.device), q[1:], right=True)
    function = masking_utils.and_masks(
        masking_utils.causal_mask_function, masking_utils.packed_sequence_mask_function(ends[None])
    )
    return Visibility(function, batch=1, queries=query.shape[2], keys=query.shape[2])


def dense_terms(
    query: Tensor, key: Tensor, seen: Visibility | None, bias: Tensor | None
) -> tuple[reticle.Mask | None, bool, Tensor | None]:
    """(mask, causal, bias) of dense attention to everything that the model lets queries see."""
    causal, mask = False, None
    if seen is not None:
        if seen.padding is not None:
            hidden = torch.zeros(seen.padding.shape, device=query.device).masked_fill(~seen.padding, -torch.inf)
            bias = hidden[:, None, None] if bias is None else bias + hidden[:, None, None]
        causal = seen.causal
        if not causal and not seen.bidirectional:
            mask = seen.mask.broadcast_to((query.shape[0], query.shape[1], query.shape[2], key.shape[2]))
    if bias is not None:
        bias = bias.float().masked_fill(bias <= torch.finfo(bias.dtype).min / 2, -torch.inf)
    return mask, causal, bias


def _dense(query: Tensor, key: Tensor, value: Tensor, seen: Visibility | None, call: Call) -> Tensor:
    mask, causal, bias = dense_terms(query, key, seen, call.bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return call.differentiable(query, key, value, mask, causal=causal, bias=bias)
    output, _ = reticle.attention(
        query,
        key,
        value,
        mask,
        scaling=call.scaling,
        causal=causal,
        attention_mask=bias,
        soft_cap=call.soft_cap,
        sink_logits=() if call.sink_logits is None else call.sink_logits.tolist(),
    )
    return output


# --- patterns -------------------------------------------------------------------------------------------------------


def _by_pattern(
    attached: Patterns, module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Visibility, call: Call
) -> Tensor:
    """Attention as the pipelines choose, for each sequence separately and without its padding, as in a batch of one.

    Tokens before the end of the prompt are prefilled. Later tokens are generated one after another: several in one
    call, as in speculative decoding, get the same result as in separate calls.
    """
    new, total, layer = query.shape[2], key.shape[2], int(module.layer_idx)
    old = total - new
    attached.begin(layer, old)
    prompt = attached.prompt_length(new, total)
    kept = [real_tokens(seen, i) for i in range(query.shape[0])]
    if attached.is_dense():
        output = _dense(query, key, value, seen, call)
        for places in kept:
            _record_dense(attached, query.shape[1], torch.arange(total) if places is None else places, old, prompt)
    else:
        keys = [_tokens(key[i], places) for i, places in enumerate(kept)]
        before = [old if places is None else int((places < old).sum()) for places in kept]
        cached = attached.cache_layer(module)
        rows = attached.rows_of(module).follow(keys, before, None if cached is None else cached.changes)
        output = query.new_zeros((*query.shape[:3], value.shape[3]))
        for i, (row, places) in enumerate(zip(rows, kept, strict=True)):
            rows_of_queries: Any = slice(None) if places is None else places[before[i] :] - old
            queries = query[i][:, rows_of_queries]
            if queries.shape[1] == 0:
                continue
            bias = None if call.bias is None else _bias_of(call.bias, i, places, rows_of_queries)
            inputs = (queries[None], keys[i][None], _tokens(value[i], places)[None])
            prompt_tokens = prompt if places is None else int((places < prompt).sum())
            output[i][:, rows_of_queries] = _sequence(attached, layer, row, *inputs, prompt_tokens, bias, call)[0]
        if isinstance(cached, EvictingLayer) and total >= prompt:
            _start_evicting(attached, module, query, value, rows, keys, kept, prompt, cached)
    attached.finish(layer, total, output, lambda: _dense(query, key, value, seen, call))
    return output


def _by_documents(
    attached: Patterns, module: Any, query: Tensor, key: Tensor, value: Tensor, seen: Visibility, call: Call
) -> Tensor:
    """Attention within each document of packed rows, as if it were alone. Masker states are dropped after the call."""
    layer = int(module.layer_idx)
    attached.begin(layer, 0)
    output = query.new_zeros((*query.shape[:3], value.shape[3]))
    documents = cast("Tensor", seen.documents).expand(query.shape[0], -1)
    for i, row in enumerate(documents):
        ends = [*(torch.nonzero(row[1:] != row[:-1])[:, 0] + 1).tolist(), query.shape[2]]
        for begin, end in zip([0, *ends], ends, strict=False):
            positions = torch.arange(begin, end)
            q, k, v = (tensor[i : i + 1, :, begin:end] for tensor in (query, key, value))
            bias = None if call.bias is None else _bias_of(call.bias, i, positions, positions)
            output[i, :, begin:end] = _sequence(attached, layer, Row(), q, k, v, end - begin, bias, call)[0]
    attached.finish(layer, query.shape[2], output, lambda: _dense(query, key, value, seen, call))
    return output


def _start_evicting(
    attached: Patterns,
    module: Any,
    query: Tensor,
    value: Tensor,
    rows: list[Row],
    keys: list[Tensor],
    kept: list[Tensor | None],
    prompt: int,
    cached: EvictingLayer,
) -> None:
    """At the end of the prompt, drops the keys that the generation pattern will never attend to."""
    attached.require_eviction()
    if torch.is_grad_enabled() and query.requires_grad:
        raise NotImplementedError(
            "gradients through a cache that evicts keys are not supported; call the model under torch.no_grad()"
        )
    if cached.keys is None or cached.keys.shape[1:] != keys[0].shape[:1] + cached.keys.shape[2:3] + keys[0].shape[2:]:
        raise NotImplementedError(
            f"{type(module).__name__}: its cache holds something else than its keys (latents that they are made from); "
            "evict=True is not supported by this model"
        )
    evicted, stored = False, []
    for i, (row, places) in enumerate(zip(rows, kept, strict=True)):
        real = bytearray(b"\1") * cached.get_seq_length()
        if places is not None:
            real = bytearray(
                torch.zeros(len(real), dtype=torch.uint8).index_fill_(0, places.cpu(), 1).numpy().tobytes()
            )
        stored_row = StoredRow(row, keys[i], _tokens(value[i], places), real)
        # Tokens after the prompt are speculative and may be cropped again.
        first = max(sum(real[:prompt]), stored_row.length - STEPS_BACK)
        lasting = attached.lasting(int(module.layer_idx), query[i : i + 1, :, -1:], stored_row, first)
        evicted = stored_row.evict(lasting, first) or evicted
        stored.append(stored_row)
    if evicted:
        cached.keep(stored)
        attached.rows_of(module).rows.clear()


def _by_stored_keys(
    attached: Patterns,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Visibility,
    call: Call,
    cached: EvictingLayer,
) -> Tensor:
    """Attention of new tokens, one by one, over the keys that were not evicted and the new ones."""
    new, total, layer = query.shape[2], cached.get_seq_length(), int(module.layer_idx)
    if torch.is_grad_enabled() and query.requires_grad:
        cached.take_back(new)
        raise NotImplementedError(
            "gradients through a cache that evicts keys are not supported; call the model under torch.no_grad()"
        )
    attached.begin(layer, total - new)
    if attached.prompt_length(new, total) > total - new:
        raise NotImplementedError(
            f"a prompt of {new} tokens behind {total - new} of which keys were evicted: it cannot attend to them; take its "
            'tokens as generated ones (with attached.stage("generation")), or keep all keys (evict=False)'
        )
    if key.shape[2] != new:
        raise NotImplementedError(
            f"{type(module).__name__}: {key.shape[2]} keys for {new} new tokens; evict=True is not supported by this model"
        )
    cached.read = False
    output = query.new_zeros((*query.shape[:3], value.shape[3]))
    for i, stored in enumerate(cast("list[StoredRow]", cached.rows)):
        real = bytearray(b"\1") * new if seen.padding is None else bytearray(seen.padding[i, total - new :].tolist())
        tokens = [token for token in range(new) if real[token]]
        stored.real += real
        stored.append(key[i][:, tokens], value[i][:, tokens])
        for ahead, token in zip(reversed(range(len(tokens))), tokens, strict=True):
            queries = query[i : i + 1, :, token : token + 1]
            output[i, :, token] = attached.attend(
                layer, stored.row, queries, *stored.matrices(), "generation", None, call, stored.without(ahead)
            )[0, :, 0]
        if tokens and stored.length // STEPS_BACK != (stored.length - len(tokens)) // STEPS_BACK:
            first = max(stored.croppable_to, stored.length - STEPS_BACK)
            stored.evict(attached.lasting(layer, query[i : i + 1, :, -1:], stored, first), first)
    attached.finish(layer, total, output, lambda: output)
    return output


def _record_dense(attached: Patterns, heads: int, places: Tensor, old: int, prompt: int) -> None:
    seen = torch.arange(1, len(places) + 1)[places >= old]
    in_prompt = places[places >= old] < prompt
    for stage, in_stage in (("prefill", in_prompt), ("generation", ~in_prompt)):
        entries = float(heads * int(seen[in_stage].sum()))
        attached.add(stage, entries, entries)  # type: ignore[arg-type]


def real_tokens(seen: Visibility, row: int) -> Tensor | None:
    """The positions of a row's real tokens; None without padding."""
    if seen.padding is None or bool(seen.padding[row].all()):
        return None
    return seen.padding[row].nonzero()[:, 0]


def _tokens(tensor: Tensor, places: Tensor | None) -> Tensor:
    """(heads, tokens, width) without padding: a view if the tokens are contiguous, else a copy."""
    if places is None or len(places) == 0:
        return tensor if places is None else tensor[:, :0]
    first, last = int(places[0]), int(places[-1])
    return tensor[:, first : last + 1] if last - first + 1 == len(places) else tensor[:, places]


def _bias_of(bias: Tensor, row: int, keys: Tensor | None, queries: Any) -> Tensor:
    row_bias = bias[row if bias.shape[0] > 1 else 0]
    if keys is not None:
        row_bias = row_bias[..., keys] if row_bias.shape[-1] > 1 else row_bias
        row_bias = row_bias[:, queries] if row_bias.shape[-2] > 1 else row_bias
    return row_bias[None]


def _sequence(
    attached: Patterns,
    layer: int,
    row: Row,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt: int,
    bias: Tensor | None,
    call: Call,
) -> Tensor:
    """Attention of one sequence: the remaining prompt in one call, then token by token."""
    new, total = query.shape[2], key.shape[2]
    old = total - new
    steps: list[tuple[int, int, Stage]] = [(old, min(prompt, total), "prefill")] if prompt > old else []
    steps += [(token, token + 1, "generation") for token in range(max(old, min(prompt, total)), total)]
    outputs = []
    for begin, end, stage in steps:
        part = query[:, :, begin - old : end - old]
        step_bias = None
        if bias is not None:
            step_bias = bias[..., :end] if bias.shape[-1] > 1 else bias
            step_bias = step_bias[:, :, begin - old : end - old] if step_bias.shape[2] > 1 else step_bias
        inputs = (part, key[:, :, :end], value[:, :, :end])
        outputs.append(attached.attend(layer, row, *inputs, stage, step_bias, call))
        row.take_in(marks_of(key[0, :, :end]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def cache_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cache | None:
    """The cache among the arguments of an attention module."""
    for given in (*kwargs.values(), *args):
        if isinstance(given, EncoderDecoderCache):
            return given.self_attention_cache
        if isinstance(given, Cache):
            return given
    return None
