"""The model of lm-evaluation-harness, run by the harness itself over local tasks."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import reticle.maskers as m

torch = pytest.importorskip("torch", reason="torch is not installed; ./bootstrap test --torch installs it")
transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed; ./bootstrap test --torch does"
)
for package in ("lm_eval", "accelerate"):
    pytest.importorskip(package, reason=f"{package} is not installed; pip install 'reticle-attention[lm-eval]' does")

import reticle.hf  # noqa: E402 - after the packages that it needs
from reticle.research.lm_eval import ReticleLM  # noqa: E402

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])
MODEL = SOURCE / "examples/data/byte-llama-3m-retrieval"
WINDOW = {"maskers": [{"type": "sink", "sink_size": 2}, {"type": "local", "window_size": 6}]}
QUEST = {"maskers": [{"type": "quest_top_k", "heavy_size": 8, "page_size": 4}]}
TOVA = {"maskers": [{"type": "tova", "token_capacity": 16}]}
QUESTIONS = [
    {"context": "And God said, Let there be", "choices": [" light", " fish", "."], "answer": 0},
    {"context": "In the beginning God created the heaven and the", "choices": [" sea", " earth"], "answer": 1},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{context}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def byte_tokenizer():
    """The tokens of the bundled model, bytes, as a tokenizer of transformers. Byte 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in printed}
    names |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in names)}
    inner = Tokenizer(models.BPE(vocab={name: byte for byte, name in names.items()}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=names[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks, their data, a tokenizer and configs."""
    path = tmp_path_factory.mktemp("lm_eval")
    (path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    files = {"data_files": {"test": str(path / "questions.jsonl")}, "cache_dir": str(path / "cache")}
    for name, task in TASKS.items():
        common = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (path / f"{name}.yaml").write_text(json.dumps({**common, **task}))
    byte_tokenizer().save_pretrained(path / "tokenizer")
    for name, config in (("window", WINDOW), ("quest", QUEST), ("tova", TOVA)):
        (path / f"{name}.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def run(folder):
    """Runs one task with a model of the harness; the log likelihoods or texts by document, and the whole results."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)

    def run_task(task, model="reticle", **arguments):
        given = {"pretrained": str(MODEL), "tokenizer": str(folder / "tokenizer"), "dtype": "float32", **arguments}
        results = lm_eval.simple_evaluate(
            model=model, model_args=given, tasks=[task], task_manager=manager, device="cpu", bootstrap_iters=0
        )
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        return [[reply[0] for reply in sample["resps"]] for sample in samples], results

    return run_task


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def by_hand(model, context, continuation, stage, **patterns):
    """The log likelihood by reticle.hf alone; "generation": token by token, from the context's last one on."""
    tokens = list((context + continuation).encode())
    scored = len(continuation.encode())
    with torch.no_grad(), reticle.hf.attach(model, **patterns) as attached:
        if stage == "prefill":
            logits = model(torch.tensor([tokens[:-1]])).logits[0, -scored:]
        else:
            cache = reticle.hf.SparseCache()
            model(torch.tensor([tokens[: -scored - 1]]), past_key_values=cache)
            with attached.stage("generation"):
                steps = [
                    model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
                    for token in tokens[-scored - 1 : -1]
                ]
            logits = torch.stack(steps)
    return torch.log_softmax(logits, -1)[range(scored), tokens[-scored:]].sum().item()


def likelihoods(replies):
    return [[value for value, _ in document] for document in replies]


def expected(model, stage, **patterns):
    return [
        pytest.approx(
            [by_hand(model, row["context"], choice, stage, **patterns) for choice in row["choices"]], abs=2e-4
        )
        for row in QUESTIONS
    ]


def test_dense_figures_are_those_of_the_harness_own_model(run):
    for task in ("choices", "rolling", "generated"):
        own, dense = run(task, model="hf")[0], run(task)[0]
        if task == "generated":
            assert own == dense
            continue
        flat = [[value if task == "rolling" else value[0] for value in document] for document in own]
        found = [[value if task == "rolling" else value[0] for value in document] for document in dense]
        assert found == [pytest.approx(document, abs=2e-4) for document in flat]
        if task == "choices":
            assert [[greedy for _, greedy in document] for document in own] == [
                [greedy for _, greedy in document] for document in dense
            ]


def test_loglikelihoods_go_through_the_prefill_pattern(run, folder, model):
    replies, results = run("choices", prefill=str(folder / "window.json"))
    assert likelihoods(replies) == expected(model, "prefill", prefill=WINDOW)
    assert likelihoods(replies) != likelihoods(run("choices")[0])
    recorded = results["config"]["reticle"]
    assert recorded["prefill"]["maskers"][1]["window_size"] == 6 and recorded["continuation"] == "prefill"
    assert 0 < recorded["prefill_density"] < 1 and recorded["generation_density"] is None


@pytest.mark.parametrize("name", ["window", "quest", "tova"])
def test_continuations_go_through_the_generation_pattern_token_by_token(run, folder, model, name):
    pattern = json.loads((folder / f"{name}.json").read_text())
    replies, results = run("choices", generation=str(folder / f"{name}.json"), continuation="generation")
    assert likelihoods(replies) == expected(model, "generation", generation=pattern)
    assert replies[0][2] != run("choices")[0][0][2], "an answer of one token is computed by the pattern, too"
    recorded = results["config"]["reticle"]
    assert recorded["prefill_density"] == 1 and recorded["generation_density"] < 1


def test_both_patterns_apply_to_their_parts(run, folder, model):
    replies, _ = run(
        "choices",
        prefill=str(folder / "window.json"),
        generation=str(folder / "quest.json"),
        continuation="generation",
    )
    assert likelihoods(replies) == expected(model, "generation", prefill=WINDOW, generation=QUEST)


def test_a_context_is_prefilled_once_for_all_its_continuations(folder, monkeypatch):
    tokenizer = byte_tokenizer()
    lm = ReticleLM(
        str(MODEL), tokenizer=tokenizer, device="cpu", dtype="float32", generation=QUEST, continuation="generation"
    )
    calls = []
    inner = lm._forward
    monkeypatch.setattr(lm, "_forward", lambda tokens, *rest: calls.append(len(tokens)) or inner(tokens, *rest))
    context = list(b"And God said, Let there be")
    requests = [(None, context, list(choice)) for choice in (b" light", b" fish", b" light")]
    together = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert calls == [len(context) - 1, 6, 5, 6]
    alone = [lm._loglikelihood_tokens([request], disable_tqdm=True)[0] for request in requests]
    assert together == alone and together[0] == together[2]


def test_rolling_texts_are_one_prompt_or_all_generated(run, folder, model):
    text = QUESTIONS[0]["context"]
    (first, *_), *_ = run("rolling", prefill=str(folder / "window.json"))[0]
    assert first == pytest.approx(by_hand(model, "\0", text, "prefill", prefill=WINDOW), abs=2e-4)
    (first, *_), *_ = run("rolling", generation=str(folder / "window.json"), continuation="generation")[0]
    assert first == pytest.approx(by_hand(model, "\0", text, "prefill", prefill=WINDOW), abs=2e-4)
    with pytest.raises(ValueError, match=r"^a request without context: the generation pattern .*continuation=prefill"):
        run("rolling", generation=str(folder / "tova.json"), continuation="generation")


def test_generated_answers_follow_the_patterns(run, folder, model):
    replies, results = run("generated", generation=str(folder / "window.json"))
    ids = torch.tensor([list(QUESTIONS[0]["context"].encode())])
    with reticle.hf.attach(model, generation=WINDOW):
        tokens = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert replies[0] == [bytes(tokens.tolist()).decode().split("\n")[0]]
    assert results["config"]["reticle"]["generation_density"] < 1


def test_batches_change_nothing(run, folder):
    window = str(folder / "window.json")
    assert run("generated", generation=window, batch_size=2)[0] == run("generated", generation=window)[0]
    alone, together = (run("choices", prefill=window, batch_size=size)[0] for size in (1, 4))
    assert together == alone


def test_a_generation_pattern_that_a_task_would_not_use_is_refused(run, folder):
    with pytest.raises(ValueError, match=r"which would not use the generation pattern; expected .*continuation="):
        run("choices", generation=str(folder / "quest.json"))
    replies, _ = run("choices", generation=str(folder / "quest.json"), continuation="prefill")
    assert likelihoods(replies) == [pytest.approx(d, abs=1e-6) for d in likelihoods(run("choices")[0])]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"prefil": "a.json"}, TypeError, r"^model arguments prefil: transformers does not accept them .*prefill"),
        ({"continuation": "dense"}, ValueError, r'^continuation is \'dense\'; expected "prefill" or "generation"$'),
        ({"continuation": True}, ValueError, r"^continuation is True; expected"),
        ({"prefill": "no.json"}, FileNotFoundError, r"no such file; expected the path of a JSON config"),
        ({"attn_implementation": "sdpa"}, TypeError, r"^attn_implementation was given; Reticle computes the attention"),
    ],
)
def test_arguments_that_are_not_understood_are_named(given, error, message):
    with pytest.raises(error, match=message):
        ReticleLM(str(MODEL), tokenizer=byte_tokenizer(), device="cpu", **given)


def test_arguments_for_loading_are_refused_for_a_model_that_is_loaded(model):
    with pytest.raises(TypeError, match=r"^model arguments token are not known for a model that is loaded; expected "):
        ReticleLM(model, tokenizer=byte_tokenizer(), token="x")
    lm = ReticleLM(model, tokenizer=byte_tokenizer(), prefill=[m.LocalConfig(window_size=4)])
    lm._attached.detach()


def test_the_entry_point_gives_the_model():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 and later have tomllib")
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    (entry,) = project["entry-points"]["lm_eval.models"].items()
    assert entry[0] == "reticle"
    assert importlib.metadata.EntryPoint(*entry, "lm_eval.models").load() is ReticleLM


def test_the_command_knows_the_model(folder):
    given = f"pretrained={MODEL},tokenizer={folder}/tokenizer,dtype=float32,prefill={folder}/window.json"
    command = [sys.executable, "-m", "reticle.research.lm_eval", "--model", "reticle", "--model_args", given]
    command += ["--tasks", "choices", "--include_path", folder, "--device", "cpu", "--output_path", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (written,) = (folder / "out").rglob("results*.json")
    assert json.loads(written.read_text())["config"]["reticle"]["prefill_density"] < 1
