"""Old paths of modules that moved to reticle.research: importing one gives the module at its new path, and warns."""

from __future__ import annotations

import importlib
import sys
import warnings

MOVED = ("benchmarks", "evaluate", "hat", "metrics", "report", "search")


def give_new_module(old: str) -> None:
    """Puts the module of the new path under the old one in sys.modules, so that both are one object: monkeypatches are
    seen under both names, and old pickles load. Called by the module at the old path, whose body runs once per process;
    so the warning is given once."""
    new = old.replace("reticle.", "reticle.research.", 1)
    sys.modules[old] = importlib.import_module(new)
    # `stacklevel` cannot name the importing line, because `from reticle import X` passes through more of our frames
    # than `import reticle.X`.
    passed = (__file__, sys.modules["reticle"].__file__, importlib.__file__)
    frame = sys._getframe(2)
    while frame.f_back and (frame.f_code.co_filename in passed or "importlib._bootstrap" in frame.f_code.co_filename):
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is {new} now; import that instead",
        DeprecationWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )
