"""Keys and values in 8 or 4 bits."""

from __future__ import annotations

from typing import Any

import reticle._core as _core


class QuantisedTensor:
    """Keys or values whose rows are codes of 8 or 4 bits that share scales; made by `reticle.quantise`.

        keys, values = reticle.quantise(keys), reticle.quantise(values, bits=4)
        output, lse = reticle.attention(queries, keys, values)

    Attention and pipelines on the CPU take it for keys, values or both; it has no gradients. Attention is computed from
    the codes: a decode step over 8 bits reads about half the bytes of bfloat16. Where up to four queries share a pass over
    the keys, as in decoding, each is rounded to 13 bits (128 channels; 16 channels: 16 bits, 1024: 10) for it. What is
    read is `dequantise()`.

    A row is 32 channels after 32: each group has a multiplier, and the row a float32 scale, so that 128 channels take
    136 bytes in 8 bits and 72 bytes in 4. Rows are independent: `codes`, (..., rows, bytes of a row) uint8, can be
    sliced, concatenated and written to by row, as by a cache that grows. Indexing takes all dimensions but the last.

    `recent`, (..., n, channels) or None, holds the last n rows as they were before rounding. Attention reads these
    instead of their codes: the newest tokens matter most, and few bits cost them most (KIVI, Liu et al. 2024).
    """

    __slots__ = ("bits", "codes", "recent", "width")

    def __init__(self, codes: Any, bits: int, width: int, recent: Any = None) -> None:
        """`codes` (..., rows, bytes) uint8 in numpy or torch, of rows of `width` channels; `recent` in the same."""
        for name, given in (("codes", codes), ("recent", recent)):
            if given is not None and not (hasattr(given, "shape") and hasattr(given, "dtype")):
                raise TypeError(f"{name}: a {type(given).__name__}; expected a numpy array or a torch tensor")
        if not str(codes.dtype).endswith("uint8"):
            raise TypeError(f"codes: dtype is {codes.dtype}; expected uint8")
        if recent is not None and hasattr(codes, "detach") != hasattr(recent, "detach"):
            raise TypeError(
                f"recent: a {type(recent).__name__} beside codes in a {type(codes).__name__}; expected one of them"
            )
        expected = _core.bytes_of_quantised_row(width, bits)
        if len(codes.shape) < 1 or codes.shape[-1] != expected:
            raise ValueError(
                f"codes: shape {tuple(codes.shape)}; expected {expected} bytes in the last dimension, for {width} channels "
                f"of {bits} bits"
            )
        if recent is not None and (
            (*recent.shape[:-2], recent.shape[-1]) != (*codes.shape[:-2], width) or recent.shape[-2] > codes.shape[-2]
        ):
            raise ValueError(
                f"recent: shape {tuple(recent.shape)}; expected the last rows of {(*codes.shape[:-1], width)}"
            )
        self.codes, self.bits, self.width, self.recent = codes, bits, width, recent

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what the codes stand for."""
        return (*self.codes.shape[:-1], self.width)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.codes.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, multipliers, scales and recent rows."""
        return int(self.codes.nbytes) + (0 if self.recent is None else int(self.recent.nbytes))

    @property
    def requires_grad(self) -> bool:
        """False: codes have no gradients."""
        return False

    def dequantise(self) -> Any:
        """What attention reads: what the codes stand for and the recent rows, as float32 in the framework of the codes."""
        floats = _core.dequantise(self)
        if self.recent is not None:
            floats[..., floats.shape[-2] - self.recent.shape[-2] :, :] = self.recent
        return floats

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"{getattr(function, '__name__', function)}: given a QuantisedTensor, which only Reticle's attention reads; attach "
            "the model (reticle.hf.attach), use a cache with bits=None where a model computes with its cached keys itself, "
            "or dequantise() it"
        )

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a QuantisedTensor has no attribute {name!r}: only Reticle's attention reads it (reticle.hf.attach); "
            "dequantise() gives a tensor"
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a QuantisedTensor is not an array; dequantise() gives one, and `codes` can be concatenated")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.codes, self.bits, self.width, self.recent

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.codes, self.bits, self.width, self.recent = state

    def __getitem__(self, index: Any) -> QuantisedTensor:
        codes = self.codes[index]
        if len(codes.shape) < 1 or codes.shape[-1] != self.codes.shape[-1]:
            raise IndexError(
                f"index {index!r} selects channels of a quantised tensor {self.shape}; expected an index of the other "
                "dimensions (dequantise() gives the channels)"
            )
        return QuantisedTensor(codes, self.bits, self.width, self._recent_at(index))

    def _recent_at(self, index: Any) -> Any:
        """The recent rows of what an index selects; None if it selects rows by anything but a slice to the end."""
        if self.recent is None:
            return None
        indices = index if isinstance(index, tuple) else (index,)
        rows = self.ndim - 2
        if any(each is Ellipsis or each is None for each in indices) or len(indices) <= rows:
            return self.recent[index]
        if not isinstance(indices[rows], slice):
            return None
        begin, end, step = indices[rows].indices(self.shape[-2])
        left = self.shape[-2] - self.recent.shape[-2]
        if step != 1 or end <= max(begin, left):
            return None
        return self.recent[(*indices[:rows], slice(max(0, begin - left), end - left), *indices[rows + 1 :])]

    def __repr__(self) -> str:
        return f"QuantisedTensor(shape={self.shape}, bits={self.bits})"


def quantise(tensor: Any, bits: int = 8) -> QuantisedTensor:
    """Rounds keys or values (..., rows, channels), float32, float16 or bfloat16, to codes of 8 or 4 bits.

    Each group of 32 channels is rounded to multiples of 1/128 (8 bits) or 1/8 (4 bits) of its largest magnitude, or
    slightly more: a group's step is a whole multiple of the row's smallest. That is 1/4096 (8 bits) or 1/1016 (4 bits) of
    the row's largest, so groups below 1/32 or 1/127 of that are rounded more coarsely. A row that holds NaN or infinity
    becomes NaN, and one below 1e-30 becomes 0. ValueError for other bits, ShapeError for other dtypes and for more than 1024 channels.
    """
    if not isinstance(bits, int) or isinstance(bits, bool) or bits not in (4, 8):
        raise ValueError(f"bits is {bits!r}; expected 8 or 4")
    codes = _core.quantise(tensor, bits)
    return QuantisedTensor(codes, bits, int(tensor.shape[-1]))
