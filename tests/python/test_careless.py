"""Careless callers: stale results, missing gradients, odd arguments."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import reticle
from reticle.maskers import SinkConfig, pipeline

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")

import reticle.torch  # noqa: E402


def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 6, 16), (2, 2, 9, 16), (2, 2, 9, 8))
    return [torch.randn(*shape, generator=generator) for shape in shapes]


# --- maskers, patterns ------------------------------------------------------------------------------------------------


def test_a_generator_of_maskers_is_a_list_of_them():
    configs = [SinkConfig(sink_size=4)]
    inputs = tensors()
    expected = pipeline(configs).run(*inputs, reticle.SequenceState())[1]
    assert pipeline(config for config in configs).run(*inputs, reticle.SequenceState())[1] == expected
    for wrong in (None, "sink"):
        with pytest.raises(TypeError, match="expected a list of configs"):
            pipeline(generation=wrong)
    with pytest.raises(reticle.ConfigError, match="holds NaN or infinity"):
        pipeline([SinkConfig(sink_size=float("nan"))])


def test_selected_blocks_are_numbers_of_blocks():
    shape = (1, 2, 6, 9)
    with pytest.raises(reticle.ShapeError, match=r"is torch.float32; expected integers"):
        reticle.torch.SelectedBlocks(torch.tensor([[[[0, 1.7]]]]), 4).mask(shape)
    for number in (7, -7):
        with pytest.raises(reticle.ShapeError, match=f"there is no block {number} of 4 in 9 keys"):
            reticle.torch.SelectedBlocks(torch.tensor([[[[0, number]]]]), 4).mask(shape)
    for size in (0, -4, 2**40):
        with pytest.raises(reticle.InvalidValueError, match=f"block_size is {size}; expected 1 to"):
            reticle.torch.SelectedBlocks(torch.tensor([[[[0]]]]), size).mask(shape)


@pytest.mark.parametrize("band", [{"width": -1}, {"width": 3, "stride": 0}, {"kernel": 0}, {"first_query": -2}])
def test_bands_without_extents_are_refused(band):
    with pytest.raises(reticle.InvalidValueError, match="expected"):
        reticle.torch.Band(**band).mask((1, 1, 4, 9))


def test_bands_and_blocks_are_what_their_words_say():
    q, kv = torch.arange(7)[:, None], torch.arange(9)
    complete = torch.clamp((q + 2 + 1 - 3) // 2 + 1, min=0)
    expected = (kv < complete) & (kv >= complete - 2)
    mask = reticle.torch.Band(width=2, first_query=2, kernel=3, stride=2).mask((1, 1, 7, 9))
    assert np.array_equal(mask.to_dense()[0, 0] > 0, expected.numpy())
    numbers = torch.tensor([[[[0, 2, -1]], [[1, -1, -1]]]]).expand(1, 2, 5, 3)
    found = reticle.torch.SelectedBlocks(numbers, 4).mask((1, 4, 5, 11)).to_dense() > 0
    seen = torch.arange(11) <= torch.arange(5)[:, None] + 6
    keys = torch.arange(11)
    first, second = ((keys < 4) | (keys >= 8)) & seen, ((keys >= 4) & (keys < 8)) & seen
    assert np.array_equal(found[0], torch.stack([first, first, second, second]).numpy())


# --- gradients --------------------------------------------------------------------------------------------------------


def test_results_without_gradients_say_so_when_they_are_asked_for_some():
    q, k, v = tensors()
    sparse = reticle.SparseAttention.from_json('{"maskers": [{"type": "sink"}]}')
    handler = reticle.InferenceHandler(sparse, sparse)
    mask = reticle.Mask.full((2, 4, 6, 9))
    q.requires_grad_()
    calls = {
        "SparseAttention.run": lambda: sparse.run(q, k, v, reticle.SequenceState())[0],
        "SparseAttention.measure": lambda: sparse.measure(q, k, v, reticle.SequenceState())[0],
        "SparseAttention.attend": lambda: handler.attend(q, k, v, reticle.InferenceState(), stage="generation")[0],
        "attention_weights": lambda: reticle.attention_weights(q, k, v, mask)[0],
    }
    for name, call in calls.items():
        with torch.no_grad():
            expected = call()
        output = call()
        assert torch.equal(output.detach(), expected)
        with pytest.raises(NotImplementedError, match=f"{name} has no gradients"):
            (q.sum() + output.sum()).backward()


def test_what_gets_no_gradient_is_refused_where_it_asks_for_one():
    q, k, v = tensors()
    asking = torch.tensor(0.5, requires_grad=True)
    for options in ({"scaling": asking}, {"soft_cap": asking}):
        with pytest.raises(NotImplementedError, match="requires gradients, which it gets none of"):
            reticle.attention(q, k, v, **options)
    with pytest.raises(NotImplementedError, match="keys: requires gradients"):
        reticle.attention(q.numpy(), k.clone().requires_grad_(), v)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(q, q)
        with pytest.raises(NotImplementedError, match="forward-mode derivatives"):
            reticle.attention(dual, k, v)


def test_hubs_functions_do_not_drop_gradients():
    hub = pytest.importorskip("reticle.hub")
    q, k, v = tensors()
    full = hub.Mask.create_full_mask((2, 4, 6, 9), device="cpu")
    bias = torch.zeros(2, 4, 6, 9, requires_grad=True)
    with pytest.raises(NotImplementedError, match="attention_mask: requires gradients"):
        hub.get_masked_attention_output(None, q, k, v, bias, 0.3, 0.0, full)
    numerator = hub.get_attention_numerator(None, q.requires_grad_(), k, v, None, 0.3, 0.0, full)
    with pytest.raises(NotImplementedError, match="get_attention_numerator has no gradients"):
        numerator.sum().backward()


# --- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_of_other_kinds_are_named():
    q, k, v = tensors()
    for call, words in (
        (lambda: reticle.attention(q, k.numpy(), v), "keys: a ndarray beside queries of torch"),
        (lambda: reticle.attention(q, k, None), "values: a NoneType beside queries of torch"),
        (
            lambda: reticle.attention(q.numpy(), k.numpy(), v.numpy(), np.ones((6, 9), bool)),
            "mask: a ndarray; expected",
        ),
        (lambda: reticle.attention(q, k, v, causal="no"), "causal: is 'no'; expected True or False"),
        (lambda: reticle.attention(q, k, v, scaling="1"), "scaling: is '1'; expected a number"),
    ):
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(reticle.ShapeError, match=r"mask: is \(5, 9\); expected a tensor that is broadcastable"):
        reticle.attention(q, k, v, torch.ones(5, 9, dtype=torch.bool))
    sparse = pipeline([SinkConfig(sink_size=4)])
    for extras, words in (({5: q}, "extras: a key is 5"), ([q], "extras: a list; expected a dict")):
        with pytest.raises(TypeError, match=words):
            sparse.run(q, k, v, reticle.SequenceState(), extras=extras)


@pytest.mark.parametrize("read", [reticle.Mask.load, reticle.load_tensors, reticle.SparseAttention.from_file])
def test_a_file_that_is_not_there_is_pythons_error_and_ours(read, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent") as caught:
        read(tmp_path / "absent")
    assert isinstance(caught.value, reticle.Error) and caught.value.filename == str(tmp_path / "absent")


def test_the_name_of_a_pattern_is_told_from_a_path():
    pytest.importorskip("transformers")
    from reticle.hf._attach import pipeline_of

    with pytest.raises(FileNotFoundError, match=r"expected the path of a JSON config.*'quest'"):
        pipeline_of("quest")


def test_masks_are_indexed_by_integers():
    mask = reticle.Mask.full((1, 2, 3, 4))
    assert mask[np.int64(0), 1].shape == (1, 1, 3, 4)
    for index in (np.array([0, 1]), 1.5, None, "a"):
        with pytest.raises(IndexError, match="a mask is indexed by integers"):
            mask[index]
    with pytest.raises(IndexError, match="out of range"):
        mask[2**70]
    with pytest.raises(reticle.ShapeError, match="expected at least one of each"):
        mask.picture(0, 0, -1, 10)
    with pytest.raises(reticle.ShapeError, match="more than 2\\^34 blocks"):
        reticle.Mask.full((1, 1, 2**20, 2**20)).to_blocks(1, 1)


def test_sums_of_narrow_integers_do_not_wrap():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix((np.array([200, 56, 1], np.uint8), [0, 0, 1], [0, 2, 3]), shape=(2, 8))
    with pytest.raises(reticle.ShapeError, match="p is 256"):
        reticle.Mask.from_scipy(matrix, (1, 1, 2, 8))
    with pytest.raises(TypeError, match="a ndarray; expected a tensor of torch"):
        reticle.Mask.from_torch_sparse(np.eye(2), (1, 1, 2, 2))
    with pytest.raises(reticle.ShapeError, match=r"shape is \(2, 8\); expected"):
        reticle.Mask.from_torch_sparse(torch.eye(2), (2, 8))


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "llama3", "factor": 8.0}, 'has no "low_freq_factor"'),
        ({"rope_type": "linear"}, 'has no "factor"'),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'; expected a number"),
        ({"rope_type": "linear", "factor": 2.0, "facto": 1}, 'has "facto", which is not understood'),
        (
            {"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
            | {"original_max_position_embeddings": 8192.7},
            "is 8192.7; expected a whole number",
        ),
    ],
)
def test_rope_scaling_is_not_guessed(scaling, words):
    with pytest.raises(ValueError, match=words):
        reticle._core.Rope(64, 10000.0, scaling)


BARE = """
import reticle
mask = reticle.Mask.full((1, 1, 1, 1))
for make in (type(mask).__mro__[1], mask.__reduce__):
    try:
        make()
    except TypeError as error:
        print(error)
"""


def test_bare_objects_are_a_type_error_and_not_the_end():
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("cannot be made by itself") == 2


# --- results on disk --------------------------------------------------------------------------------------------------


def error_of(trial):
    return {"error": 1.0, "density": 0.5}


def other_error_of(trial):
    return {"error": 2.0, "density": 0.5}


def test_a_searchs_file_is_of_one_measure(tmp_path):
    pytest.importorskip("pandas")
    from reticle.research import search

    space, output = [SinkConfig(sink_size=4)], tmp_path / "trials.jsonl"
    assert search.run(space, error_of, output=output, progress=False)["error"][0] == 1.0
    before = output.read_text()
    with pytest.raises(ValueError, match="holds results of another measure"):
        search.run(space, other_error_of, output=output, progress=False)
    assert output.read_text() == before
    notes = tmp_path / "notes.txt"
    for content in (b"my notes", b"\xff\xfe\x00", b'{"a": 1}'):
        notes.write_bytes(content)
        with pytest.raises(ValueError, match="is not a"):
            search.run(space, error_of, output=notes, progress=False)
        assert notes.read_bytes() == content
    with pytest.raises(reticle.FormatError):
        search.run(space, error_of, output="/dev/full", progress=False)
    output.write_text(before + '{"maskers": [{"ty')  # a stopped run left an incomplete line
    assert search.run(space, error_of, output=output, progress=False)["error"][0] == 1.0
    assert output.read_text() == before
    for wrong in ({"queries": 0}, {"stage": "both"}):
        with pytest.raises(ValueError, match="expected"):
            search.TensorMeasure("a.safetensors", **wrong)


def test_examples_are_one_sequence_each():
    evaluate = pytest.importorskip("reticle.research.evaluate")
    ids = torch.arange(10)
    assert evaluate.tokens_of({"input_ids": ids, "output_length": 4}, 0)[1] == 4
    with pytest.raises(ValueError, match=r"input_ids are \(2, 5\); expected one sequence"):
        evaluate.tokens_of({"input_ids": ids.reshape(2, 5), "output_length": 1}, 0)
    with pytest.raises(ValueError, match=r"output_length is 1\.9; expected a whole number"):
        evaluate.tokens_of({"input_ids": ids, "output_length": 1.9}, 0)
    with pytest.raises(ValueError, match="expected as many numbers as input_ids, 10"):
        evaluate.tokens_of({"input_ids": ids, "attention_mask": torch.ones(9), "output_length": 1}, 0)


FORKED = """
import os, sys
from reticle import hub
log = hub.MicroMetricLogger()
log.register_metric("a", float)
log.configure_logging(sys.argv[1], ["a"])
log.log("a", 1.0, metadata := {"step": 1})
metadata["step"] = 2
log.log("a", 2.0, metadata)
if os.fork() == 0:
    log.log("a", 3.0)
    sys.exit(0)
os.wait()
"""


def test_events_are_written_once_and_as_they_were(tmp_path):
    pytest.importorskip("reticle.hub")
    subprocess.run([sys.executable, "-c", FORKED, tmp_path], check=True, env=os.environ)
    events = [json.loads(line) for line in (tmp_path / "micro_metrics.jsonl").read_text().splitlines()]
    assert sorted(event["value"] for event in events) == [1.0, 2.0, 3.0]
    assert {event["value"]: event["metadata"] for event in events}[1.0] == {"step": 1}


def test_an_event_that_cannot_be_written_is_refused_and_the_others_are_there(tmp_path):
    hub = pytest.importorskip("reticle.hub")
    made = hub.MicroMetricLogger._instance
    hub.MicroMetricLogger._instance = None
    try:
        log = hub.MicroMetricLogger()
        log.register_metric("careless", float)
        log.configure_logging(tmp_path, ["careless"])
        log.log("careless", np.float32(0.5), {"layer": torch.tensor(3), "head": np.int64(2)})
        with pytest.raises(TypeError, match="'careless' holds what JSON does not"):
            log.log("careless", 1.0, {"set": {1}})
        log.log("careless", 2.0)
        log.flush()
    finally:
        hub.MicroMetricLogger._instance = made
    events = [json.loads(line) for line in (tmp_path / "micro_metrics.jsonl").read_text().splitlines()]
    assert [event["value"] for event in events] == [0.5, 2.0]
    assert events[0]["metadata"] == {"layer": 3, "head": 2}


def test_parts_of_the_package_come_when_they_are_asked_for():
    code = "import reticle\nprint(reticle.maskers.SinkConfig().sink_size, reticle.hf.attach.__name__)\nreticle.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "128 attach\n"
    assert done.stderr.endswith("AttributeError: module 'reticle' has no attribute 'nothing'\n")


def test_a_call_without_a_state_is_a_sequence_of_its_own():
    q, k, v = (np.random.default_rng(i).normal(size=(1, 2, 9, 8)).astype(np.float32) for i in range(3))
    sparse = pipeline([SinkConfig(sink_size=2)], causal=True)
    alone, with_state = sparse.run(q, k, v), sparse.run(q, k, v, reticle.SequenceState())
    assert alone[1] == with_state[1] and (alone[0] == with_state[0]).all()
    compressing = reticle.SparseAttention.from_json(
        '{"prefill": {"maskers": []}, "generation": {"maskers": [{"type": "tova"}]}}'
    )
    with pytest.raises(reticle.Error, match="prefill"):
        compressing.mask(q[:, :, -1:], k, v, stage="generation")
