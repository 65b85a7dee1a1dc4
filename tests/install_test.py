"""Downstream builds: a consumer of the installed library (shared, static, pkg-config), a plugin, and a new masker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])
BUILD = Path(os.environ["RETICLE_BUILD_DIR"])
CXX = os.environ["RETICLE_CXX"]
GENERATOR = os.environ["RETICLE_GENERATOR"]
BUILT_IN = sorted(path.stem for path in (ROOT / "maskers").rglob("*.cpp"))
MAGIC = b"reticle-abi:v1\0\0"


def run(*command: object, **environment: str) -> str:
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if result.returncode != 0:
        raise AssertionError(f"{command}\n{result.stdout}\n{result.stderr}")
    return result.stdout


def build_project(source: Path, build: Path, *options: str) -> None:
    run("cmake", "-S", source, "-B", build, "-G", GENERATOR, f"-DCMAKE_CXX_COMPILER={CXX}", *options)
    run("cmake", "--build", build, "--parallel", len(os.sched_getaffinity(0)))


class Shared(unittest.TestCase):
    folder: tempfile.TemporaryDirectory[str]
    prefix: Path
    plugin: Path
    consumer: Path

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        base = Path(cls.folder.name)
        cls.prefix = base / "prefix"
        run("cmake", "--install", BUILD, "--prefix", cls.prefix)
        build_project(ROOT / "tests/install/consumer", base / "consumer", f"-DCMAKE_PREFIX_PATH={cls.prefix}")
        cls.consumer = base / "consumer" / "consumer"
        # The copies are outside the tree, so that only the installed package is available.
        shutil.copytree(ROOT / "plugins/log_sparse", base / "log_sparse")
        build_project(base / "log_sparse", base / "plugin", f"-DCMAKE_PREFIX_PATH={cls.prefix}")
        cls.plugin = base / "plugin" / "log_sparse.so"

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def temporary(self, name: str, content: bytes) -> Path:
        path = Path(self.folder.name) / name
        path.write_bytes(content)
        return path

    def compile_plugin(self, name: str, code: str, *options: str) -> Path:
        source = self.temporary(f"{name}.cpp", code.encode())
        library = source.with_suffix(".so")
        libraries = next(self.prefix.glob("lib*"))
        include = ["-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden", "-I", self.prefix / "include"]
        run(CXX, *include, source, "-o", library, "-L", libraries, "-lreticle", *options)
        return library

    def refusal(self, plugin: Path) -> str:
        """The error message of a plugin; also checks that the registry is unchanged and another plugin can still be
        loaded."""
        lines = run(self.consumer, plugin, self.plugin).splitlines()
        self.assertTrue(lines[0].startswith(f"refused {plugin}: "), lines)
        self.assertEqual(lines[1], "loaded log_sparse")
        self.assertEqual(lines[2:-1], [f"has {name}" for name in sorted([*BUILT_IN, "log_sparse"])])
        return lines[0].removeprefix(f"refused {plugin}: ")

    def test_consumer_sees_every_masker_and_runs(self) -> None:
        lines = run(self.consumer).splitlines()
        self.assertEqual(lines[:-1], [f"has {name}" for name in BUILT_IN])
        self.assertEqual(lines[-1], "output 4")

    def test_pkg_config_consumer_runs(self) -> None:
        if shutil.which("pkg-config") is None:
            self.skipTest("pkg-config is not there")
        folder = next(self.prefix.glob("lib*/**/pkgconfig"))
        flags = run("pkg-config", "--cflags", "--libs", "reticle", PKG_CONFIG_PATH=str(folder)).split()
        program = Path(self.folder.name) / "with_pkg_config"
        run(CXX, "-std=c++20", ROOT / "tests/install/consumer/main.cpp", "-o", program, *flags)
        library_path = str(folder.parent)
        self.assertIn("output 4", run(program, LD_LIBRARY_PATH=library_path))

    def test_installed_command_finds_its_library_and_the_bundled_tensors(self) -> None:
        command = self.prefix / "bin/reticle"
        out = run(
            command, "run", self.prefix / "share/reticle/configs/sink_local.json", "--json", RETICLE_DATA="/nonexistent"
        )
        self.assertEqual(json.loads(out)["input"], str(self.prefix / "share/reticle/data/attention_4096.safetensors"))

    def test_plugin_template_builds_under_a_new_name_and_passes_its_tests(self) -> None:
        sdk = ROOT / "bindings/reticle/sdk.py"
        base = Path(self.folder.name)
        run("python3", sdk, "new", "my_masker", base)
        build_project(base / "my_masker", base / "my_masker/build", f"-DCMAKE_PREFIX_PATH={self.prefix}")
        run("ctest", "--test-dir", base / "my_masker/build", "--output-on-failure")
        described = run(
            self.prefix / "bin/reticle", "describe", "my_masker", RETICLE_PLUGIN_PATH=str(base / "my_masker/build")
        )
        self.assertIn("`n`", described)
        again = subprocess.run(["python3", sdk, "new", "my_masker", base], capture_output=True, text=True, check=False)
        self.assertEqual((again.returncode, again.stdout), (2, ""))
        self.assertIn("is there already", again.stderr)

    def test_plugin_is_loaded_by_a_config_listed_described_and_run(self) -> None:
        command = self.prefix / "bin/reticle"
        config = self.plugin.parent / "log_sparse.json"
        shutil.copy(ROOT / "plugins/log_sparse/log_sparse.json", config)
        report = json.loads(run(command, "run", config, "--json"))
        layer = report["layers"][0]
        # 4 sinks, the query's position and the keys at distances 1, 2, ..., 2048, of 4096 keys.
        self.assertAlmostEqual(layer["density"], (4 + 13) / 4096, delta=1e-6)
        self.assertEqual(report["config"]["maskers"][1]["base"], 2)

        elsewhere = Path(self.folder.name) / "elsewhere.json"
        shutil.copy(config, elsewhere)
        folder = str(self.plugin.parent)
        run(command, "check", "--plugins", elsewhere, RETICLE_PLUGIN_PATH=f"/nonexistent:{folder}")
        listed = run(command, "list", RETICLE_PLUGIN_PATH=folder)
        self.assertIn(f"[{self.plugin}]", listed)
        self.assertIn("`base`", run(command, "describe", "log_sparse", RETICLE_PLUGIN_PATH=folder))
        missing = subprocess.run(
            [command, "check", "--plugins", elsewhere], capture_output=True, text=True, check=False
        )
        self.assertEqual(missing.returncode, 2)
        self.assertIn('no plugin "log_sparse.so"; looked for', missing.stderr)

    def test_code_that_a_config_names_runs_only_where_it_is_asked_for(self) -> None:
        command = self.prefix / "bin/reticle"
        config = self.plugin.parent / "log_sparse.json"
        shutil.copy(ROOT / "plugins/log_sparse/log_sparse.json", config)
        for words in (["check"], ["run", "--no-plugins"], ["show", "--no-plugins"]):
            refused = subprocess.run([command, *words, config], capture_output=True, text=True, check=False)
            self.assertEqual(refused.returncode, 2)
            self.assertIn("/plugins: names log_sparse.so, whose code would run; plugins are refused", refused.stderr)

    def test_the_library_in_a_folder_of_plugins_is_refused_and_check_loads_none(self) -> None:
        command = self.prefix / "bin/reticle"
        folder = Path(self.folder.name) / "plugins"
        folder.mkdir()
        library = next(path for path in self.prefix.glob("lib*/**/libreticle.so.*") if not path.is_symlink())
        shutil.copy(library, folder / "twin.so")
        environment = {**os.environ, "RETICLE_PLUGIN_PATH": str(folder)}
        listed = subprocess.run([command, "list"], capture_output=True, text=True, check=False, env=environment)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        self.assertRegex(listed.stderr, "twin.so: .*registers no masker|is registered already")
        quiet = [["check", ROOT / "configs/sink_local.json"], ["list", "--no-plugins"]]
        for words in quiet:
            done = subprocess.run([command, *words], capture_output=True, text=True, check=False, env=environment)
            self.assertEqual((done.returncode, done.stderr), (0, ""), words)

    def test_a_sealed_plugin_is_refused_when_a_byte_of_it_changed(self) -> None:
        command = self.prefix / "bin/reticle"
        sealed = Path(self.folder.name) / "sealed.so"
        shutil.copy(self.plugin, sealed)
        run(command, "seal-plugin", sealed)
        self.assertEqual(run(self.consumer, sealed).splitlines()[0], "loaded log_sparse")
        good = sealed.read_bytes()
        run(command, "seal-plugin", sealed)
        self.assertEqual(sealed.read_bytes(), good, "sealing again changes nothing")
        subprocess.run(["strip", sealed], check=True)
        self.assertEqual(run(self.consumer, sealed).splitlines()[0], "loaded log_sparse", "symbols may be stripped")
        at = good.index(MAGIC)
        for offset in (at + 200, at - 64, len(good) // 3):
            bad = bytearray(good)
            bad[offset] ^= 0x10
            self.assertIn(
                "was damaged or changed after it was sealed", self.refusal(self.temporary("bad.so", bytes(bad)))
            )
        other = subprocess.run([command, "seal-plugin", __file__], capture_output=True, text=True, check=False)
        self.assertEqual(other.returncode, 2)
        self.assertIn("is not a shared object", other.stderr)

    def test_loading_twice_is_loading_once(self) -> None:
        lines = run(self.consumer, self.plugin, self.plugin).splitlines()
        self.assertEqual(lines[:2], ["loaded log_sparse", "loaded log_sparse"])
        self.assertEqual(lines.count("has log_sparse"), 1)

    def test_other_version_compiler_or_layout_is_refused_before_its_code_runs(self) -> None:
        good = self.plugin.read_bytes()
        at = good.index(MAGIC)
        for name, offset in (("version", 16), ("compiler", 32), ("layout", 80)):
            bad = bytearray(good)
            bad[at + offset] ^= 1
            message = self.refusal(self.temporary(f"stale_{name}.so", bytes(bad)))
            self.assertRegex(message, r"^was built for reticle .* with .*; this is reticle 0.1.0 with .*Build it again")

    def test_missing_symbol_is_refused_with_the_loaders_reason(self) -> None:
        code = (ROOT / "plugins/log_sparse/log_sparse.cpp").read_text()
        code = code.replace('"log_sparse"', '"broken"') + '\nextern "C" int nowhere(); int use = nowhere();\n'
        plugin = self.compile_plugin("broken", code)
        lines = run(self.consumer, plugin).splitlines()
        self.assertRegex(lines[0], r"^refused .*undefined symbol: nowhere")
        self.assertNotIn("has broken", lines)

    def test_duplicate_name_is_refused_whole(self) -> None:
        code = (ROOT / "plugins/template/every_nth.cpp").read_text()
        twin = code.replace("EveryNth", "Twin").replace('"every_nth"', '"sink"')
        message = self.refusal(self.compile_plugin("twin", code + "\n" + twin))
        self.assertEqual(message, 'masker "sink" is registered already (built in)')

    def test_bad_name_is_refused(self) -> None:
        code = (ROOT / "plugins/template/every_nth.cpp").read_text().replace('"every_nth"', '"Every Nth"')
        self.assertIn("is not made of a-z, 0-9 and _", self.refusal(self.compile_plugin("bad_name", code)))

    def test_files_that_are_no_plugins_are_refused(self) -> None:
        self.assertEqual(self.refusal(self.temporary("text.so", b"hello")), "is not a shared object")
        self.assertEqual(self.refusal(self.temporary("empty.so", b"")), "is not a shared object")
        self.assertIn("has no reticle ABI stamp", self.refusal(self.compile_plugin("plain", "int x;")))
        self.assertEqual(self.refusal(Path(self.folder.name) / "absent.so"), "No such file or directory")
        library = next(path for path in self.prefix.glob("lib*/**/libreticle.so.*") if not path.is_symlink())
        self.assertIn("registers no masker", self.refusal(library))
        os.mkfifo(Path(self.folder.name) / "pipe.so")
        self.assertEqual(self.refusal(Path(self.folder.name) / "pipe.so"), "is not a regular file")

    def test_damaged_files_are_refused_before_the_loader_reads_them(self) -> None:
        good = self.plugin.read_bytes()
        for length in (*range(5, 200, 13), 1000, 4096, 20000, len(good) // 2, len(good) - 1):
            message = self.refusal(self.temporary("short.so", good[:length]))
            self.assertRegex(message, r"^is (damaged|not a shared object|a shared object for another)", length)
        for offset, what in ((4, "another processor"), (18, "another processor"), (16, "is not a shared object")):
            bad = bytearray(good)
            bad[offset] ^= 0x55
            self.assertIn(what, self.refusal(self.temporary("bad.so", bytes(bad))))
        for offset in (32, 40, 54):  # offsets of segments and sections, and the size of a segment entry
            bad = bytearray(good)
            bad[offset : offset + 4] = b"\xf1\xff\xff\x7f"
            self.assertIn("is damaged", self.refusal(self.temporary("bad.so", bytes(bad))))


class NewMasker(unittest.TestCase):
    """A masker in one new file, with no other change, in a static build whose linker must keep it. The build is part of
    another project's and is installed from there."""

    def test_one_new_file_is_listed_described_checked_run_and_linked(self) -> None:
        # Kept between runs, so that later runs compile only what changed.
        base = BUILD / "embedded-with-new-masker"
        source, build, prefix = base / "source", base / "build", base / "prefix"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir(parents=True)
        for name in ("core", "maskers", "attention", "tools", "cmake", "configs", "examples", "plugins"):
            shutil.copytree(ROOT / name, source / name)
        # What `reticle verify` is made of, without the vectors.
        shutil.copytree(
            ROOT / "tests/golden", source / "tests/golden", ignore=shutil.ignore_patterns("hub", "nsa", "patterns")
        )
        shutil.copy2(ROOT / "CMakeLists.txt", source)
        shutil.copy2(ROOT / "plugins/template/every_nth.cpp", source / "maskers/fixed/every_nth.cpp")
        options = ["-DBUILD_SHARED_LIBS=OFF", "-DRETICLE_BUILD_CLI=ON", "-DRETICLE_INSTALL=ON", "-DRETICLE_CUDA=OFF"]
        cached = [] if shutil.which("ccache") is None else ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
        build_project(
            ROOT / "tests/install/embedded", build, f"-DFETCHCONTENT_SOURCE_DIR_RETICLE={source}", *options, *cached
        )

        self.assertIn("has every_nth", run(build / "embedded").splitlines())
        command = build / "_deps/reticle-build/tools/reticle"
        names = [line.split()[0] for line in run(command, "list").splitlines()]
        self.assertEqual(names, sorted([*BUILT_IN, "every_nth"]))
        self.assertIn("| `n` | integer | `4` |", run(command, "describe", "every_nth"))
        self.assertEqual(json.loads(run(command, "schema", "every_nth"))["properties"]["n"]["default"], 4)
        config = base / "every_nth.json"
        config.write_text('{"maskers": [{"type": "every_nth", "n": 0}]}')
        refused = subprocess.run([command, "check", config], capture_output=True, text=True, check=False)
        self.assertIn("/maskers/0/n: must be > 0, got 0", refused.stderr)
        config.write_text('{"maskers": [{"type": "every_nth", "n": 16}]}')
        layer = json.loads(run(command, "run", config, "--json"))["layers"][0]
        self.assertEqual(layer["density"], 1 / 16)

        run("cmake", "--install", build, "--prefix", prefix)
        consumer = base / "consumer"
        build_project(ROOT / "tests/install/consumer", consumer, f"-DCMAKE_PREFIX_PATH={prefix}")
        self.assertEqual(run(consumer / "consumer").splitlines()[:-1], [f"has {name}" for name in names])
        if shutil.which("pkg-config") is None:
            self.skipTest("pkg-config is not there")
        folder = next(prefix.glob("lib*/**/pkgconfig"))
        flags = run("pkg-config", "--static", "--cflags", "--libs", "reticle", PKG_CONFIG_PATH=str(folder)).split()
        program = base / "with_pkg_config"
        run(CXX, "-std=c++20", ROOT / "tests/install/consumer/main.cpp", "-o", program, *flags)
        self.assertEqual(run(program).splitlines()[:-1], [f"has {name}" for name in names])


if __name__ == "__main__":
    unittest.main()
