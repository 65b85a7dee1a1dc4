"""The reticle command as users meet it: its output, the stream it goes to, and its exit status."""

from __future__ import annotations

import json
import os
import shutil
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
    """One clear line on stderr, exit status 2, and no partial output."""

    def refuse(self, *arguments: object, **environment: str) -> str:
        result = reticle(*arguments, **environment)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        return result.stderr.strip()

    def test_arguments(self) -> None:
        self.refuse("runn", CONFIGS[0])
        self.refuse("run")
        self.refuse("run", CONFIGS[0], "--threads", "-1")
        self.refuse("run", CONFIGS[0], "--stage", "decode")
        self.assertEqual(
            self.refuse("run", CONFIGS[0], "--layers", "9"),
            'reticle: --layers 9: expected "all" or numbers and ranges such as 0,2,5-7, of 0, 1, 2, 3',
        )
        for layers in ("", ",", "a", "1-", "3-1", "1,,2", "99999999999999999999"):
            self.refuse("run", CONFIGS[0], "--layers", layers)
        for queries in ("0", "513", "-1", "some"):
            self.assertIn("expected", self.refuse("run", CONFIGS[0], "--queries", queries))
        self.refuse("describe", "sinc")
        self.assertEqual(self.refuse("shw"), 'reticle: there is no command "shw"; did you mean "show"? (see --help)')
        self.refuse("show", CONFIGS[0], "--queries", "0")
        self.assertEqual(self.refuse("show", CONFIGS[0], "--head", "5"), "reticle: --head 5: expected 0 to 0")
        self.assertIn("expected one of 0, 1, 2, 3", self.refuse("show", CONFIGS[0], "--input", "bundled", "--layer", 9))
        self.assertIn("ends in .png", self.refuse("show", CONFIGS[0], "--png", "mask.jpg"))
        self.assertIn("pip install", self.refuse("evaluate", CONFIGS[0], "--plot", "pictures"))
        self.assertIn("--depths", self.refuse("evaluate", "--depths", "101"))
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
                ('[{"1": ["stream_llm", 1e400, 2]}]', "number overflow"),
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

    def test_values_that_would_be_taken_for_others_are_refused(self) -> None:
        config = ROOT / "configs/sink_local.json"
        self.assertIn("--output: is empty; expected a value", self.refuse("run", config, "--output", ""))
        self.assertIn("--png: is empty", self.refuse("show", config, "--png", ""))
        self.assertIn("--generation: is empty", self.refuse("generate", "--prompt", "a", "--generation", ""))
        for seed in ("-1", "18446744073709551616"):
            self.assertIn(f"--seed: is {seed}; expected a number", self.refuse("run", config, "--seed", seed))
        for length in ("-1", "0", "2147483647"):
            arguments = ["--tasks", "needle", "--window", "32", "--max-tokens", "64", "--lengths", length]
            self.assertIn("--lengths", self.refuse("evaluate", *arguments))
        self.assertIn("--layer 99: random tensors have one layer", self.refuse("show", config, "--layer", "99"))
        even = json.loads(reticle("run", config, "--json", "--compare", "--scaling", "0").stdout)["layers"]
        given = json.loads(reticle("run", config, "--json", "--compare").stdout)["layers"]
        self.assertNotEqual(even[0]["comparison"]["mean_mass"], given[0]["comparison"]["mean_mass"])

    def test_what_is_no_file_is_refused_and_not_waited_for(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pipe = Path(folder) / "pipe"
            os.mkfifo(pipe)
            for command in (
                ["run", pipe],
                ["check", pipe],
                ["run", ROOT / "configs/sink_local.json", "--input", pipe],
                ["generate", "--prompt-file", pipe],
                ["generate", "--prompt", "a", "--model", folder],
                ["evaluate", "--text", pipe],
                ["evaluate", "--grid", pipe],
                ["import-minference", pipe],
            ):
                if "--model" in command:
                    os.rename(pipe, Path(folder) / "config.json")
                message = self.refuse(*command)
                if "--model" in command:
                    os.rename(Path(folder) / "config.json", pipe)
                self.assertRegex(message, "pipe that nobody writes to|not a regular file", command)
            self.assertIn("it is a directory", self.refuse("run", folder))
            self.assertIn("without an end", self.refuse("check", "/dev/zero"))
        # A pipe with a writer is read like any other file.
        words = f"{RETICLE} check <(cat {ROOT}/configs/sink_local.json)"
        done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_outputs_are_refused_before_the_work(self) -> None:
        self.refuse("run", CONFIGS[0], "--output", "/nonexistent/out.safetensors")
        self.refuse("show", CONFIGS[0], "--png", "/nonexistent/mask.png")
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "bad.json"
            config.write_text("{")
            output = Path(folder) / "out.safetensors"
            self.refuse("run", config, "--output", output)
            self.assertFalse(output.exists())

    def test_what_is_read_is_never_written_over(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.json"
            shutil.copy(CONFIGS[0], config)
            text = Path(folder) / "text"
            text.write_text("In the beginning. " * 8)
            drawn = Path(folder) / "config.png"
            shutil.copy(config, drawn)
            before = config.read_bytes(), text.read_bytes()
            for arguments in (
                ("run", config, "--output", config),
                ("run", config, "--output", f"{folder}/./config.json"),
                ("show", drawn, "--png", drawn),
                ("evaluate", config, "--csv", config),
                ("evaluate", "--text", text, "--output", text),
                ("generate", "--prompt-file", text, "--masks", text),
                ("generate", "--prompt", "In", "--config", config, "--masks", config),
            ):
                self.assertIn("would be replaced", self.refuse(*arguments))
            self.assertEqual((config.read_bytes(), text.read_bytes()), before)
            self.assertEqual(drawn.read_bytes(), config.read_bytes())
            table = Path(folder) / "table"
            self.assertIn("two files", self.refuse("evaluate", "--output", table, "--csv", f"{folder}/./table"))

    def test_options_that_would_not_be_used_are_refused(self) -> None:
        for option in ("--queries", "--keys"):
            self.assertIn("leave them out", self.refuse("show", CONFIGS[0], "--input", "bundled", option, 3))
        for option in ("--prefill", "--generation"):
            arguments = ("generate", "--prompt", "In", "--config", CONFIGS[0], option, CONFIGS[1])
            self.assertIn("both stages", self.refuse(*arguments))


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
                self.assertIn("% of it chosen first by", result.stdout)

    def test_patterns_that_leave_nothing_out_are_noted(self) -> None:
        note = "note: every key is kept"
        self.assertIn(note, reticle("show", ROOT / "configs/tova.json").stderr)
        self.assertNotIn(note, reticle("show", ROOT / "configs/sink_local.json", "--keys", 4096).stderr)
        evaluated = reticle("evaluate", ROOT / "configs/tova.json", "--window", 64, "--max-tokens", 65)
        self.assertIn("tova left nothing out", evaluated.stderr)
        generated = reticle("generate", "--prompt", "In", "--generation", ROOT / "configs/tova.json", "--stats")
        self.assertIn("nothing was left out", generated.stderr)

    def test_version_and_help_exit_with_success(self) -> None:
        self.assertEqual(reticle("help").stdout, reticle("--help").stdout)
        self.assertRegex(reticle("--version").stdout, r"^reticle \d+\.\d+\.\d+\n$")
        for command in ("run", "list", "describe", "schema", "check", "show", "verify", "generate", "evaluate"):
            self.assertEqual(reticle(command, "--help").returncode, 0)


class Model(unittest.TestCase):
    """Generation, evaluation and timing with the bundled model."""

    PROMPT = "And it came to pass"
    CONTINUATION = ", that at the sea said the king of the king of Israel, that the LORD hath said un"

    def test_generate_continues_the_prompt_as_transformers_does(self) -> None:
        result = reticle("generate", "--prompt", self.PROMPT, "--max-new-tokens", len(self.CONTINUATION))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stdout, self.PROMPT + self.CONTINUATION + "\n")

    def test_generate_takes_batches_stages_and_storage(self) -> None:
        arguments = ["--prompt", self.PROMPT, "--prompt", "In", "--max-new-tokens", 12, "--json"]
        dense = json.loads(reticle("generate", *arguments).stdout)
        sparse = json.loads(
            reticle("generate", *arguments, "--generation", ROOT / "configs/sink_local_oracle_top_k.json").stdout
        )
        self.assertEqual(dense["sequences"][0]["text"], self.CONTINUATION[:12])
        self.assertEqual(sparse["prefill"]["density"], 1)
        self.assertEqual(len(sparse["sequences"][1]["tokens"]), 12)
        half = json.loads(reticle("generate", *arguments, "--cache", "bf16").stdout)
        self.assertEqual(half["cache_bytes"] * 2, dense["cache_bytes"])
        codes = json.loads(reticle("generate", *arguments, "--cache", "q8").stdout)
        self.assertEqual(codes["sequences"][0]["text"], dense["sequences"][0]["text"])
        alone = json.loads(reticle("generate", *arguments[2:]).stdout)
        self.assertEqual(alone["sequences"][0], dense["sequences"][1])

    def test_generate_draws_by_seed_and_stops_at_bytes(self) -> None:
        draw = ["generate", "--prompt", self.PROMPT, "--temperature", 1, "--top-p", 0.9, "--max-new-tokens", 40]
        self.assertEqual(reticle(*draw, "--seed", 1).stdout, reticle(*draw, "--seed", 1).stdout)
        self.assertNotEqual(reticle(*draw, "--seed", 1).stdout, reticle(*draw, "--seed", 2).stdout)
        stopped = reticle("generate", "--prompt", self.PROMPT, "--stop", "t").stdout
        self.assertEqual(stopped, self.PROMPT + ", t\n")
        tokens = ",".join(str(byte) for byte in self.PROMPT.encode())
        by_ids = reticle("generate", "--tokens", tokens, "--max-new-tokens", 3).stdout
        self.assertEqual(bytes(int(token) for token in by_ids.split()).decode(), self.CONTINUATION[:3])

    def test_generate_keeps_masks(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            masks = Path(folder) / "masks.safetensors"
            result = reticle("generate", "--prompt", self.PROMPT, "--max-new-tokens", 6, "--masks", masks)
            self.assertEqual(result.returncode, 0, result.stderr)
            header = read_safetensors_header(masks)
            self.assertEqual(header["prefill.3"]["shape"], [4, 19, 19])
            self.assertEqual(header["generation.0"]["shape"], [4, 5, 24])

    def test_dense_loss_is_that_of_the_model_card(self) -> None:
        for window, loss in ((512, 1.15896), (1024, 1.14888), (2048, 1.14320), (4096, 1.13963)):
            result = reticle("evaluate", "--window", window, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertAlmostEqual(json.loads(result.stdout)["results"][0]["loss"], loss, delta=2e-4)

    def test_every_config_can_be_evaluated_and_timed(self) -> None:
        evaluated = reticle("evaluate", *CONFIGS, "--window", 256, "--output-length", 32, "--max-tokens", 257, "--json")
        self.assertEqual(evaluated.returncode, 0, evaluated.stderr)
        results = json.loads(evaluated.stdout)["results"]
        self.assertEqual([result["name"] for result in results], ["dense", *(config.stem for config in CONFIGS)])
        for result in results:
            self.assertTrue(0 < result["generation"]["density"] <= 1, result["name"])
            self.assertTrue(0 < result["loss"] < 8, result["name"])
        timed = reticle("bench-model", *CONFIGS, "--lengths", 96, "--new-tokens", 4, "--repeats", 1, "--json")
        self.assertEqual(timed.returncode, 0, timed.stderr)
        rows = json.loads(timed.stdout)["rows"]
        self.assertEqual(len(rows), 1 + len(CONFIGS))
        for row in rows:
            self.assertGreater(row["first_token_seconds"], 0)
            self.assertGreater(row["seconds_per_token"], 0)

    def test_needles_are_hidden_at_each_depth_that_is_asked_for(self) -> None:
        arguments = ["--window", 64, "--max-tokens", 65, "--tasks", "needle", "--lengths", "128,192", "--samples", 1]
        arguments = ["evaluate", *arguments, "--depths", "0,62.5"]
        document = json.loads(reticle(*arguments, "--json").stdout)
        self.assertEqual(document["settings"]["depths"], [0, 62.5])
        (dense,) = document["results"]
        found = [(task["length"], task["depth"]) for task in dense["retrieval"]]
        self.assertEqual(found, [(128, 0), (128, 62.5), (192, 0), (192, 62.5)])
        self.assertIn("192 at 62.5 %", reticle(*arguments).stdout)

    def test_evaluations_go_on_from_their_results(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            output, table = Path(folder) / "results.json", Path(folder) / "results.csv"
            arguments = ["evaluate", "--window", 64, "--max-tokens", 65, "--output", output]
            arguments += ["--tasks", "needle", "--lengths", 128, "--samples", 1]
            self.assertEqual(reticle(*arguments, ROOT / "configs/sink_local.json").returncode, 0)
            first = json.loads(output.read_text())["results"]
            first[0]["seconds"] = 12345  # recorded results are not measured again
            output.write_text(json.dumps({**json.loads(output.read_text()), "results": first}))
            both = [ROOT / "configs/sink_local.json", ROOT / "configs/longformer.json"]
            result = reticle(*arguments, "--csv", table, *both)
            self.assertEqual(result.returncode, 0, result.stderr)
            second = json.loads(output.read_text())["results"]
            self.assertEqual([r["name"] for r in second], ["dense", "sink_local", "longformer"])
            self.assertEqual(second[0]["seconds"], 12345)
            self.assertEqual(len(table.read_text().splitlines()), 4)
            self.assertIn("needle", result.stdout)
            arguments[2] = 32
            self.assertIn("holds results of other settings", reticle(*arguments).stderr)

    def test_evaluations_do_not_go_on_over_another_text_at_the_same_path(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            text, output = Path(folder) / "text", Path(folder) / "results.json"
            text.write_text("In the beginning. " * 8)
            arguments = ["evaluate", "--text", text, "--window", 64, "--output", output]
            self.assertEqual(reticle(*arguments).returncode, 0)
            self.assertEqual(reticle(*arguments).returncode, 0)
            text.write_text("In the beginning! " * 8)
            self.assertIn("holds results of other settings", reticle(*arguments).stderr)

    def test_grids_sweep_values_and_variants(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            grid = Path(folder) / "grid.json"
            sweep = {
                "name": "window",
                "config": {"maskers": [{"type": "sink", "sink_size": 1}, {"type": "local", "window_size": 8}]},
                "grid": {"/maskers/1/window_size": [8, 16]},
                "variants": [{"/maskers/0/sink_size": 1}, {"/maskers/0/sink_size": 2}],
            }
            grid.write_text(json.dumps([sweep, {"config": str(ROOT / "configs/sink_local.json")}]))
            result = reticle("evaluate", "--grid", grid, "--window", 64, "--max-tokens", 65, "--json")
            self.assertEqual(result.returncode, 0, result.stderr)
            labels = [r["label"] for r in json.loads(result.stdout)["results"]]
            self.assertEqual(len(labels), 6)
            self.assertEqual(labels[2], "window window_size=8 sink_size=2")
            for change, message in (
                ({"grid": {"/maskers/7/x": [1]}}, "has no place"),
                ({"grid": {"maskers": [1]}}, "is not a JSON pointer"),
                ({"grid": {"/maskers/1/window_size": [-1]}}, "window_size"),
                ({"grid": 3}, '"grid" must map'),
                ({"variants": {}}, '"variants" must be a list'),
                ({"grd": {}}, 'unknown key "grd"'),
                ({"name": 5}, '"name" must be text'),
                ({"config": 5}, '"config" must be a file or an object'),
            ):
                grid.write_text(json.dumps([{**sweep, **change}]))
                self.assertIn(message, reticle("evaluate", "--grid", grid).stderr)

    def test_the_users_own_text(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text"
            text.write_text("In the beginning God created the heaven and the earth. " * 4)
            result = reticle("evaluate", "--text", text, "--window", 100, "--json")
            self.assertEqual(json.loads(result.stdout)["results"][0]["tokens"], 200)

    def test_refusals(self) -> None:
        refuse = Errors.refuse
        case = Errors()
        self.assertIn("--prompt", refuse(case, "generate"))
        self.assertIn("is empty", refuse(case, "generate", "--prompt", ""))
        self.assertIn("context of 8192", refuse(case, "generate", "--prompt", "x" * 8100))
        self.assertIn("top_p", refuse(case, "generate", "--prompt", "x", "--top-p", 0))
        self.assertIn("single byte", refuse(case, "generate", "--prompt", "x", "--stop", "ab"))
        refuse(case, "generate", "--prompt", "x", "--model", "/nonexistent")
        with tempfile.TemporaryDirectory() as folder:
            self.assertIn("config.json", refuse(case, "generate", "--prompt", "x", "--model", folder))
        self.assertIn("repeated_phrase", refuse(case, "evaluate", "--tasks", "needles"))
        self.assertIn("no window", refuse(case, "evaluate", "--window", 100000))
        self.assertIn("cannot be written", refuse(case, "evaluate", "--output", "/nonexistent/results.json"))
        self.assertIn("--new-tokens", refuse(case, "bench-model", "--lengths", 8))


class Verify(unittest.TestCase):
    GOLDEN = ROOT / "tests/golden/hub"

    def test_total_is_on_the_last_line(self) -> None:
        for golden, deviations in (
            (self.GOLDEN, 9),
            (ROOT / "tests/golden/patterns", 0),
            (ROOT / "tests/golden/nsa", 0),
        ):
            result = reticle("verify", golden)
            self.assertEqual(result.returncode, 0, result.stdout)
            cases = len(list(golden.glob("*.json")))
            self.assertEqual(
                result.stdout.splitlines()[-1],
                f"{cases} cases: {cases - deviations} passed, {deviations} deviate as documented, "
                "0 failed, 0 not supported",
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

    def test_tensors_under_each_others_names_fail_and_are_named(self) -> None:
        for folder, case, one, other, named in (
            ("patterns", "nano_dense_generation", "gen_keys", "mask_dense", "gen_keys"),
            ("patterns", "nano_dense_generation", "lse", "prefill_values", "prefill_values"),
            ("patterns", "magicpig_sampling_probability", "cosine", "probability", "probability"),
            ("hub", "attention_full_mask", "numerator", "denominator", "numerator"),
            ("nsa", "compressed_attn_k8s4_b16", "cu_seqlens_k", "cu_seqlens_q", None),
            ("nsa", "nsa_infer_linear_within_window", "before_compress_kv_len", "cu_seqlens", "cu_seqlens"),
        ):
            golden = ROOT / "tests/golden" / folder
            header = read_safetensors_header(golden / f"{case}.safetensors")
            header[one], header[other] = header[other], header[one]
            text = json.dumps(header).encode()
            data = (golden / f"{case}.safetensors").read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            with tempfile.TemporaryDirectory() as damaged:
                (Path(damaged) / f"{case}.safetensors").write_bytes(
                    struct.pack("<Q", len(text)) + text + data[8 + size :]
                )
                shutil.copy(golden / f"{case}.json", damaged)
                result = reticle("verify", damaged)
            if named is not None:
                self.assertEqual(result.returncode, 1, f"{case}: {result.stdout}{result.stderr}")
                self.assertIn(named, result.stdout)
            self.assertIn(result.returncode, (0, 1), f"{case}: {result.stdout}{result.stderr}")

    def test_what_is_not_built_fails_unless_only_the_known_is_asked_for(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "future.json").write_text('{"kind": "time_travel", "tensors": {}}')
            self.assertEqual(reticle("verify", folder).returncode, 1)
            known = reticle("verify", folder, "--known-only")
            self.assertEqual(known.returncode, 0)
            self.assertEqual(known.stdout, "1 cases: 0 passed, 0 deviate as documented, 0 failed, 1 not supported\n")
            (Path(folder) / "broken.json").write_text("{")
            self.assertEqual(reticle("verify", folder, "--known-only").returncode, 1)


class FirstMinutes(unittest.TestCase):
    def test_without_arguments_it_helps(self) -> None:
        bare, helped = reticle(), reticle("--help")
        self.assertEqual((bare.returncode, bare.stderr), (0, ""))
        self.assertEqual(bare.stdout, helped.stdout)
        self.assertIn("Start with: reticle run", bare.stdout)

    def test_doctor_says_what_is_used(self) -> None:
        report = json.loads(reticle("doctor", "--json", RETICLE_NUM_THREADS="3").stdout)
        self.assertEqual(report["threads"], 3)
        self.assertEqual(report["maskers"], len(reticle("list").stdout.splitlines()))
        self.assertTrue(Path(report["library"]).exists() or report["library"] == str(RETICLE), report)
        self.assertTrue(report["kernels"])
        lines = reticle("doctor").stdout
        for word in ("version", "processor", "threads", "GPU", "plugins", "bundled data"):
            self.assertIn(word, lines)

    def test_doctor_names_the_plugins_that_were_refused(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "broken.so").write_bytes(b"not a plugin")
            result = reticle("doctor", RETICLE_PLUGIN_PATH=folder)
            self.assertEqual(result.returncode, 1)
            self.assertIn("refused:", result.stdout)
            self.assertIn("broken.so", result.stdout)

    def test_completion_knows_commands_options_and_maskers(self) -> None:
        script = reticle("completion", "bash").stdout

        def completed(*words: str) -> list[str]:
            line = " ".join(f'"{word}"' for word in words)
            code = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _reticle; printf "%s\\n" "${{COMPREPLY[@]}}"'
            done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
            return done.stdout.split()

        self.assertEqual(completed("reticle", "des"), ["describe"])
        self.assertEqual(completed("reticle", "describe", "oracle_top_"), ["oracle_top_k", "oracle_top_p"])
        self.assertIn("--compare", completed("reticle", "run", "--co"))
        self.assertIn("bashcompinit", reticle("completion", "zsh").stdout)
        self.assertIn("complete -c reticle", reticle("completion", "fish").stdout)
        self.assertEqual(reticle("completion", "tcsh").returncode, 2)


class Readme(unittest.TestCase):
    def test_examples_are_the_ones_that_run(self) -> None:
        readme = (ROOT / "README.md").read_text()
        code = (ROOT / "examples/quickstart.cpp").read_text()
        body = code[code.index("#include <cstdio>") :]
        self.assertIn(body, readme)
        self.assertIn((ROOT / "configs/sink_local_oracle_top_k.json").read_text(), readme)


if __name__ == "__main__":
    unittest.main()
