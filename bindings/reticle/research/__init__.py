"""Tools for research with Reticle: what patterns cost a model, and which patterns to choose.

| module | contents |
|---|---|
| `benchmarks` | long-context data sets, generated tasks (RULER), and the scores of answers |
| `evaluate` | a Hugging Face model's answers to them, and its loss |
| `lm_eval` | patterns in EleutherAI's lm-evaluation-harness, as its model `reticle` |
| `report` | losses, sparsities and pictures of masks of a model on a text: `reticle evaluate --text FILE --plot` |
| `curves` | loss and retrieval against density, from a grid's results: `reticle evaluate --grid GRID --plot` |
| `search` | search over configs for density and error |
| `metrics` | logs of density and output error by layer: JSON lines, TensorBoard, Weights & Biases |
| `hat` | conversion of published HashAttention weights: `reticle convert-hat` |

`pip install 'reticle-attention[research]'` installs what they import, and `[lm-eval]` what `lm_eval` does. The rest of
the package does not need them, except `reticle.hub`, which has sparse-attention-hub's evaluation.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if not TYPE_CHECKING:  # type checkers see the imports

    def __getattr__(name: str) -> Any:
        """Imports a module on first use, because most import torch or transformers."""
        if name.startswith("_") or importlib.util.find_spec(f"reticle.research.{name}") is None:
            raise AttributeError(f"module 'reticle.research' has no attribute {name!r}")
        return importlib.import_module(f"reticle.research.{name}")


def _explain(module: str | None) -> NoReturn:
    """Ends `python -m` of a module that has no command: with its documentation, and status 2 if something was asked of
    it."""
    print(module)
    given = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    if given:
        print(f"{' '.join(given)}: this module has no command; expected to be imported, as above", file=sys.stderr)
    sys.exit(2 if given else 0)
