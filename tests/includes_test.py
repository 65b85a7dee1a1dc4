"""Each source includes the standard headers whose names it uses, because transitive includes differ between
compilers."""

from __future__ import annotations

import os
import re
import unittest
from pathlib import Path

ROOT = Path(os.environ["RETICLE_SOURCE_DIR"])

# The names of each header that the sources use, as a regex alternation after std::. The fixed-width integers,
# std::size_t, std::pair, std::move and the like come with core/base/types.hpp and every container, and are not listed.
NAMES: dict[str, str] = {
    "algorithm": (
        "adjacent_find all_of any_of binary_search clamp copy copy_backward copy_if copy_n count count_if equal "
        "equal_range fill fill_n find find_if for_each generate inplace_merge is_sorted lower_bound make_heap max "
        "max_element min min_element minmax mismatch none_of nth_element partial_sort partition pop_heap push_heap "
        "remove_if replace reverse rotate set_union sort stable_sort swap_ranges transform unique upper_bound"
    ),
    "array": "array",
    "atomic": "atomic atomic_ref atomic_thread_fence",
    "bit": "bit_cast bit_ceil bit_width countl_zero countr_one countr_zero has_single_bit popcount",
    "charconv": "from_chars to_chars",
    "chrono": "chrono",
    "cmath": (
        "abs ceil copysign cos erf erfc exp exp2 expm1 fabs floor fma fmod frexp hypot isfinite isinf isnan ldexp "
        "llround log log1p log2 lround nan nanf nearbyint nextafter pow rint round signbit sin sqrt tanh trunc"
    ),
    "concepts": "convertible_to derived_from floating_point integral invocable same_as",
    "condition_variable": "condition_variable",
    "cstdio": "FILE fflush fopen fprintf fputs fwrite printf puts snprintf",
    "cstdlib": "abort exit getenv strtod strtol",
    "cstring": "memcmp memcpy memmove memset strlen",
    "exception": "current_exception exception exception_ptr rethrow_exception uncaught_exceptions",
    "filesystem": "filesystem",
    "fstream": "fstream ifstream ofstream",
    "functional": "function greater hash less plus ref reference_wrapper",
    "iterator": "back_inserter istreambuf_iterator make_move_iterator",
    "limits": "numeric_limits",
    "map": "map multimap",
    "memory": "make_shared make_unique shared_ptr unique_ptr weak_ptr",
    "mutex": "call_once lock_guard mutex once_flag scoped_lock unique_lock",
    "new": "align_val_t bad_alloc nothrow",
    "numeric": "accumulate exclusive_scan gcd inclusive_scan inner_product iota midpoint partial_sum reduce",
    "optional": "nullopt optional",
    "random": "bernoulli_distribution mt19937 mt19937_64 normal_distribution random_device uniform_int_distribution",
    "set": "set",
    "span": "span",
    "sstream": "istringstream ostringstream stringstream",
    "stdexcept": "bad_cast invalid_argument logic_error out_of_range runtime_error",
    "stop_token": "stop_callback stop_source stop_token",
    "string": "getline stod stoi string to_string",
    "thread": "jthread this_thread thread",
    "tuple": "make_tuple tie tuple",
    "unordered_map": "unordered_map",
    "variant": "get_if holds_alternative monostate variant visit",
    "vector": "vector",
}
USES = {header: re.compile(rf"std::(?:{names.replace(' ', '|')})\b") for header, names in NAMES.items()}
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)
FOLDERS = ("core", "maskers", "attention", "bindings", "tools", "plugins", "examples", "benchmarks", "tests")


def sources() -> list[Path]:
    return sorted(
        p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in {".hpp", ".cpp", ".cu", ".cuh"}
    )


def included(path: Path) -> set[str]:
    """The headers that a source includes, directly or through the header of the same name."""
    headers = set(INCLUDE.findall(path.read_text()))
    header = path.with_suffix(".hpp")
    return headers | (included(header) if header != path and header.exists() else set())


def missing(path: Path) -> list[str]:
    code = re.sub(r"//.*", "", path.read_text())
    return [header for header, uses in USES.items() if uses.search(code) and header not in included(path)]


class Includes(unittest.TestCase):
    def test_each_source_includes_the_standard_headers_that_it_uses(self) -> None:
        lacking = {str(path.relative_to(ROOT)): missing(path) for path in sources()}
        self.assertEqual({path: headers for path, headers in lacking.items() if headers}, {})


if __name__ == "__main__":
    unittest.main()
