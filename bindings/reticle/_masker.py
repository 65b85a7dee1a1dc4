"""Maskers written in Python: reticle.Masker and reticle.register."""

from __future__ import annotations

import collections.abc
import dataclasses
import os
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union

import reticle._core as _core

if TYPE_CHECKING:
    from collections.abc import Callable

    from reticle import AttentionInputs, Mask

_Class = TypeVar("_Class", bound="type[Masker]")


class MaskerConfig:
    """Base of all config classes. Values are checked when a pipeline is made of them."""

    type: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The entry of a JSON config; fields that are None and default to None are left out."""
        entry: dict[str, Any] = {"type": self.type}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                entry[field.name] = os.fspath(value) if isinstance(value, Path) else value
        return entry


class Masker(MaskerConfig):
    """One selection rule written in Python: a dataclass whose fields are its config.

        @reticle.register("every_nth")
        @dataclass(frozen=True)
        class EveryNth(reticle.Masker):
            \"\"\"Every n-th key.\"\"\"

            n: Annotated[int, "distance between the keys kept"] = 4

            def select(self, inputs, previous, state):
                kept = np.arange(0, inputs.shape[3], self.n)
                return Mask.from_row_indices((1, 1, 1, inputs.shape[3]), kept[None]).broadcast_to(inputs.shape)

    Once registered it is a masker like any other: in JSON configs, beside C++ maskers, in `reticle.maskers.pipeline`,
    with a schema and documentation. Fields may be bool, int, float, str, Path, Literal["a", "b"], `int | float` (a
    size: a count or a fraction of the keys), lists of int, float, str or Path, and `| None` of these except sizes and
    literals. A ValueError of `__post_init__` whose message begins with a field's name is reported at that field.

    A masker that keeps something in `state` may also have `truncate(self, state, keys)` (forget keys from position
    `keys` on) and `select_rows(self, state, rows)` (sequence i continues the previous sequence rows[i]). Without them,
    cropping the cache or reordering its beams is refused.
    """

    framework: ClassVar[Literal["numpy", "torch"]] = "numpy"
    """What the tensors of `inputs` are: read-only numpy arrays (ml_dtypes' bfloat16 included) or torch tensors."""

    def select(self, inputs: AttentionInputs, previous: Mask, state: dict[str, Any]) -> Mask:
        """The keys that this masker adds: a mask of inputs.shape.

        Args:
            inputs: tensors and settings of this call. Tensors belong to the caller and are not copied.
            previous: the keys that earlier maskers chose. The pipeline merges the result into it.
            state: a dict for this layer of this sequence, kept across decode steps; empty at the start.
        """
        raise NotImplementedError

    def observe(self, inputs: AttentionInputs, state: dict[str, Any]) -> None:
        """Called with every prompt before any selection, if the masker takes part in generation."""


_SCALARS = {bool: "boolean", int: "integer", float: "real", str: "text", Path: "path"}


def _kind_of(annotation: Any) -> tuple[str, str, list[str]]:
    """(kind, container, choices) of a field, as _core.register_masker reads them; raises TypeError for other types."""
    container = ""
    options = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    if type(None) in options:
        container = "optional"
        options = tuple(option for option in options if option is not type(None))
    if set(options) == {int, float} and not container:
        return "size", "", []
    if len(options) == 1:
        origin, arguments = typing.get_origin(options[0]), typing.get_args(options[0])
        if origin is Literal and not container and all(isinstance(choice, str) for choice in arguments):
            return "choice", "", list(arguments)
        element = options[0]
        if origin in (list, collections.abc.Sequence, tuple) and set(arguments[1:]) <= {...}:
            container = f"{container} list".strip()
            element = arguments[0]
        if element in _SCALARS and not ("list" in container and element is bool):
            return _SCALARS[element], container, []
    raise TypeError(f"a masker's config cannot hold {annotation}; see reticle.Masker for what it can")


def _fields_of(cls: type) -> list[tuple[Any, ...]]:
    """The fields of a dataclass as _core.register_masker reads them."""
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: list[tuple[Any, ...]] = []
    for field in dataclasses.fields(cls):
        annotation, doc = hints[field.name], field.metadata.get("doc", "")
        if typing.get_origin(annotation) is Annotated:
            annotation, *notes = typing.get_args(annotation)
            doc = doc or next((note for note in notes if isinstance(note, str)), "")
        try:
            entry: tuple[Any, ...] = (field.name, doc, *_kind_of(annotation))
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.{field.name}: {error}") from None
        if field.default is not dataclasses.MISSING:
            entry += (field.default,)
        elif field.default_factory is not dataclasses.MISSING:
            entry += (field.default_factory(),)
        fields.append(entry)
    return fields


def register(name: str, *, source: str = "", rule: str = "", cost: str = "") -> Callable[[_Class], _Class]:
    """Registers a dataclass derived from reticle.Masker as the masker `name` of configs.

    The first line of its docstring is its summary; `source` (a paper), `rule` (what it selects) and `cost` go into its
    documentation. Registering a name again replaces the class in pipelines made later, so that a notebook cell can run
    twice.

    Raises:
        ConfigError: when a C++ masker has the name, or the name has characters other than a-z, 0-9 and _.
        TypeError: when the class is not such a dataclass, has no `select`, or has a field of a type that configs do not
            hold.
    """

    def add(cls: _Class) -> _Class:
        if not (isinstance(cls, type) and issubclass(cls, Masker) and dataclasses.is_dataclass(cls)):
            raise TypeError(f"{cls!r} is not a masker; expected a dataclass that derives from reticle.Masker")
        if cls.select is Masker.select:
            raise TypeError(f"{cls.__name__} has no select(inputs, previous, state)")
        summary = (cls.__doc__ or "").strip().split("\n")[0]
        docs = (summary, source or f"{cls.__module__}.{cls.__qualname__}", rule or summary, cost)
        _core.register_masker(name, cls, _fields_of(cls), docs, cls.framework == "torch")
        cls.type = name
        return cls

    return add
