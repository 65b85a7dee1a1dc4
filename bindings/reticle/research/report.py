"""Measures what patterns cost a Hugging Face model on a text: losses, sparsities and pictures of masks, in one call.

    reticle evaluate configs/quest.json configs/tova.json --text FILE --model DIR --plot REPORT

Without `--plot`, `reticle evaluate` is the C++ command, which draws nothing; with `--plot` and `--grid` or `--tasks` it is
that command, whose results `reticle.research.curves` draws. Options of the same name have the same
meaning, except that the C++ command's windows are followed by the last token that they predict.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import reticle._core as _core
from reticle.hf._attach import STAGES, pipeline_of
from reticle.research import evaluate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.axes import Axes

    from reticle import Mask
    from reticle.hf._attach import Config
    from reticle.research.evaluate import Loss

_BUNDLED = Path(__file__).resolve().parents[3] / "examples/data/byte-llama-3m-retrieval"
_MAX_LAYERS = 4


def text_examples(
    tokenizer: Any,
    text: str,
    *,
    window: int = 1024,
    output_length: int = 64,
    examples: int | None = None,
    chat_template: bool = False,
    prompt: str = "{text}",
) -> list[dict[str, Any]]:
    """Pieces of a text in the form of `evaluate.loss`: {input_ids, attention_mask, output_length}.

    Args:
        window: tokens per piece; a remainder at the end is dropped.
        output_length: the number of tokens at a piece's end that are generated.
        examples: the largest number of pieces; None: all.
        chat_template: put the tokens before the output into a user's turn of the tokenizer's chat template; the output
            is the answer.
        prompt: the text of that turn; {text} stands for the piece.

    Raises:
        ValueError: when the text is shorter than a window, no token is left before the output, or there is no chat
            template.
    """
    if not 0 < output_length < window:
        raise ValueError(f"output_length is {output_length}; expected at least 1 and less than the window, {window}")
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise ValueError("chat_template was asked for, and the tokenizer has none")
    if "{text}" not in prompt:
        raise ValueError(f"prompt is {prompt!r}; expected {{text}} in it")
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if len(tokens) < window:
        raise ValueError(f"the text has {len(tokens)} tokens; expected at least a window, {window}")
    found = []
    for begin in range(0, len(tokens) - window + 1, window):
        piece = tokens[begin : begin + window]
        if chat_template:
            content = prompt.replace("{text}", tokenizer.decode(piece[:-output_length]))
            turn = [{"role": "user", "content": content}]
            before = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            piece = tokenizer.encode(before, add_special_tokens=False) + piece[-output_length:]
        ids = torch.tensor([piece])
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "output_length": output_length})
    return found[:examples]


def losses(
    model: Any,
    examples: Iterable[Mapping[str, Any]],
    configs: Mapping[str, Config],
    *,
    stage: str = "both",
    progress: bool = True,
) -> dict[str, Loss]:
    """`evaluate.loss` of "dense" and of every config, with the masks of the first example.

    Args:
        stage: the stage that a config is used for, "prefill", "generation" or "both"; the other stage is dense. Configs
            with separate stages apply theirs.
    """
    if stage not in ("both", *STAGES):
        raise ValueError(f'stage is {stage!r}; expected "both", "prefill" or "generation"')
    stages = STAGES if stage == "both" else (stage,)
    pipelines = {name: pipeline_of(config) for name, config in configs.items()}
    held = list(examples)
    found = {"dense": evaluate.loss(model, held, masks=True, progress=progress)}
    for name, pipeline in pipelines.items():
        by_stage: dict[str, Any] = {each: pipeline for each in stages}
        found[name] = evaluate.loss(model, held, masks=True, progress=progress, **by_stage)
    return found


def write(results: Mapping[str, Loss], folder: str | Path) -> list[Path]:
    """Writes losses.csv, losses.png (loss over sparsity of each stage) and masks_<name>.png (one head of up to four
    layers) to a folder, which is created. Needs matplotlib."""
    import matplotlib.pyplot as plt

    from reticle.research import curves

    curves.use_style()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    table = target / "losses.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "loss", "prefill_sparsity", "generation_sparsity", "examples"))
        writer.writerows((n, r.loss, r.prefill_sparsity, r.generation_sparsity, r.examples) for n, r in results.items())
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharey=True)
    for axis, stage in zip(axes, STAGES, strict=True):
        _plot_losses(axis, results, stage)
    paths = [table, target / "losses.png"]
    figure.savefig(paths[-1])
    plt.close(figure)
    for name, result in results.items():
        layers = _spread(len(result.masks[STAGES[0]]))
        figure, grid = plt.subplots(
            len(STAGES), len(layers), figsize=(3.2 * len(layers), 6), layout="constrained", squeeze=False
        )
        for row, stage in zip(grid, STAGES, strict=True):
            for axis, layer in zip(row, layers, strict=True):
                _plot_mask(axis, result.masks[stage][layer], f"{stage}, layer {layer}")
        figure.suptitle(name)
        paths.append(target / f"masks_{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.png")
        figure.savefig(paths[-1])
        plt.close(figure)
    return paths


def _plot_losses(axis: Axes, results: Mapping[str, Loss], stage: str) -> None:
    for name, result in results.items():
        if name == "dense":
            axis.axhline(result.loss, linestyle="--", color="0.5", label=name)
        else:
            axis.plot(getattr(result, f"{stage}_sparsity"), result.loss, "o", label=name)
    axis.set_xlabel(f"sparsity of the {stage}")
    axis.set_ylabel("loss, nats per token")
    axis.legend()


def _plot_mask(axis: Axes, mask: Mask, title: str) -> None:
    mask.plot(ax=axis)
    axis.set_title(f"{title}, head 0", fontsize=8)


def _spread(count: int) -> list[int]:
    """Indices of up to four of `count` layers, evenly spread, the first and the last included."""
    shown = min(count, _MAX_LAYERS)
    return [round(i * (count - 1) / max(1, shown - 1)) for i in range(shown)]


def _names(configs: list[str]) -> list[str]:
    """Names of configs: the names of their files, or their paths where file names are equal."""
    stems = Counter(Path(config).stem for config in configs)
    return [config if stems[Path(config).stem] > 1 else Path(config).stem for config in configs]


def _load(folder: str) -> tuple[Any, Any]:
    """(model, tokenizer) from a folder: on a GPU in the model's dtype if there is one, else in float32. A byte-level
    model without a tokenizer gets a ByteTokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    on_gpu = torch.cuda.is_available()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if on_gpu else torch.float32)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    is_byte_model = model.config.vocab_size <= 256 and not any(Path(folder, name).exists() for name in files)
    return model.to(
        "cuda" if on_gpu else "cpu"
    ).eval(), evaluate.ByteTokenizer() if is_byte_model else AutoTokenizer.from_pretrained(folder)


def main(arguments: list[str]) -> int:
    """`reticle evaluate ... --plot DIR`; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="reticle evaluate --plot",
        description="Losses, sparsities and pictures of masks of a Hugging Face model on a text; dense attention is always "
        "measured. Without --plot: `reticle evaluate --help`.",
    )
    parser.add_argument("configs", nargs="*", help="JSON configs")
    parser.add_argument("--plot", required=True, metavar="DIR", help="folder for losses.csv, losses.png, masks_*.png")
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8")
    parser.add_argument("--model", metavar="DIR", help="folder or name for transformers; default: the bundled one")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a piece of text, 1024")
    parser.add_argument("--output-length", type=int, default=64, help="of these generated, and counted, 64")
    parser.add_argument("--examples", type=int, default=4, help="pieces at most, 4; 0: all")
    parser.add_argument("--stage", choices=("both", *STAGES), default="both", help="which one configs serve; both")
    parser.add_argument(
        "--chat-template", action="store_true", help="the text as a user's turn, the output as the answer"
    )
    parser.add_argument("--no-plugins", action="store_true", help="refuse configs that name plugins")
    parser.add_argument("--prompt", default="{text}", help="what stands in that turn, with {text} in it")
    options = parser.parse_args(arguments)
    if options.model is None and not _BUNDLED.exists():
        parser.error("--model is required: this installation has no bundled one")
    try:
        # Unwritable outputs and unreadable inputs are reported before the long computation.
        Path(options.plot).mkdir(parents=True, exist_ok=True)
        try:
            text = _core.read_file(options.text).decode()
        except UnicodeDecodeError as error:
            raise SystemExit(f"{options.text}: is not UTF-8 text ({error}); expected a text file") from None
        pipelines = [
            _core.SparseAttention.from_file(config, plugins=not options.no_plugins) for config in options.configs
        ]
        model, tokenizer = _load(options.model or str(_BUNDLED))
        examples = text_examples(
            tokenizer,
            text,
            window=options.window,
            output_length=options.output_length,
            examples=options.examples or None,
            chat_template=options.chat_template,
            prompt=options.prompt,
        )
        results = losses(
            model, examples, dict(zip(_names(options.configs), pipelines, strict=True)), stage=options.stage
        )
        paths = write(results, options.plot)
    except (OSError, ValueError, NotImplementedError) as error:
        print(f"reticle evaluate --plot: {error}", file=sys.stderr)
        return 2
    width = max(map(len, results))
    print(f"{'':{width}}    loss  prefill sparsity  generation sparsity")
    for name, result in results.items():
        print(
            f"{name:{width}}  {result.loss:6.4f}  {result.prefill_sparsity:16.4f}  {result.generation_sparsity:19.4f}"
        )
    print(f"{', '.join(path.name for path in paths)} written to {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
