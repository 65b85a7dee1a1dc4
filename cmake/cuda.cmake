# Device code. A CUDA toolkit is optional: without one, or with RETICLE_CUDA=OFF, three small source files replace the
# device code and report that it is unavailable. Kernels are tested on the CPU in either case (tests/core/cuda,
# tests/attention/cuda).
set(found_cuda OFF)
set(cuda_sources
  core/cuda/choose.cu
  core/cuda/hash.cu
  core/cuda/lsh.cu
  core/cuda/mask.cu
  core/cuda/quantiser.cu
  core/cuda/runtime.cu
  core/cuda/scores.cu
  core/cuda/tensor.cu
  core/cuda/top_k.cu
  attention/cuda/attention.cu
  attention/cuda/backward.cu
  attention/cuda/device_plan.cu
  attention/nsa/cuda/block_scores.cu)
if(RETICLE_CUDA STREQUAL "EMULATED")
  # The same sources compiled as host code; core/cuda/emulated provides memory, streams and launches.
  target_sources(${compiled} PRIVATE ${cuda_sources} core/cuda/emulated/device.cpp)
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  set_property(SOURCE attention/cuda/attention.cu APPEND PROPERTY COMPILE_DEFINITIONS RETICLE_WGMMA)
  target_include_directories(${compiled} PRIVATE core/cuda/emulated)
  return()
endif()
if(NOT RETICLE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(found_cuda ON)
  elseif(RETICLE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RETICLE_CUDA=ON, but no CUDA compiler was found (set CUDACXX or CMAKE_CUDA_COMPILER)")
  else()
    message(STATUS "No CUDA toolkit: building for the CPU")
  endif()
endif()
if(NOT found_cuda)
  target_sources(${compiled} PRIVATE core/cuda/unavailable.cpp attention/cuda/unavailable.cpp
    attention/nsa/cuda/unavailable.cpp)
  return()
endif()

set(default_architectures OFF)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(default_architectures ON)
endif()
enable_language(CUDA)
if(default_architectures)
  # The last architecture is included as PTX too, for future devices.
  set(last 100)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    set(last 90-virtual)
  endif()
  set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real;${last}" CACHE STRING "CUDA architectures" FORCE)
endif()
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  # CMake 3.25 does not know the C++ standard options of CUDA 13.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
find_package(CUDAToolkit REQUIRED)
set_target_properties(${compiled} PROPERTIES CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
target_sources(${compiled} PRIVATE ${cuda_sources})
# CMAKE_CUDA_RUNTIME_LIBRARY chooses the runtime. A stand-in that launches nothing can replace the shared one
# (tests/core/cuda/stand_in).
set(cuda_runtime CUDA::cudart_static)
if(CMAKE_CUDA_RUNTIME_LIBRARY STREQUAL "Shared")
  set(cuda_runtime CUDA::cudart)
endif()
target_link_libraries(${compiled} PRIVATE $<BUILD_INTERFACE:${cuda_runtime}>)
set(cuda_options --expt-relaxed-constexpr -Xcompiler=-fvisibility=hidden)
if(RETICLE_WARNINGS_AS_ERRORS)
  list(APPEND cuda_options -Werror=all-warnings)
endif()
target_compile_options(${compiled} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")
if(CMAKE_CUDA_ARCHITECTURES MATCHES 90a)  # plain 9.0 has no wgmma and uses other kernels
  set_property(SOURCE attention/cuda/attention.cu APPEND PROPERTY COMPILE_DEFINITIONS RETICLE_WGMMA)
endif()
# No fused multiply-add, so that rounding equals the CPU's: softmax mass (core/ops/softmax_mass.hpp) is cut at the same key, and
# p combine to the same values.
set_source_files_properties(core/cuda/choose.cu core/cuda/mask.cu PROPERTIES COMPILE_OPTIONS --fmad=false)

# Compiles the headers shared by CPU and GPU as device code, so that they stay compilable.
add_library(reticle_device_logic OBJECT ${PROJECT_SOURCE_DIR}/tests/devices/device_logic.cu)
target_include_directories(reticle_device_logic PRIVATE ${include_root})
target_compile_options(reticle_device_logic PRIVATE ${cuda_options})
