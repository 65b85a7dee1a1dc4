"""The command `reticle`, as the package installs it: the C++ command, and what needs Python."""

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
    own = parser.parse_args(arguments)
    try:
        from reticle import hat
    except ImportError as error:
        print(f"reticle convert-hat: {error}; it needs torch and safetensors", file=sys.stderr)
        return 2
    try:
        config = hat.convert(own.source, own.target)
    except (OSError, ValueError) as error:
        print(f"reticle convert-hat: {error}", file=sys.stderr)
        return 2
    print(f"{own.target} written; as a masker of a config:\n{json.dumps(config, indent=2)}")
    return 0


def main() -> int:
    """Runs the command line; returns its exit status."""
    if sys.argv[1:2] == ["convert-hat"]:
        return _convert_hat(sys.argv[2:])
    binary = Path(__file__).parent / "bin" / "reticle"
    if not binary.exists():
        print("reticle: this build of the package has no C++ command; there is `convert-hat`", file=sys.stderr)
        return 2
    os.execv(binary, [str(binary), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
