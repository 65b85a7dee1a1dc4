"""What a plugin in C++ is built with against an installed wheel: folders and compiler flags.

    g++ -std=c++20 -O2 -shared -fPIC my_masker.cpp -o my_masker.so $(python -m reticle.sdk --cflags --libs)

Headers of Reticle include Boost.PFR's: install the package boost-headers, or your distribution's Boost, where the compiler
does not find it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def include_dirs() -> list[Path]:
    """Folders for the compiler's -I: Reticle's headers, and Boost's where the package boost-headers is installed.

    Raises:
        FileNotFoundError: in a build tree, whose headers are not beside the package.
    """
    own = _HERE / "include"
    if not own.is_dir():
        raise FileNotFoundError(f"{own}: there are no headers; this package was not installed from a wheel")
    boost = importlib.util.find_spec("boost_headers")
    others = [] if boost is None or boost.origin is None else [Path(boost.origin).parent / "include"]
    return [own, *others]


def library() -> Path:
    """The shared library that a plugin is linked to.

    Raises:
        FileNotFoundError: when it is not beside the package.
    """
    found = sorted(_HERE.glob("libreticle.so*"))
    if not found:
        raise FileNotFoundError(f"{_HERE}: holds no libreticle.so; this package was not installed from a wheel")
    return found[0]


def main() -> int:
    """`python -m reticle.sdk`; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reticle.sdk", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--cflags", action="store_true", help="flags of the compiler")
    parser.add_argument("--libs", action="store_true", help="flags of the linker")
    own = parser.parse_args()
    if not (own.cflags or own.libs):
        parser.error("expected --cflags, --libs or both")
    try:
        words = [f"-I{folder}" for folder in include_dirs()] if own.cflags else []
        if own.libs:
            words += [f"-L{library().parent}", f"-l:{library().name}", f"-Wl,-rpath,{library().parent}"]
    except FileNotFoundError as error:
        print(f"python -m reticle.sdk: {error}", file=sys.stderr)
        return 2
    print(" ".join(words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
