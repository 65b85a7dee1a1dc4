"""Includes go down only, and headers exclude heavy dependencies. The table is the architecture."""

from __future__ import annotations

import os
import re
import unittest
from pathlib import Path

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])

# The folders that each folder may include: itself and those in its row.
ALLOWED: dict[str, set[str]] = {
    "core/base": {"core/base"},
    "core/tensor": {"core/base", "core/tensor"},
    "core/mask": {"core/base", "core/tensor", "core/mask"},
    "core/config": {"core/base", "core/config"},
    "core/ops": {"core/base", "core/tensor", "core/mask", "core", "core/ops"},
    "core/cuda": {"core/base", "core/tensor", "core/mask", "core/ops", "core", "core/cuda"},
    "core": {"core/base", "core/tensor", "core/mask", "core/config", "core"},
    "maskers": {"core", "core/base", "core/mask", "core/ops"},
    "attention": {
        *("core/base", "core/tensor", "core/mask", "core/ops", "core/config", "core/cuda", "core", "attention")
    },
    "bindings": {"core", "core/base", "core/config", "core/cuda", "core/mask", "core/ops", "core/tensor", "attention"},
    "tools": {"core", "core/base", "core/config", "core/cuda", "core/mask", "core/ops", "core/tensor", "attention"},
    "tests/golden": {"core", "core/base", "core/config", "core/mask", "core/ops", "core/tensor", "attention"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh"}


def folder_of(path: str) -> str:
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] in ("core", "tests") and len(parts) > 2 else parts[0]


def sources() -> list[Path]:
    folders = ("core", "maskers", "attention", "bindings", "tools", "tests/golden")
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES)


class Layering(unittest.TestCase):
    def test_includes_go_down_only(self) -> None:
        for path in sources():
            folder = folder_of(str(path.relative_to(ROOT)))
            for include in INCLUDE.findall(path.read_text()):
                if not include.startswith("reticle/") or include == "reticle/version.hpp":
                    continue
                self.assertIn(
                    folder_of(include.removeprefix("reticle/")), ALLOWED[folder], f"{path} includes {include}"
                )

    def test_only_the_command_includes_the_replayers_of_recorded_cases(self) -> None:
        including = {
            str(path.relative_to(ROOT))
            for path in sources()
            for include in INCLUDE.findall(path.read_text())
            if include.startswith(("golden/", "tests/")) and not path.is_relative_to(ROOT / "tests")
        }
        self.assertEqual(including, {"tools/main.cpp"})

    def test_models_stand_on_the_executor(self) -> None:
        floors = ["attention/layers", "attention/nsa", "attention/llama"]
        for path in sorted((ROOT / "attention").rglob("*.[ch]pp")):
            folder = "/".join(path.relative_to(ROOT).parts[:2])
            for above in floors[floors.index(folder) + 1 :] if folder in floors else floors:
                for include in INCLUDE.findall(path.read_text()):
                    self.assertFalse(include.startswith(f"reticle/{above}/"), f"{path} includes {include}")

    def test_core_and_attention_name_no_masker(self) -> None:
        names = {p.stem for p in (ROOT / "maskers").rglob("*.cpp")} - {"local", "causal"}
        for path in sources():
            if folder_of(str(path.relative_to(ROOT))).split("/")[0] not in ("core", "attention"):
                continue
            # Comments may show the code of a masker or a config.
            code = re.sub(r"//.*", "", path.read_text())
            for name in names:
                self.assertNotRegex(code, rf'"{name}"', f"{path} names the masker {name}")

    def test_json_and_heavy_headers_stay_in_source_files(self) -> None:
        for path in sources():
            if path.suffix != ".hpp" or path.name.endswith(("-inl.hpp", "_block.hpp")):
                continue
            for include in INCLUDE.findall(path.read_text()):
                self.assertNotIn(include, {"nlohmann/json.hpp", "iostream", "regex"}, str(path))
                self.assertFalse(include.startswith(("hwy/", "cuda")), f"{path} includes {include}")

    def test_tests_mirror_sources(self) -> None:
        """tests/X_test.cpp tests X.cpp, X.cu or the header X.hpp; tests/laws hold properties of many sources."""
        rooms = ("core", "attention", "maskers")
        tested = {
            p.relative_to(ROOT / "tests").with_suffix("")
            for room in rooms
            for p in (ROOT / "tests" / room).rglob("*_test.c*")
        }
        written = {p.relative_to(ROOT).with_suffix("") for p in sources() if p.relative_to(ROOT).parts[0] in rooms}
        compiled = {p.relative_to(ROOT).with_suffix("") for p in sources() if p.suffix in (".cpp", ".cu")}
        for source in sorted(compiled):
            if source.parts[0] in rooms:
                self.assertTrue(source.with_name(f"{source.name}_test") in tested, f"{source} has no test of its name")
        for test in sorted(tested):
            source = test.with_name(test.name.removesuffix("_test"))
            self.assertTrue(source in written, f"tests/{test} tests no source of its name")

    def test_maskers_and_public_headers_never_see_json(self) -> None:
        for path in sources():
            if folder_of(str(path.relative_to(ROOT))) != "maskers":
                continue
            self.assertNotIn("nlohmann", path.read_text(), str(path))

    def test_no_device_source_sees_reflection(self) -> None:
        for path in ROOT.rglob("*.cu"):
            for include in INCLUDE.findall(path.read_text()):
                self.assertFalse(
                    include.startswith(("reticle/core/config", "boost/", "nlohmann/")), f"{path}: {include}"
                )


if __name__ == "__main__":
    unittest.main()
