"""The reticle command as users meet it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])
RETICLE = Path(os.environ["RETICLE_BUILD_DIR"]) / "tools" / "reticle"
CONFIGS = sorted((ROOT / "configs").glob("*.json"))


def reticle(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(RETICLE), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def read_safetensors_header(path: Path) -> dict[str, dict[str, object]]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header: dict[str, dict[str, object]] = json.loads(data[8 : 8 + size])
    return header


class Run(unittest.TestCase):
    def test_every_config_runs_over_the_bundled_tensors(self) -> None:
        self.assertGreaterEqual(len(CONFIGS), 4)
        for config in CONFIGS:
            document = json.loads(config.read_text())
            arguments = ["--output-length", "64"] if "generation" in document else []
            result = reticle("run", config, "--json", "--compare", *arguments)
            self.assertEqual(result.returncode, 0, result.stderr)
            layers = json.loads(result.stdout)["layers"]
            self.assertEqual([layer["layer"] for layer in layers], sorted([0, 1, 2, 3] * (len(layers) // 4)))
            for layer in layers:
                maskers = document.get(layer["stage"], document)["maskers"]
                served = [masker for masker in maskers if "layers" not in masker]
                if served:
                    self.assertEqual(sum(masker["added"] for masker in layer["maskers"]), layer["entries"], config)
                    self.assertTrue(0 < layer["visible_density"] <= 1, config)
                self.assertTrue(0 <= layer["comparison"]["relative_error"] < 1.5, config)
                self.assertEqual(len(layer["head_density"]), 4)

    def test_generation_after_a_prefill(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.safetensors"
            config = ROOT / "configs/snap_kv.json"
            arguments = ("--layers", "1", "--output-length", "12", "--compare", "--output", output)
            table = reticle("run", config, *arguments)
            self.assertEqual(table.returncode, 0, table.stderr)
            self.assertIn("1 prefill", table.stdout)
            self.assertIn("1 generation", table.stdout)
            header = read_safetensors_header(output)
            self.assertEqual(header["layers.1.output"]["shape"], [1, 4, 500, 64])
            self.assertEqual(header["layers.1.generation.output"]["shape"], [1, 4, 12, 64])

    def test_minference_patterns_become_a_config(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            patterns = Path(folder) / "best_pattern.json"
            heads = {"0": ["vertical_and_slash", 20, 800, 0.9], "2": ["stream_llm", 128, 1024, 0.8]}
            patterns.write_text(json.dumps([heads, {}, {"1": ["block_sparse", 100, 1, 0.7]}]))
            result = reticle("import-minference", patterns, "--heads", 4)
            self.assertEqual(result.returncode, 0, result.stderr)
            config = Path(folder) / "config.json"
            config.write_text(result.stdout)
            maskers = json.loads(result.stdout)["prefill"]["maskers"]
            self.assertIn(
                {"type": "vertical_slash", "vertical_size": 30, "slash_size": 800, "block_size": 64}
                | {"layers": [0], "heads": [0]},
                maskers,
            )
            self.assertIn({"type": "a_shape", "n_init": 128, "n_local": 1024, "layers": [0], "heads": [2]}, maskers)
            self.assertEqual([m["heads"] for m in maskers if m["layers"] == [1]], [[0, 1, 2, 3]])
            self.assertEqual(reticle("run", config, "--output-length", 8).returncode, 0)

    def test_fixed_patterns_have_the_density_of_arithmetic(self) -> None:
        layer = json.loads(reticle("run", ROOT / "configs/sink_local.json", "--json").stdout)["layers"][0]
        self.assertAlmostEqual(layer["density"], (4 + 256) / 4096, places=12)

    def test_table_shows_layers_maskers_and_heads(self) -> None:
        plain = reticle("run", CONFIGS[0], "--layers", "1,3", "--queries", "8")
        self.assertIn("layer", plain.stdout)
        self.assertNotIn("head 0", plain.stdout)
        self.assertNotIn("error", plain.stdout)
        verbose = reticle("run", CONFIGS[0], "--layers", "1-1", "--queries", "last", "-v", "--compare")
        self.assertIn("head 3", verbose.stdout)
        self.assertIn("least mass", verbose.stdout)

    def test_output_holds_each_layer_and_can_be_given_back_as_a_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "out.safetensors"
            result = reticle("run", CONFIGS[0], "--layers", "0,2", "--queries", "5", "--output", output)
            self.assertEqual(result.returncode, 0, result.stderr)
            header = read_safetensors_header(output)
            self.assertEqual(set(header), {"layers.0.output", "layers.0.lse", "layers.2.output", "layers.2.lse"})
            self.assertEqual(header["layers.2.output"]["shape"], [1, 4, 5, 64])
            self.assertEqual(header["layers.2.output"]["dtype"], "BF16")

    def test_masks_do_not_depend_on_threads(self) -> None:
        def entries(threads: int) -> list[int]:
            config = ROOT / "configs/sink_local_random_sampling.json"
            layers = json.loads(reticle("run", config, "--json", "--compare", "--threads", threads).stdout)["layers"]
            return [layer["comparison"]["relative_error"] for layer in layers]

        self.assertEqual(entries(1), entries(3))


class Errors(unittest.TestCase):
    """One clear line on stderr, exit 2, nothing half-written."""

    def refuse(self, *arguments: object, **environment: str) -> str:
        result = reticle(*arguments, **environment)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        return result.stderr.strip()

    def test_arguments(self) -> None:
        self.assertIn("subcommand", self.refuse())
        self.refuse("runn", CONFIGS[0])
        self.refuse("run")
        self.refuse("run", CONFIGS[0], "--threads", "-1")
        self.refuse("run", CONFIGS[0], "--stage", "decode")
        self.assertEqual(
            self.refuse("run", CONFIGS[0], "--layers", "9"),
            'reticle: --layers 9: needed is "all" or numbers and ranges as 0,2,5-7, of 0, 1, 2, 3',
        )
        for layers in ("", ",", "a", "1-", "3-1", "1,,2", "99999999999999999999"):
            self.refuse("run", CONFIGS[0], "--layers", layers)
        for queries in ("0", "513", "-1", "some"):
            self.assertIn("needed is", self.refuse("run", CONFIGS[0], "--queries", queries))
        self.refuse("describe", "sinc")
        self.refuse("show", CONFIGS[0], "--queries", "0")
        self.refuse("show", CONFIGS[0], "--head", "5")
        self.refuse("verify", "/nonexistent")
        self.refuse("run", CONFIGS[0], "--output-length", "0")
        self.assertIn("so that some are left", self.refuse("run", CONFIGS[0], "--output-length", "512"))
        self.refuse("import-minference", "/nonexistent")

    def test_configs(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "bad.json"
            config.write_text('{"maskers": [{"type": "sink", "sink_sise": 4}]}')
            expected = f'reticle: {config}: /maskers/0/sink_sise: unknown key; did you mean "sink_size"?'
            self.assertEqual(self.refuse("run", config), expected)
            self.assertEqual(self.refuse("check", config), expected)
            self.assertEqual(self.refuse("show", config), expected)
            for text in ("", "{", "nul", "[]", '"x"', '{"maskers": 1}', "\x00\xff", '{"maskers": [{"type": null}]}'):
                config.write_text(text)
                self.refuse("check", config)
            self.assertIn("cannot be read", self.refuse("run", Path(folder) / "absent.json"))
            self.refuse("run", folder)

    def test_minference_patterns(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            patterns = Path(folder) / "patterns.json"
            for text, place in (
                ('[{"0": ["foo", 1, 2]}]', "/0/0/0: "),
                ('[{}, {"x": []}]', "/1/x: "),
                ('[{"1": ["stream_llm", -1, 2]}]', "/0/1: "),
                ("[1]", "/0: "),
                ("{", "parse error"),
            ):
                patterns.write_text(text)
                self.assertIn(place, self.refuse("import-minference", patterns))

    def test_files(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            bad = Path(folder) / "bad.safetensors"
            good = (ROOT / "examples/data/attention_4096.safetensors").read_bytes()
            for content in (b"", b"abc", b"\xff" * 64, good[:1000], good[:-1]):
                bad.write_bytes(content)
                self.assertIn(str(bad), self.refuse("run", CONFIGS[0], "--input", bad))
            self.refuse("run", CONFIGS[0], "--input", Path(folder) / "absent")
            self.refuse("run", CONFIGS[0], "--input", folder)

    def test_outputs_are_refused_before_the_work(self) -> None:
        self.refuse("run", CONFIGS[0], "--output", "/nonexistent/out.safetensors")
        self.refuse("show", CONFIGS[0], "--png", "/nonexistent/mask.png")
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "bad.json"
            config.write_text("{")
            output = Path(folder) / "out.safetensors"
            self.refuse("run", config, "--output", output)
            self.assertFalse(output.exists())


class Look(unittest.TestCase):
    def test_list_describe_schema(self) -> None:
        names = [line.split()[0] for line in reticle("list").stdout.splitlines()]
        self.assertEqual(names, sorted(names))
        self.assertIn("oracle_top_k", names)
        for name in names:
            self.assertIn("- Source: ", reticle("describe", name).stdout)
            schema = json.loads(reticle("schema", name).stdout)
            self.assertEqual(schema["properties"]["type"]["const"], name)
        whole = json.loads(reticle("schema").stdout)
        self.assertEqual(len(whole["$defs"]["maskers"]["items"]["anyOf"]), len(names))

    def test_maskers_page_is_what_describe_prints(self) -> None:
        names = [line.split()[0] for line in reticle("list").stdout.splitlines()]
        printed = "\n".join(reticle("describe", name).stdout for name in names)
        self.assertIn(printed, (ROOT / "docs/maskers.md").read_text(), "run tools/update_docs")

    def test_check_prints_defaults_and_its_print_can_be_checked(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for config in CONFIGS:
                self.assertEqual(reticle("check", config).stdout, f"{config}: ok\n")
                printed = Path(folder) / config.name
                printed.write_text(reticle("check", "--print", config).stdout)
                self.assertEqual(reticle("check", "--print", printed).stdout, printed.read_text())

    def test_show_draws_in_the_terminal_and_as_png(self) -> None:
        text = reticle("show", ROOT / "configs/sink_local.json", "--queries", 8, "--keys", 8).stdout.splitlines()
        self.assertEqual(text[0], "█·······")
        self.assertEqual(text[7], "████████")
        with tempfile.TemporaryDirectory() as folder:
            png = Path(folder) / "mask.png"
            for config in CONFIGS:
                result = reticle("show", config, "--input", "bundled", "--layer", 3, "--head", 1, "--png", png)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(png.read_bytes()[:8], b"\x89PNG\r\n\x1a\n")

    def test_version_and_help_exit_with_success(self) -> None:
        self.assertRegex(reticle("--version").stdout, r"^reticle \d+\.\d+\.\d+\n$")
        for command in ("run", "list", "describe", "schema", "check", "show", "verify"):
            self.assertEqual(reticle(command, "--help").returncode, 0)


class Verify(unittest.TestCase):
    GOLDEN = ROOT / "tests/golden/hub"

    def test_total_is_on_the_last_line(self) -> None:
        for golden, deviations in ((self.GOLDEN, 7), (ROOT / "tests/golden/patterns", 0)):
            result = reticle("verify", golden)
            self.assertEqual(result.returncode, 0, result.stdout)
            cases = len(list(golden.glob("*.json")))
            self.assertEqual(
                result.stdout.splitlines()[-1],
                f"{cases} cases: {cases - deviations} passed, {deviations} deviate as documented, "
                "0 failed, 0 not built yet",
            )

    def test_a_changed_tensor_or_expectation_fails(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            case = "sink_local_oracle_top_k"
            manifest = json.loads((self.GOLDEN / f"{case}.json").read_text())
            tensors = bytearray((self.GOLDEN / f"{case}.safetensors").read_bytes())
            header = read_safetensors_header(self.GOLDEN / f"{case}.safetensors")
            start = len(tensors) - max(entry["data_offsets"][1] for entry in header.values())  # type: ignore[index]
            for tensor in ("output", "mask_dense", "attention_weights", "true_output", "stage1.data"):
                changed = bytearray(tensors)
                at = start + header[tensor]["data_offsets"][0]  # type: ignore[index]
                changed[at : at + 4] = struct.pack("<f", 0.777)
                (Path(folder) / f"{case}.json").write_text(json.dumps(manifest))
                (Path(folder) / f"{case}.safetensors").write_bytes(changed)
                result = reticle("verify", folder)
                self.assertEqual(result.returncode, 1, f"{tensor}: {result.stdout}")
                self.assertIn("1 failed", result.stdout)

    def test_what_is_not_built_fails_unless_only_the_known_is_asked_for(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "future.json").write_text('{"kind": "time_travel", "tensors": {}}')
            self.assertEqual(reticle("verify", folder).returncode, 1)
            known = reticle("verify", folder, "--known-only")
            self.assertEqual(known.returncode, 0)
            self.assertEqual(known.stdout, "1 cases: 0 passed, 0 deviate as documented, 0 failed, 1 not built yet\n")
            (Path(folder) / "broken.json").write_text("{")
            self.assertEqual(reticle("verify", folder, "--known-only").returncode, 1)


class Readme(unittest.TestCase):
    def test_examples_are_the_ones_that_run(self) -> None:
        readme = (ROOT / "README.md").read_text()
        code = (ROOT / "examples/quickstart.cpp").read_text()
        body = code[code.index("#include <cstdio>") :]
        self.assertIn(body, readme)
        self.assertIn((ROOT / "configs/sink_local_oracle_top_k.json").read_text(), readme)


if __name__ == "__main__":
    unittest.main()
