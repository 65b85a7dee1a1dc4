"""The modules of reticle.research are also at the paths where they were before, with a warning."""

import importlib
import pickle
import subprocess
import sys
import warnings

import pytest
import reticle
from reticle._moved import MOVED

MODULES = ("benchmarks", "curves", "evaluate", "hat", "lm_eval", "metrics", "report", "search")
NEEDS = {"evaluate": ["torch", "transformers"], "hat": ["torch"], "report": ["torch", "transformers"]}
NEEDS["lm_eval"] = ["lm_eval", "accelerate"]
NEEDS["curves"] = ["matplotlib"]


def forget(old):
    """Makes an old path be imported anew, as in a process that did not import it before."""
    sys.modules.pop(f"reticle.{old}", None)
    vars(reticle).pop(old, None)


@pytest.mark.parametrize("name", MOVED)
@pytest.mark.parametrize("statement", ["import reticle.{0} as found", "from reticle import {0} as found"])
def test_an_old_path_gives_the_new_module_and_warns_once_where_it_is_imported(name, statement):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    forget(name)
    names = {"__name__": "caller"}
    code = compile(statement.format(name), "caller.py", "exec")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(code, names)
        exec(code, names)
    assert names["found"] is importlib.import_module(f"reticle.research.{name}")
    assert sys.modules[f"reticle.{name}"] is names["found"]
    (warning,) = [each for each in caught if each.category is DeprecationWarning and "reticle" in str(each.message)]
    assert str(warning.message) == f"reticle.{name} is reticle.research.{name} now; import that instead"
    assert warning.filename == "caller.py" and warning.lineno == 1


def test_names_imported_from_an_old_path_are_those_of_the_new_one():
    forget("search")
    with pytest.warns(
        DeprecationWarning, match=r"^reticle\.search is reticle\.research\.search now; import that instead$"
    ):
        from reticle.search import Choice
    from reticle.research import search

    assert Choice is search.Choice


def test_pickles_that_name_an_old_path_load():
    forget("search")
    from reticle.research.search import Choice

    text = pickle.dumps(Choice((1, 2)), protocol=0).replace(b"reticle.research.search", b"reticle.search")
    with pytest.warns(DeprecationWarning, match=r"^reticle\.search is"):
        assert pickle.loads(text) == Choice((1, 2))


def test_the_package_itself_imports_no_old_path():
    modules = "reticle, reticle.research.benchmarks, reticle.research.metrics, reticle.research.search"
    for package, using in (("torch", "reticle.research.hat"), ("transformers", "reticle.hub, reticle.research.report")):
        if importlib.util.find_spec(package) is not None:
            modules += f", {using}"
    check = f"import sys, {modules}; print([n for n in {MOVED!r} if f'reticle.{{n}}' in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_research_names_its_modules_and_no_others():
    assert reticle.research.benchmarks.BENCHMARKS
    with pytest.raises(AttributeError, match=r"^module 'reticle\.research' has no attribute 'nothing'$"):
        reticle.research.nothing  # noqa: B018


def run_as_program(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"reticle.research.{name}", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", MODULES)
def test_every_module_run_as_a_program_helps(name):
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
    done = run_as_program(name, "--help")
    assert done.returncode == 0 and len(done.stdout) > 100, done.stderr


def test_a_module_without_a_command_says_so():
    done = run_as_program("metrics", "log.jsonl", "-h")
    assert done.returncode == 2
    assert done.stderr == "log.jsonl: this module has no command; expected to be imported, as above\n"
    assert run_as_program("metrics").stdout == run_as_program("metrics", "--help").stdout


def test_every_module_of_research_is_tested_as_a_program():
    import pkgutil

    assert [each.name for each in pkgutil.iter_modules(reticle.research.__path__)] == sorted(MODULES)
