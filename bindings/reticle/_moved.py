"""Old paths of modules that moved to reticle.research: importing one gives the module at its new path, and warns."""

from __future__ import annotations

import importlib
import sys
import warnings

MOVED = ("benchmarks", "evaluate", "hat", "metrics", "report", "search")


def give_new_module(name: str) -> None:
    """Makes sys.modules["reticle.<name>"] the module reticle.research.<name>, and warns at the line that imports it.

    As both paths give one object, monkeypatches are seen under both, and old pickles load. The module at the old path
    calls this in its body, which runs once per process; so the warning is given once.
    """
    old, new = f"reticle.{name}", f"reticle.research.{name}"
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
