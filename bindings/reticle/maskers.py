"""A config dataclass for every masker, generated from the registry: LocalConfig, OracleTopKConfig, ...

    from reticle.maskers import LocalConfig, OracleTopKConfig, SinkConfig, pipeline

    sparse = pipeline([SinkConfig(sink_size=128), LocalConfig(window_size=128), OracleTopKConfig(heavy_size=0.1)])

Fields, defaults and documentation come from the maskers. Sizes are counts (an int) or fractions of the keys (a float).
Every class also takes `layers` and `heads`, which restrict the masker to some of them. Maskers that plugins or Python
register later get their classes on first access.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

import reticle._core as _core
from reticle._masker import MaskerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reticle import SparseAttention


def class_name(masker: str) -> str:
    """The name of a masker's config class: oracle_top_k -> OracleTopKConfig."""
    return "".join(word.capitalize() for word in masker.split("_")) + "Config"


def _annotation(schema: Mapping[str, Any]) -> str:
    """The type of a field as a Python annotation."""
    if "enum" in schema:
        return "Literal[" + ", ".join(json.dumps(value) for value in schema["enum"]) + "]"
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_annotation(choice) for choice in schema["anyOf"]))
    if schema["type"] == "array":
        return f"Sequence[{_annotation(schema['items'])}]"
    return {"integer": "int", "number": "float", "boolean": "bool", "string": "str", "null": "None"}[schema["type"]]


def _fields(masker: str) -> list[tuple[str, str, Any]]:
    """(name, annotation, default) of a masker's parameters; the required ones have no default."""
    schema = json.loads(_core.schema(masker))
    required = set(schema["required"])
    fields: list[tuple[str, str, Any]] = []
    for name, entry in schema["properties"].items():
        if name == "type":
            continue
        annotation = _annotation(entry)
        if name in required:
            fields.append((name, annotation, dataclasses.MISSING))
        elif name in ("layers", "heads"):
            fields.append((name, f"{annotation} | None", None))
        else:
            fields.append((name, annotation, entry.get("default")))
    return fields


def config_class(masker: str) -> type[MaskerConfig]:
    """The dataclass of a masker's config; ConfigError, naming the nearest masker, for an unknown name."""
    entries = []
    for name, annotation, default in _fields(masker):
        if default is dataclasses.MISSING:
            entries.append((name, annotation, dataclasses.field()))
        elif isinstance(default, list):
            entries.append((name, annotation, dataclasses.field(default_factory=functools.partial(list, default))))
        else:
            entries.append((name, annotation, dataclasses.field(default=default)))
    made: type[MaskerConfig] = dataclasses.make_dataclass(
        class_name(masker), entries, bases=(MaskerConfig,), namespace={"type": masker}, frozen=True, kw_only=True
    )
    made.__doc__ = _core.describe_masker(masker)
    made.__module__ = __name__
    return made


_classes = {masker: config_class(masker) for masker in _core.masker_types()}
globals().update({made.__name__: made for made in _classes.values()})


def __getattr__(name: str) -> type[MaskerConfig]:
    for masker in _core.masker_types():
        if class_name(masker) == name:
            return config_class(masker)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; known maskers: {_core.masker_types()}")


def from_dict(config: Mapping[str, Any]) -> MaskerConfig:
    """The config object of one entry of "maskers" in a JSON config."""
    parameters = dict(config)
    masker = parameters.pop("type", None)
    made: type[MaskerConfig] = _classes.get(masker) or config_class(str(masker))
    return made(**parameters)


def pipeline(
    maskers: Iterable[MaskerConfig] | None = None,
    *,
    prefill: Iterable[MaskerConfig] = (),
    generation: Iterable[MaskerConfig] = (),
    causal: bool = False,
    seed: int = 0,
    merge: str = "add",
) -> SparseAttention:
    """A pipeline with the same maskers in both stages, or with different ones in each.

    Raises:
        ConfigError: with the place, the value and the expectation.
    """
    options: dict[str, Any] = {"causal": causal, "seed": seed, "merge": merge}
    if maskers is not None:
        if any(not hasattr(stage, "__len__") or len(stage) for stage in (prefill, generation)):  # type: ignore[arg-type]
            raise _core.ConfigError(
                "pipeline: maskers beside prefill or generation; expected one list, or one for each stage"
            )
        return _core.SparseAttention.from_json(to_json({**options, "maskers": _listed(maskers)}))
    stages = {"prefill": {"maskers": _listed(prefill)}, "generation": {"maskers": _listed(generation)}}
    return _core.SparseAttention.from_json(to_json({**options, **stages}))


def _listed(given: Iterable[MaskerConfig]) -> list[dict[str, Any]]:
    if given is None or isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise TypeError(
            f"pipeline: the maskers are {given!r}; expected a list of configs, as [SinkConfig(sink_size=4)]"
        )
    configs = list(given)
    for config in configs:
        if not hasattr(config, "to_dict"):
            raise TypeError(f"pipeline: a masker is {config!r}; expected a config, as SinkConfig(sink_size=4)")
    return [config.to_dict() for config in configs]


def to_json(config: Mapping[str, Any]) -> str:
    """The config as JSON; numbers of numpy and torch are converted to Python's."""

    def plain(value: Any) -> Any:
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            return value.item()
        raise _core.ConfigError(f"a config holds {value!r}, a {type(value).__name__}; expected what JSON has")

    try:
        return json.dumps(config, default=plain, allow_nan=False)
    except _core.ConfigError:
        raise
    except builtins.ValueError:
        raise _core.ConfigError(f"a config holds NaN or infinity, which JSON does not have: {config!r}") from None
