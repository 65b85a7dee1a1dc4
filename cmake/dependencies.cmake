# Libraries. Each comes from the system if installed; else from a Python package beside the interpreter, which
# pyproject.toml's build requirements install without root; else, if fetching is allowed, from an archive pinned by its
# hash.
if(SKBUILD)  # its value is a number, which option() would read as OFF
  set(for_pip ON)
else()
  set(for_pip OFF)
endif()
option(RETICLE_FETCH "Fetch libraries that are found nowhere, pinned by hash" ${for_pip})
include(FetchContent)

# Sets `result` to the folder that includes of `header` are relative to in a Python distribution; empty without it.
function(python_include_root distribution header result)
  set(root "")
  if(SKBUILD OR RETICLE_BUILD_PYTHON)
    find_package(Python 3.10 QUIET COMPONENTS Interpreter)
    if(Python_Interpreter_FOUND)
      execute_process(
        COMMAND ${Python_EXECUTABLE} -c "
import importlib.metadata, sys
distribution, header = sys.argv[1:]
files = importlib.metadata.files(distribution) or []
found = [str(file.locate()) for file in files if str(file).endswith('/' + header)]
print(min(found, key=len)[: -len(header) - 1])" ${distribution} ${header}
        OUTPUT_VARIABLE root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    endif()
  endif()
  set(${result} "${root}" PARENT_SCOPE)
endfunction()

# Makes an imported target of a header-only library in a Python distribution; FATAL_ERROR names both ways to install it.
function(headers_from_python target distribution header package)
  python_include_root(${distribution} ${header} root)
  if(NOT root)
    message(FATAL_ERROR "${header} was not found. Install your distribution's ${package} (./bootstrap does), or the Python "
      "package ${distribution}, which pip brings where it builds a wheel")
  endif()
  message(STATUS "${target}: from the Python package ${distribution}, ${root}")
  add_library(${target} INTERFACE IMPORTED GLOBAL)
  target_include_directories(${target} SYSTEM INTERFACE ${root})
endfunction()

# Fetches and unpacks an archive without building it, because its build would add tests and an installation.
macro(fetch_pinned name url hash)
  if(NOT RETICLE_FETCH AND NOT FETCHCONTENT_SOURCE_DIR_${name})
    message(FATAL_ERROR "${name} was not found. Install your distribution's package (./bootstrap does), or configure with "
      "-DRETICLE_FETCH=ON, which downloads ${url}")
  endif()
  string(TOLOWER ${name} lower)
  FetchContent_Declare(${lower} URL ${url} URL_HASH SHA256=${hash} SOURCE_SUBDIR no_build_of_its_own)
  FetchContent_MakeAvailable(${lower})
endmacro()

set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)  # targets of a parent project link to them

find_package(Threads REQUIRED)

find_package(Boost 1.75 QUIET)
find_path(BOOST_PFR_INCLUDE_DIR boost/pfr.hpp HINTS ${Boost_INCLUDE_DIRS})
if(NOT Boost_FOUND OR NOT BOOST_PFR_INCLUDE_DIR)
  headers_from_python(Boost::headers boost-headers boost/pfr.hpp "Boost, at least 1.75")
endif()

find_package(nlohmann_json 3.10 QUIET)
if(NOT nlohmann_json_FOUND)
  headers_from_python(nlohmann_json::nlohmann_json nlohmann-json nlohmann/json.hpp nlohmann-json3-dev)
endif()

find_package(hwy QUIET)
if(NOT hwy_FOUND)
  fetch_pinned(HIGHWAY https://github.com/google/highway/archive/refs/tags/1.2.0.tar.gz
    7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343)
  message(STATUS "hwy::hwy: fetched, ${highway_SOURCE_DIR}")
  # Only Highway's sources for run-time dispatch are compiled.
  add_library(hwy_fetched STATIC ${highway_SOURCE_DIR}/hwy/abort.cc ${highway_SOURCE_DIR}/hwy/aligned_allocator.cc ${highway_SOURCE_DIR}/hwy/per_target.cc
    ${highway_SOURCE_DIR}/hwy/print.cc ${highway_SOURCE_DIR}/hwy/targets.cc ${highway_SOURCE_DIR}/hwy/timer.cc)
  target_include_directories(hwy_fetched SYSTEM PUBLIC ${highway_SOURCE_DIR})
  target_compile_definitions(hwy_fetched PUBLIC HWY_STATIC_DEFINE)
  add_library(hwy::hwy ALIAS hwy_fetched)
  if(NOT BUILD_SHARED_LIBS AND RETICLE_INSTALL)
    install(TARGETS hwy_fetched EXPORT reticleTargets)
  endif()
endif()

# Wheels bundle scipy's build of OpenBLAS, which has no further dependencies and lies beside the library. Its symbols
# have a prefix, so that it can share a process with numpy's OpenBLAS.
set(bundled_blas "")
if(SKBUILD)
  python_include_root(scipy-openblas32 cblas.h CBLAS_INCLUDE_DIR)
  if(CBLAS_INCLUDE_DIR)
    set(bundled_blas ${CBLAS_INCLUDE_DIR}/../lib/libscipy_openblas.so)
    add_library(BLAS::BLAS SHARED IMPORTED GLOBAL)
    set_target_properties(BLAS::BLAS PROPERTIES IMPORTED_LOCATION ${bundled_blas}
      INTERFACE_COMPILE_DEFINITIONS cblas_sgemm=scipy_cblas_sgemm)
  endif()
endif()
if(NOT bundled_blas)
  find_package(BLAS REQUIRED)
  find_path(CBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas REQUIRED)
endif()

# Dependencies of the command, and of the replayers of recorded cases, which a fuzz target runs as well.
if(RETICLE_BUILD_CLI OR RETICLE_BUILD_FUZZERS)
  find_package(fmt QUIET)
  if(NOT fmt_FOUND)
    headers_from_python(fmt::fmt-header-only cmeel-fmt fmt/core.h libfmt-dev)
    target_compile_definitions(fmt::fmt-header-only INTERFACE FMT_HEADER_ONLY=1)
  endif()
endif()
if(RETICLE_BUILD_CLI)
  find_package(CLI11 QUIET)
  if(NOT CLI11_FOUND)
    fetch_pinned(CLI11 https://github.com/CLIUtils/CLI11/archive/v2.4.2.tar.gz
      f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a)
    add_library(CLI11::CLI11 INTERFACE IMPORTED GLOBAL)
    target_include_directories(CLI11::CLI11 SYSTEM INTERFACE ${cli11_SOURCE_DIR}/include)
  endif()
  find_path(STB_INCLUDE_DIR stb_image_write.h PATH_SUFFIXES stb)
  if(NOT STB_INCLUDE_DIR)
    fetch_pinned(STB https://github.com/nothings/stb/archive/8b5f1f37b5b75829fc72d38e7b5d4bcbf8a26d55.zip
      93a16ee3e866e719feec459f6f132cce932c5ec751eb38e3ec1975f911353d2e)
    set(STB_INCLUDE_DIR ${stb_SOURCE_DIR} CACHE PATH "Where stb_image_write.h is" FORCE)
  endif()
endif()
