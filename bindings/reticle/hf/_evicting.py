"""Cache layers that drop the keys that the generation pattern will never attend to again, separately per KV head."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reticle.hf._cache import GrowingLayer, Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from reticle import Mask

#: The smallest number of tokens that stay croppable, which is also the interval between evictions in tokens; `tova` and
#: `h2o` can step back as many.
STEPS_BACK = 64


class StoredRow:
    """The remaining keys and values of one sequence at one layer, and its masker states.

    The lists of its KV heads differ in length. They lie one after another in two matrices, each with unused rows after
    it for new tokens.
    """

    def __init__(self, row: Row, keys: Tensor, values: Tensor, real: bytearray) -> None:
        """`keys` and `values` (kv_heads, tokens, width) of a sequence without padding; real[t] is 1 if cache token t
        belongs to it."""
        heads, self.length, _ = keys.shape
        self.row = row
        self.real = real
        self.begin = np.arange(heads, dtype=np.int64) * self.length
        self.end = self.begin + self.length
        self.positions = np.tile(np.arange(self.length, dtype=np.int32), heads)
        self.keys, self.values = keys.reshape(heads * self.length, -1), values.reshape(heads * self.length, -1)
        #: The smallest number of tokens that the sequence can be cropped to.
        self.croppable_to = 0

    def without(self, tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], int]:
        """The rows of keys in the form that handlers take, without the last `tokens` tokens of the sequence."""
        return self.positions, self.begin, self.end - tokens, self.length - tokens

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.positions.nbytes

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Keys and values, (1, kv_heads, rows, width) each: every head sees the rows of all heads."""
        heads = len(self.begin)
        return self.keys.expand(1, heads, -1, -1), self.values.expand(1, heads, -1, -1)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Appends tokens, (kv_heads, n, width)."""
        count = keys.shape[1]
        room = np.append(self.begin[1:], len(self.positions)) - self.end
        if room.min() < count:
            self._keep([np.arange(b, e) for b, e in zip(self.begin, self.end, strict=True)], count + STEPS_BACK)
        rows = (self.end[:, None] + np.arange(count)).reshape(-1)
        where = torch.from_numpy(rows)
        self.keys[where] = keys.reshape(len(rows), -1)
        self.values[where] = values.reshape(len(rows), -1)
        self.positions[rows] = np.tile(np.arange(self.length, self.length + count, dtype=np.int32), len(self.begin))
        self.end = self.end + count
        self.length += count

    def evict(self, lasting: Mask, first: int) -> bool:
        """Drops the keys that `lasting` (1, heads, 1, tokens) lacks in all heads of a KV head, which queries from
        `first` on do not need. Returns False, changing nothing, if at most an eighth would go, because copying the
        others costs more."""
        rows, columns, _ = lasting.to_csr()
        heads = len(self.begin)
        group = lasting.shape[1] // heads
        kept = []
        for head in range(heads):
            wanted = columns[rows[head * group] : rows[(head + 1) * group]]
            positions = self.positions[self.begin[head] : self.end[head]]
            kept.append(self.begin[head] + np.flatnonzero(np.isin(positions, wanted)))
        held = int((self.end - self.begin).sum())
        if held - sum(map(len, kept)) <= held // 8:
            return False
        self._keep(kept, STEPS_BACK)
        self.croppable_to = first
        return True

    def _keep(self, rows: list[NDArray[np.int64]], room: int) -> None:
        """Keeps the named rows of each head, with room for `room` more tokens after each list."""
        counts = np.array([len(head_rows) for head_rows in rows], dtype=np.int64)
        begin = np.concatenate([[0], np.cumsum(counts + room)])
        keys, values = (m.new_zeros((int(begin[-1]), m.shape[1])) for m in (self.keys, self.values))
        positions = np.zeros(int(begin[-1]), dtype=np.int32)
        for at, head_rows in zip(begin, rows, strict=False):
            where = torch.from_numpy(head_rows)
            keys[at : at + len(head_rows)] = self.keys[where]
            values[at : at + len(head_rows)] = self.values[where]
            positions[at : at + len(head_rows)] = self.positions[head_rows]
        self.keys, self.values, self.positions = keys, values, positions
        self.begin, self.end = begin[:-1], begin[:-1] + counts

    def require_croppable(self, tokens: int) -> None:
        length = sum(self.real[:tokens])
        if length < self.croppable_to:
            raise ValueError(
                f"crop to {length} tokens of a sequence: keys were evicted when it had more; at least "
                f"{self.croppable_to} tokens have to stay"
            )

    def crop(self, tokens: int) -> None:
        """Crops to the first `tokens` tokens of the cache, padding included."""
        length = sum(self.real[:tokens])
        self.row.state.truncate(length)
        del self.real[tokens:]
        self.length = length
        self.end = np.array(
            [b + np.searchsorted(self.positions[b:e], length) for b, e in zip(self.begin, self.end, strict=True)],
            dtype=np.int64,
        )

    def fork(self) -> StoredRow:
        copy = StoredRow.__new__(StoredRow)
        copy.__dict__.update(self.__dict__)
        copy.row, copy.real = self.row.fork(), bytearray(self.real)
        copy.keys, copy.values, copy.positions = self.keys.clone(), self.values.clone(), self.positions.copy()
        copy.begin, copy.end = self.begin.copy(), self.end.copy()
        return copy


class EvictingLayer(GrowingLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: all of them for the prompt, and afterwards those that the attached pattern needs.

    After an eviction `update` returns only the new tokens; attention takes the others from `rows`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[StoredRow] | None = None
        #: True if the next tokens come from an attached module, which takes the others from `rows`.
        self.read = False

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.rows is not None:
            if not self.read:
                raise RuntimeError(
                    "a SparseCache that has evicted keys serves the attached model that filled it; expected a new cache"
                )
            if self._length != len(self.rows[0].real):
                raise RuntimeError("a SparseCache lost the tokens of a call that was interrupted; expected a new cache")
            self._length += key_states.shape[-2]
            return key_states, value_states
        if self._length == 0 and not (torch.is_grad_enabled() and key_states.requires_grad):
            # The prompt's tensors are stored without a copy, because they are evicted soon.
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values, self._buffers = key_states, value_states, None
            self._length = key_states.shape[-2]
            return key_states, value_states
        return super().update(key_states, value_states)

    def take_back(self, tokens: int) -> None:
        """Undoes the update with the last `tokens` tokens."""
        self._length -= tokens

    def keep(self, rows: list[StoredRow]) -> None:
        """Replaces the layer's tensors by these rows."""
        self.rows, self.read = rows, False
        self.keys = self.values = self._buffers = None

    @property
    def nbytes(self) -> int:
        return super().nbytes if self.rows is None else sum(row.nbytes for row in self.rows)

    def _cut(self, length: int) -> None:
        if self.rows is None:
            super()._cut(length)
            return
        if length == 0:
            self.rows, self._length, self.is_initialized = None, 0, False
            return
        if length == self._length:
            return
        for row in self.rows:
            row.require_croppable(length)
        for row in self.rows:
            row.crop(length)
        self._length = length

    def _replace(self, rows: Callable[[Tensor], Tensor]) -> None:
        if self.rows is None:
            super()._replace(rows)
            return
        order = rows(torch.arange(len(self.rows))).tolist()
        uses = Counter(order)
        selected = []
        for i in order:
            uses[i] -= 1
            selected.append(self.rows[i].fork() if uses[i] else self.rows[i])
        self.rows = selected

    def __deepcopy__(self, memo: Any) -> EvictingLayer:
        copy = EvictingLayer.__new__(EvictingLayer)
        copy.__dict__.update(self.__dict__)
        if self.rows is not None:
            copy.rows = [row.fork() for row in self.rows]
        elif self.keys is not None and self.values is not None:
            copy.keys, copy.values, copy._buffers = self.keys.clone(), self.values.clone(), None
        return copy
