"""The `reticle` command as the package installs it: the C++ command, and the subcommands that need Python."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_BINARY = Path(__file__).parent / "bin" / "reticle"


def _convert_hat(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="reticle convert-hat",
        description="HashAttention weights (.pt, .pkl) as safetensors. Pickles are not executed.",
    )
    parser.add_argument("source", help="a .pt or .pkl file")
    parser.add_argument("target", help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        from reticle.research import hat
    except ImportError as error:
        print(f"reticle convert-hat: {error}; it needs torch and safetensors", file=sys.stderr)
        return 2
    try:
        config = hat.convert(options.source, options.target)
    except (OSError, ValueError) as error:
        print(f"reticle convert-hat: {error}", file=sys.stderr)
        return 2
    print(f"{options.target} written; as a masker of a config:\n{json.dumps(config, indent=2)}")
    return 0


def _evaluate_and_plot(arguments: list[str]) -> int:
    try:
        from reticle.research import report
    except ImportError as error:
        print(f"reticle evaluate --plot: {error}; it needs torch, transformers and tqdm", file=sys.stderr)
        return 2
    return report.main(arguments)


def _evaluate_and_draw_curves(arguments: list[str]) -> int:
    """Runs the C++ command, and draws its results."""
    try:
        from reticle.research import curves
    except ImportError as error:
        print(f"reticle evaluate --plot: {error}; it needs matplotlib", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(prog="reticle evaluate", add_help=False, allow_abbrev=False)
    parser.add_argument("--plot", required=True)
    parser.add_argument("--output")
    options, others = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(options.output or Path(folder, "results.json"))
        try:
            # An unwritable folder is reported before the long computation.
            Path(options.plot).mkdir(parents=True, exist_ok=True)
            done = subprocess.run([_BINARY, "evaluate", *others, "--output", results], check=False)
            if done.returncode != 0:
                return done.returncode
            paths = curves.write(json.loads(results.read_text(encoding="utf-8")), options.plot)
        except (OSError, ValueError) as error:
            print(f"reticle evaluate --plot: {error}", file=sys.stderr)
            return 2
    print(f"{', '.join(path.name for path in paths)} written to {options.plot}", file=sys.stderr)
    return 0


def main() -> int:
    """Runs the command line; returns its exit status."""
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command == ["convert-hat"]:
        return _convert_hat(arguments)
    options = {word.partition("=")[0] for word in arguments}
    # Grids and tasks are the C++ command's; without them a text is evaluated with a Hugging Face model.
    has_curves = not options.isdisjoint(("--grid", "--tasks"))
    if command == ["evaluate"] and "--plot" in options and not has_curves:
        return _evaluate_and_plot(arguments)
    if not _BINARY.exists():
        print(
            "reticle: this build of the package has no C++ command; there are `convert-hat` and `evaluate --plot`",
            file=sys.stderr,
        )
        return 2
    if command == ["evaluate"] and "--plot" in options:
        return _evaluate_and_draw_curves(arguments)
    os.execv(_BINARY, [str(_BINARY), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
