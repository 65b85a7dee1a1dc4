"""The `reticle` command as the package installs it: the C++ command, and the subcommands that need Python."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path


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


def main() -> int:
    """Runs the command line; returns its exit status."""
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command == ["convert-hat"]:
        return _convert_hat(arguments)
    if command == ["evaluate"] and any(word.partition("=")[0] == "--plot" for word in arguments):
        return _evaluate_and_plot(arguments)
    binary = Path(__file__).parent / "bin" / "reticle"
    if not binary.exists():
        print(
            "reticle: this build of the package has no C++ command; there are `convert-hat` and `evaluate --plot`",
            file=sys.stderr,
        )
        return 2
    os.execv(binary, [str(binary), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
