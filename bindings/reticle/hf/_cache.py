"""A key-value cache that grows in place, and the masker states of the sequences in any cache."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

import reticle._core as _core
from reticle._quantised import QuantisedTensor, quantise

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Channels of the last KV head that identify a key: 16 bytes in float32.
_CHANNELS = 4


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, (batch, kv_heads, tokens, head_dim), in buffers with room for more tokens.

    A decode step writes one token and reads views, without allocating or copying older keys, until the buffers are full
    and double. `keys` and `values` are views of the tokens in use.
    """

    def __init__(self, capacity: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 0:
            raise ValueError(f"capacity is {capacity!r}; expected a number of tokens, 0 or more")
        self._capacity = capacity
        self._length = 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._changes = 0
        self._version: int | None = None

    @property
    def changes(self) -> int:
        """A counter of the operations that may have changed older keys; while it is unchanged, older keys are
        unchanged."""
        if self._version != _version_of(self._buffers):
            self._changes += 1
            self._version = _version_of(self._buffers)
        return self._changes

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self._length + key_states.shape[-2]
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            keys, values = (torch.cat(pair, -2) for pair in zip(self._held(), (key_states, value_states), strict=True))
            self.keys, self.values, self._buffers, self._length = keys, values, None, length
            return keys, values
        self._changes = self.changes
        keys, values = self._with_room(length, key_states, value_states)
        keys[:, :, self._length : length] = key_states
        values[:, :, self._length : length] = value_states
        self._length = length
        self._version = _version_of(self._buffers)
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def _held(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None, "made by lazy_initialization"
        return self.keys, self.values

    def _with_room(self, length: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self._buffers is None or self._buffers[0].shape[2] < length:
            room = self._capacity if length <= self._capacity else max(length + 64, 2 * self._length)
            self._buffers = (_room_for(keys, room), _room_for(values, room))
            for buffer, tensor in zip(self._buffers, self._held(), strict=True):
                buffer[:, :, : self._length] = tensor
        return self._buffers

    def get_seq_length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the key and value buffers, unused capacity included."""
        tensors = self._buffers or (self.keys, self.values)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes how many tokens to remove as a negative number; got {tokens_to_remove}")
        self._cut(max(0, self._length + tokens_to_remove))

    def _cut(self, length: int) -> None:
        if self.is_initialized and length != self._length:
            self._length = length
            self.keys, self.values = (tensor[:, :, :length] for tensor in self._held())
            self._changes += 1

    def reset(self) -> None:
        self._cut(0)

    def _replace(self, rows: Any) -> None:
        if self._length > 0:
            self.keys, self.values = (rows(tensor) for tensor in self._held())
            self._buffers = None
            self._changes += 1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._replace(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace(lambda tensor: tensor.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._replace(lambda tensor: tensor[indices])


class NewestTokens:
    """The newest `limit` tokens of keys or values, (batch, kv_heads, tokens, head_dim), in a buffer with room for twice
    as many, so that a decode step copies one token and seldom more."""

    def __init__(self, limit: int, like: Tensor) -> None:
        self._limit = limit
        self._begin = self._end = 0
        self._buffer = _room_for(like, 2 * limit)

    def append(self, tokens: Tensor) -> Tensor:
        """Appends tokens; returns them behind those that were held."""
        new, held = tokens.shape[2], self._end - self._begin
        if new > self._limit:
            behind = torch.cat([self.held, tokens], 2) if held else tokens
            self._begin, self._end = 0, self._limit
            self._buffer[:, :, : self._limit] = tokens[:, :, new - self._limit :]
            return behind
        if self._end + new > self._buffer.shape[2]:
            left = self._limit - new
            self._buffer[:, :, :left] = self._buffer[:, :, self._end - left : self._end].clone()
            behind = torch.cat([self.held, tokens], 2)
            self._begin, self._end = 0, left
        else:
            behind = self._buffer[:, :, self._begin : self._end + new]
        self._buffer[:, :, self._end : self._end + new] = tokens
        self._end += new
        self._begin = max(self._begin, self._end - self._limit)
        return behind

    @property
    def held(self) -> Tensor:
        return self._buffer[:, :, self._begin : self._end]

    def drop(self, tokens: int) -> None:
        """Drops the newest tokens."""
        self._end = max(self._begin, self._end - tokens)

    def replace(self, rows: Any) -> None:
        self._buffer = rows(self._buffer)

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes


class QuantisedLayer(GrowingLayer):  # type: ignore[no-untyped-call]
    """A GrowingLayer whose keys and values are codes of 4 or 8 bits, but for the newest tokens, which are also held as
    they are given.

    `update` returns QuantisedTensors, of which the tokens of the call and the `recent` before them are read as they
    were given: a prompt is prefilled as with any cache, and later calls read its codes.
    """

    def __init__(self, bits: int, recent: int, capacity: int = 0) -> None:
        super().__init__(capacity)
        self._bits, self._recent = bits, recent
        self._newest: tuple[NewestTokens, NewestTokens] | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        if self.device.type != "cpu":
            raise NotImplementedError(
                f"a cache of {self._bits} bits on {self.device} is not supported; use it on the CPU, or bits=None"
            )
        self.keys, self.values = (_codes_of(tensor[:, :, :0], self._bits) for tensor in (key_states, value_states))
        self._newest = NewestTokens(self._recent, key_states), NewestTokens(self._recent, value_states)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise NotImplementedError(
                "gradients through a quantised cache are not supported; call the model under torch.no_grad()"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self._newest is not None, "made by lazy_initialization"
        given = (key_states, value_states)
        codes = super().update(*(_codes_of(tensor, self._bits) for tensor in given))
        keys, values = (
            QuantisedTensor(rows, self._bits, tensor.shape[-1], newest.append(tensor))
            for rows, tensor, newest in zip(codes, given, self._newest, strict=True)
        )
        return keys, values

    def _cut(self, length: int) -> None:
        for newest in self._newest or ():
            newest.drop(max(0, self._length - length))
        super()._cut(length)

    def _replace(self, rows: Any) -> None:
        super()._replace(rows)
        for newest in self._newest or ():
            newest.replace(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, unused capacity included, and of the newest tokens."""
        return super().nbytes + sum(newest.nbytes for newest in self._newest or ())


def _codes_of(tensor: Tensor, bits: int) -> Tensor:
    codes: Tensor = quantise(tensor, bits).codes
    return codes


def _version_of(buffers: tuple[Tensor, Tensor] | None) -> int | None:
    """torch's version counter of the keys' memory; None in inference mode, which counts no writes."""
    return None if buffers is None or buffers[0].is_inference() else buffers[0]._version


def _room_for(like: Tensor, tokens: int) -> Tensor:
    batch, heads, _, width = like.shape
    return like.new_empty((batch, heads, tokens, width))


class Row:
    """The masker states of one sequence at one layer, and the keys that they have read, identified by a few
    channels."""

    def __init__(self) -> None:
        self.state = _core.SequenceState(record="figures")
        #: True if a prompt, or its last part, was prefilled.
        self.prompted = False
        self.seen: Tensor | None = None  # (capacity, channels), integers
        self.length = 0

    def fork(self) -> Row:
        copy = Row()
        copy.state, copy.prompted = self.state.fork(), self.prompted
        copy.seen = None if self.seen is None else self.seen[: self.length].clone()
        copy.length = self.length
        return copy

    def truncate(self, length: int) -> None:
        if length < self.length:
            self.state.truncate(length)
            self.length = length

    def began(self, marks: Tensor) -> int | None:
        """The length of the shorter of this row's keys and the given ones, if it is a prefix of the longer; else
        None."""
        length = min(self.length, len(marks))
        if length == 0 or self.seen is None or not torch.equal(self.seen[:length], marks[:length]):
            return None
        return length

    def take_in(self, marks: Tensor) -> None:
        """Appends the keys from `length` on."""
        if self.seen is None or len(self.seen) < len(marks):
            room = marks.new_empty((2 * len(marks), marks.shape[1]))
            if self.seen is not None:
                room[: self.length] = self.seen[: self.length]
            self.seen = room
        self.seen[self.length : len(marks)] = marks[self.length :]
        self.length = len(marks)


def marks_of(keys: Tensor | QuantisedTensor) -> Tensor:
    """(tokens, channels) integers of one sequence's keys (kv_heads, tokens, head_dim); equal keys have equal
    integers."""
    if isinstance(keys, QuantisedTensor):  # as many bytes as of float32
        codes: Tensor = keys.codes
        return codes[-1, :, : 4 * _CHANNELS].view(torch.int8)
    few = keys[-1, :, :_CHANNELS]
    integers = {4: torch.int32, 2: torch.int16, 8: torch.int64, 1: torch.int8}[few.element_size()]
    return few.detach().view(integers) if few.stride(-1) == 1 else few.detach().contiguous().view(integers)


class LayerRows:
    """The rows of one layer of a cache, one per sequence of the batch."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._changes: int | None = None

    def __deepcopy__(self, _: Any) -> LayerRows:
        copy = LayerRows()
        copy.rows, copy._changes = [row.fork() for row in self.rows], self._changes
        return copy

    def follow(self, keys: Sequence[Tensor], before: Sequence[int], changes: int | None = None) -> list[Row]:
        """A row for each sequence of keys (kv_heads, tokens, head_dim), the first `before` of which are not new.

        This is the row that has read those keys, truncated to them, or a copy of it if several sequences continue one
        (beams). If no row has read them, it is a new row, whose maskers read all keys again. `changes` is the counter
        of a GrowingLayer: while it is unchanged, older keys are not compared.
        """
        same, self._changes = changes is not None and changes == self._changes, changes
        if same and [row.length for row in self.rows] == list(before):
            return self.rows
        sources = [
            self._source(i, marks_of(row_keys)[:length])
            for i, (row_keys, length) in enumerate(zip(keys, before, strict=True))
        ]
        uses = Counter(id(row) for row, _ in sources)
        followed = []
        for row, length in sources:
            uses[id(row)] -= 1
            if row is None:
                followed.append(Row())
                continue
            followed.append(row.fork() if uses[id(row)] else row)
            followed[-1].truncate(length)
        self.rows = followed
        return followed

    def _source(self, i: int, marks: Tensor) -> tuple[Row | None, int]:
        """The row that has read most of these keys; among equals, the row at the same index wins."""
        best: tuple[Row | None, int] = (None, 0)
        for row in [*self.rows[i : i + 1], *self.rows[:i], *self.rows[i + 1 :]]:
            length = row.began(marks)
            if length is not None and length > best[1]:
                best = (row, length)
            if best[1] == len(marks):
                break
        return best
