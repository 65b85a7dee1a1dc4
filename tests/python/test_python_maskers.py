"""Maskers written in Python."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
import reticle
from reticle import Mask, maskers
from reticle.maskers import LocalConfig, SinkConfig, pipeline


@reticle.register("every_nth", source="this test", rule="keys 0, n, 2n, ...", cost="O(keys / n)")
@dataclass(frozen=True)
class EveryNth(reticle.Masker):
    """Every n-th key."""

    n: Annotated[int, "distance between the keys kept"] = 4
    first: Annotated[int | float, "where it begins"] = 0

    def __post_init__(self):
        if self.n < 1:
            raise ValueError("n must be >= 1")

    def select(self, inputs, previous, state):
        length = inputs.shape[3]
        first = int(self.first * length) if isinstance(self.first, float) else self.first
        return Mask.from_row_indices((1, 1, 1, length), np.arange(first, length, self.n)[None]).broadcast_to(
            inputs.shape
        )


def tensors(queries=3, keys=12, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((2, 4, queries, 8)).astype(dtype),
        random.standard_normal((2, 2, keys, 8)).astype(dtype),
        random.standard_normal((2, 2, keys, 8)).astype(dtype),
    )


def keys_of(mask, row=0):
    row_ptr, indices, _ = mask.to_csr()
    return indices[row_ptr[row] : row_ptr[row + 1]].tolist()


def test_a_python_masker_composes_with_those_of_cpp_in_json_and_in_objects():
    text = '{"maskers": [{"type": "sink", "sink_size": 2}, {"type": "every_nth", "n": 5}]}'
    state = reticle.SequenceState()
    mask = reticle.SparseAttention.from_json(text).mask(*tensors(), state)
    assert keys_of(mask) == [0, 1, 5, 10]
    made = pipeline([SinkConfig(sink_size=2), EveryNth(n=5)])
    assert made.mask(*tensors(), reticle.SequenceState()) == mask
    assert made.to_json() == reticle.SparseAttention.from_json(text).to_json()


def test_it_is_listed_described_and_has_a_schema_and_a_config_class():
    assert "every_nth" in reticle._core.masker_types()
    schema = json.loads(reticle._core.schema("every_nth"))
    assert schema["properties"]["n"] == {
        "type": "integer",
        "minimum": -(2**31),
        "maximum": 2**31 - 1,
        "description": "distance between the keys kept",
        "default": 4,
    }
    described = reticle._core.describe_masker("every_nth")
    assert "Every n-th key." in described and "this test" in described
    config = maskers.EveryNthConfig(n=6, heads=[1])
    mask = pipeline([LocalConfig(window_size=1), config]).mask(*tensors(), reticle.SequenceState())
    assert keys_of(mask, row=0) == [9] and keys_of(mask, row=3) == [0, 6, 9]


def test_what_post_init_refuses_is_named_by_its_place():
    with pytest.raises(reticle.ConfigError, match=r"^/maskers/0/n: must be >= 1, got 0$"):
        pipeline([maskers.EveryNthConfig(n=0)])
    with pytest.raises(reticle.ConfigError, match=r"/maskers/0/n: \"x\" is not an integer"):
        reticle.SparseAttention.from_json('{"maskers": [{"type": "every_nth", "n": "x"}]}')
    with pytest.raises(reticle.ConfigError, match='did you mean "first"'):
        reticle.SparseAttention.from_json('{"maskers": [{"type": "every_nth", "firts": 1}]}')


@reticle.register("all_kinds")
@dataclass
class AllKinds(reticle.Masker):
    """A field of every kind."""

    needed: int
    flag: bool = True
    rate: float = 1
    name: str = "a"
    path: Path = Path("x/y")
    size: int | float = 0.5
    way: Literal["up", "down"] = "down"
    none: int | None = None
    some: float | None = 2.0
    counts: list[int] = field(default_factory=lambda: [1, 2])
    names: tuple[str, ...] | None = ("p", "q")

    seen: ClassVar[list] = []

    def select(self, inputs, previous, state):
        AllKinds.seen.append(self)
        return previous


def test_fields_of_every_kind_cross_both_ways():
    made = pipeline([AllKinds(needed=3)])
    printed = json.loads(made.to_json())["maskers"][0]
    assert printed == {
        "type": "all_kinds",
        "needed": 3,
        "flag": True,
        "rate": 1.0,
        "name": "a",
        "path": "./x/y",
        "size": 0.5,
        "way": "down",
        "none": None,
        "some": 2.0,
        "counts": [1, 2],
        "names": ["p", "q"],
    }
    made = reticle.SparseAttention.from_json(
        json.dumps(
            {"maskers": [{**printed, "size": 7, "way": "up", "none": 4, "some": None, "counts": [], "flag": False}]}
        ),
        "/base",
    )
    made.mask(*tensors(), reticle.SequenceState())
    last = AllKinds.seen[-1]
    assert (last.size, last.way, last.none, last.some, last.counts, last.flag) == (7, "up", 4, None, [], False)
    assert last.path == Path("/base/x/y") and last.names == ["p", "q"] and type(last.size) is int
    with pytest.raises(reticle.ConfigError, match='"needed" is missing'):
        reticle.SparseAttention.from_json('{"maskers": [{"type": "all_kinds"}]}')
    with pytest.raises(reticle.ConfigError, match='"up", "down"'):
        pipeline([AllKinds(needed=1, way="left")])


@reticle.register("probe")
@dataclass(frozen=True)
class Probe(reticle.Masker):
    """Records what it receives."""

    calls: ClassVar[list] = []

    def select(self, inputs, previous, state):
        state["steps"] = state.get("steps", 0) + 1
        Probe.calls.append((inputs, previous, state["steps"], state.get("prompt")))
        return Mask.full(inputs.shape)

    def observe(self, inputs, state):
        state["prompt"] = inputs.shape[3]


def test_inputs_are_the_callers_memory_and_outlive_the_call():
    q, k, v = tensors()
    wide = np.zeros((2, 2, 12, 16), np.float32)
    wide[..., ::2] = k
    bias = np.zeros((1, 1, 3, 12), np.float32)
    extra = np.arange(5, dtype=np.int64)
    pipeline([SinkConfig(sink_size=1), Probe()]).mask(
        q,
        wide[..., ::2],
        v,
        reticle.SequenceState(),
        attention_mask=bias,
        extras={"draws": extra},
        scaling=0.25,
        layer=7,
    )
    inputs, previous, _, _ = Probe.calls[-1]
    assert np.shares_memory(inputs.queries, q) and np.shares_memory(inputs.keys, wide)
    assert inputs.keys.strides == wide[..., ::2].strides
    assert np.shares_memory(inputs.attention_mask, bias) and np.shares_memory(inputs.extras["draws"], extra)
    assert not inputs.queries.flags.writeable
    assert (inputs.scaling, inputs.layer, inputs.stage, inputs.shape) == (0.25, 7, "prefill", (2, 4, 3, 12))
    assert (inputs.kv_heads, inputs.position(0), inputs.causal) == (2, 9, False)
    assert keys_of(previous) == [0]
    expected = q.copy()
    del q
    np.testing.assert_array_equal(inputs.queries, expected)


def test_state_is_kept_per_layer_and_sequence_and_prompts_are_shown_to_the_generation_stage():
    handler = reticle.InferenceHandler(pipeline([SinkConfig()]), pipeline([Probe()]))
    state = reticle.InferenceState()
    handler.attend(*tensors(5, 5), state)
    for length in (6, 7):
        handler.attend(*tensors(1, length), state, stage="generation")
    assert [(call[2], call[3]) for call in Probe.calls[-2:]] == [(1, 5), (2, 5)]
    state.reset()
    handler.attend(*tensors(4, 4), state)
    handler.attend(*tensors(1, 5), state, stage="generation")
    assert Probe.calls[-1][2:] == (1, 4)


@reticle.register("wrong")
@dataclass(frozen=True)
class Wrong(reticle.Masker):
    """Returns an invalid result."""

    way: Literal["array", "raise", "shape"] = "array"

    def select(self, inputs, previous, state):
        if self.way == "raise":
            raise KeyError("inside select")
        return np.ones(inputs.shape) if self.way == "array" else Mask.full((1, 1, 1, 1))


def test_mistakes_in_select_reach_the_caller():
    run = lambda way: pipeline([Wrong(way)]).run(*tensors(), reticle.SequenceState())
    with pytest.raises(TypeError, match=r"Wrong.select returned a ndarray; expected a reticle.Mask"):
        run("array")
    with pytest.raises(KeyError, match="inside select"):
        run("raise")
    with pytest.raises(reticle.ShapeError, match='"wrong" returned a mask of shape'):
        run("shape")


def test_registering_again_replaces_and_a_name_of_cpp_is_refused():
    old = pipeline([EveryNth(n=3)])

    @reticle.register("replaced")
    @dataclass(frozen=True)
    class First(reticle.Masker):
        """First."""

        def select(self, inputs, previous, state):
            return Mask.empty(inputs.shape)

    old = pipeline([First()])

    @reticle.register("replaced")
    @dataclass(frozen=True)
    class Second(reticle.Masker):
        """Second."""

        def select(self, inputs, previous, state):
            return Mask.full(inputs.shape)

    assert old.mask(*tensors(), reticle.SequenceState()).nnz == 0
    assert pipeline([Second()]).mask(*tensors(), reticle.SequenceState()).density == 1
    for name, message in (("sink", "is registered already"), ("Bad Name", "not made of")):
        with pytest.raises(reticle.ConfigError, match=message):
            reticle.register(name)(Second)
    with pytest.raises(TypeError, match="is not a masker"):
        reticle.register("x")(int)
    with pytest.raises(TypeError, match="no select"):
        reticle.register("x")(dataclass(type("Idle", (reticle.Masker,), {})))

    @dataclass(frozen=True)
    class Odd(First):
        z: complex = 1j

    with pytest.raises(TypeError, match=r"Odd.z: a masker's config cannot hold"):
        reticle.register("x")(Odd)


def test_torch_tensors_where_a_masker_asks_for_them():
    torch = pytest.importorskip("torch")

    @reticle.register("with_torch")
    @dataclass(frozen=True)
    class WithTorch(reticle.Masker):
        """Keys that score above zero."""

        framework = "torch"

        def select(self, inputs, previous, state):
            state["inputs"] = inputs
            keys = inputs.keys.repeat_interleave(2, 1)
            return Mask.dense((inputs.queries.float() @ keys.float().mT > 0).numpy())

    q, k, v = (torch.from_numpy(tensor).bfloat16() for tensor in tensors())
    mask = pipeline([WithTorch()]).mask(q, k, v, reticle.SequenceState())
    expected = (q.float() @ k.repeat_interleave(2, 1).float().mT > 0).numpy()
    assert mask == Mask.dense(expected)


def test_what_it_keeps_follows_its_sequences_or_is_refused():
    @reticle.register("test_keeps")
    @dataclass(frozen=True)
    class Keeps(reticle.Masker):
        """Stores the number of keys in its state."""

        def select(self, inputs, previous, state):
            state.setdefault("lengths", []).append(inputs.shape[3])
            return reticle.Mask.full(inputs.shape)

    @reticle.register("test_follows")
    @dataclass(frozen=True)
    class Follows(Keeps):
        """Supports truncation and selection of its state too."""

        def truncate(self, state, keys):
            state["lengths"] = [length for length in state["lengths"] if length <= keys]

        def select_rows(self, state, rows):
            state["rows"] = rows

    q = np.zeros((2, 1, 1, 4), np.float32)
    for name, follows in (("test_keeps", False), ("test_follows", True)):
        sparse, state = (
            reticle.SparseAttention.from_json(f'{{"maskers": [{{"type": "{name}"}}]}}'),
            reticle.SequenceState(),
        )
        state.truncate(0)
        for keys in (3, 4, 5):
            k = np.zeros((2, 1, keys, 4), np.float32)
            sparse.mask(q, k, k, state)
        fork = state.fork()
        if follows:
            state.truncate(4)
            state.select([1, 1, 0])
            fork.truncate(3)
        else:
            for call in (lambda: state.truncate(4), lambda: fork.select([0])):  # noqa: B023
                with pytest.raises(
                    reticle.InvalidValueError, match='masker "test_keeps" cannot follow its sequence: its class has no'
                ):
                    call()
        with pytest.raises(reticle.InvalidValueError, match=r"truncate: -1 keys; expected 0 or more"):
            state.truncate(-1)
