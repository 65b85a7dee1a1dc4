"""Resources for building a C++ plugin against an installed wheel: a template, folders, compiler flags.

    python -m reticle.sdk new my_masker      # a folder with its own CMakeLists.txt and test
    g++ -std=c++20 -O2 -shared -fPIC my_masker.cpp -o my_masker.so $(python -m reticle.sdk --cflags --libs)

Reticle's headers include Boost.PFR. If the compiler does not find it, install the package boost-headers or your
distribution's Boost.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
#: C++ keywords and taken names, which cannot name a plugin's file and namespace.
_CPP_WORDS = """
alignas alignof and and_eq asm auto bitand bitor bool break case catch char class co_await co_return co_yield compl
concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast else
enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
nullptr operator or or_eq private protected public register reinterpret_cast requires return short signed sizeof
static static_assert static_cast struct switch template this thread_local throw true try typedef typeid typename union
unsigned using virtual void volatile wchar_t while xor xor_eq std reticle
""".split()  # noqa: SIM905 - one word per line would fill a page


def include_dirs() -> list[Path]:
    """Folders for the compiler's -I: Reticle's headers, and Boost's if the package boost-headers is installed.

    Raises:
        FileNotFoundError: in a build tree, where the headers are not beside the package.
    """
    headers = _HERE / "include"
    if not headers.is_dir():
        raise FileNotFoundError(f"{headers}: there are no headers; this package was not installed from a wheel")
    boost = importlib.util.find_spec("boost_headers")
    others = [] if boost is None or boost.origin is None else [Path(boost.origin).parent / "include"]
    return [headers, *others]


def library() -> Path:
    """The shared library to link a plugin to.

    Raises:
        FileNotFoundError: when the library is not beside the package.
    """
    found = sorted(_HERE.glob("libreticle.so*"))
    if not found:
        raise FileNotFoundError(f"{_HERE}: holds no libreticle.so; this package was not installed from a wheel")
    return found[0]


def _built_in() -> list[str]:
    """Names of the built-in maskers; empty if this file runs without the package."""
    try:
        import reticle._core as _core
    except ImportError:
        return []
    return _core.masker_types()


def new_plugin(name: str, folder: str | Path = ".") -> Path:
    """Creates a plugin's folder, ready to build, from the template `plugins/template`.

    Args:
        name: name of the masker in configs, in snake_case.
        folder: parent of the new folder `name`.

    Returns:
        The folder.

    Raises:
        ValueError: when the name is not valid for a masker, or is taken.
        FileExistsError: when the folder exists.
        FileNotFoundError: when this package has no template.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f'"{name}" is not the name of a masker; expected snake_case, as "my_masker"')
    if name in _built_in() or name in _CPP_WORDS:
        raise ValueError(f'"{name}" is taken, by a built-in masker or by C++; expected another name')
    templates = (_HERE / "share/reticle/template", _HERE.resolve().parents[1] / "plugins/template")
    template = next((path for path in templates if path.is_dir()), None)
    if template is None:
        raise FileNotFoundError(f"{templates[0]}: the plugin template is not in this package")
    target = Path(folder) / name
    if target.exists():
        raise FileExistsError(f"{target}: is there already; expected a name without a folder")
    target.mkdir(parents=True)
    camel = "".join(word.capitalize() for word in name.split("_"))
    for source in sorted(template.iterdir()):
        text = source.read_text(encoding="utf-8")
        for old, new in (("every_nth", name), ("EveryNth", camel), ("my_masker", name)):
            text = text.replace(old, new)
        (target / source.name.replace("every_nth", name)).write_text(text, encoding="utf-8")
    return target


def main() -> int:
    """The command `python -m reticle.sdk`; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m reticle.sdk", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--cflags", action="store_true", help="print the flags of the compiler")
    parser.add_argument("--libs", action="store_true", help="print the flags of the linker")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    new = commands.add_parser("new", help="make the folder of a plugin, ready to build")
    new.add_argument("name", help="name of the masker, in snake_case")
    new.add_argument("folder", nargs="?", default=".", help="folder to make it in (default: here)")
    options = parser.parse_args()
    if not (options.cflags or options.libs or options.command):
        parser.error("expected --cflags, --libs or both, or the command new")
    try:
        if options.command == "new":
            target = new_plugin(options.name, options.folder)
            print(f"{target}: its rule is in {options.name}.cpp; build and test it as {target / 'README.md'} says")
            return 0
        words = [f"-I{folder}" for folder in include_dirs()] if options.cflags else []
        if options.libs:
            words += [f"-L{library().parent}", f"-l:{library().name}", f"-Wl,-rpath,{library().parent}"]
    except (OSError, ValueError) as error:
        print(f"python -m reticle.sdk: {error}", file=sys.stderr)
        return 2
    print(" ".join(words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
