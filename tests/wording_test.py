"""Plain words in text that users read: the rules of style that a test can check."""

from __future__ import annotations

import os
import re
import subprocess
import unittest
from pathlib import Path

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])
RETICLE = Path(os.environ["RETICLE_BUILD_DIR"]) / "tools" / "reticle"

#: Patterns that errors, help and documentation must not contain -> the better wording.
BETTER = {
    r"\bneeded (is|are)\b": "expected",
    r"(?<!there )\b(is|are) no (multiple|tensor|masker|plugin|config|byte)s?\b": "is not a",
    r"\bnot built\b( yet)?": "not supported",
    r"\bbuilt not\b": "not supported",
    r"\bour aims?\b|\bat (its|their) aims?\b": "results, and what is slower than what",
}


def text_files() -> list[Path]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.split("\0") if name] or [p for p in ROOT.glob("[!.b]*/**/*") if p.is_file()]
    folders = ("core", "maskers", "attention", "bindings", "tools", "docs", "examples", "plugins", "README.md")
    suffixes = {".cpp", ".hpp", ".cu", ".cuh", ".py", ".md", ".json"}
    return [
        path
        for path in paths
        if path.suffix in suffixes and path.relative_to(ROOT).parts[0] in folders and path.exists()
    ]


class Wording(unittest.TestCase):
    def test_plain_words(self) -> None:
        found = []
        for path in text_files():
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                found += [
                    f"{path.relative_to(ROOT)}:{number}: {line.strip()!r}; say {better!r}"
                    for pattern, better in BETTER.items()
                    if re.search(pattern, line)
                ]
        self.assertEqual(found, [])

    def test_help_texts_start_with_what_the_option_is(self) -> None:
        listed = subprocess.run([RETICLE, "--help"], capture_output=True, text=True, check=True).stdout
        commands = re.findall(r"^  ([a-z-]+) {2,}\S", listed.partition("Subcommands:")[2], re.MULTILINE)
        self.assertGreater(len(commands), 10)
        for command in commands:
            text = subprocess.run([RETICLE, command, "--help"], capture_output=True, text=True, check=True).stdout
            for description in re.findall(r"^ {27,}(\S.*)$", text, re.MULTILINE):
                self.assertNotRegex(description, r"^(of|whose|by|in) ", f"{command}: {description}")

    def test_every_parameter_is_described_by_what_it_is(self) -> None:
        page = (ROOT / "docs/maskers.md").read_text(encoding="utf-8")
        meanings = re.findall(r"^\| `\w+` \|.*\| ([^|]+) \|$", page, re.MULTILINE)
        self.assertGreater(len(meanings), 80)
        self.assertEqual([m for m in meanings if re.match(r"(of|whose|what|by which) ", m)], [])


if __name__ == "__main__":
    unittest.main()
