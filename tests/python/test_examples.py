"""What the README shows is what runs."""

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(os.environ["RETICLE_SOURCE_DIR"])


def test_the_quick_start_runs_and_is_what_the_readme_shows():
    code = (SOURCE / "examples" / "quickstart.py").read_text()
    assert f"```python\n{code}```" in (SOURCE / "README.md").read_text()
    printed = subprocess.run(
        [sys.executable, "examples/quickstart.py"], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    assert printed.stdout.startswith("Mask (1, 8, 1, 4096)")
