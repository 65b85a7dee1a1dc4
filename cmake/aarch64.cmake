# Cross-compiles for 64-bit Arm and runs the tests under emulation, to test the NEON kernels on other machines. Needs
# Debian's g++-aarch64-linux-gnu and qemu-user-static, and the arm64 libraries in the folder that RETICLE_ARM64_ROOT
# names (see CONTRIBUTING.md).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

set(root $ENV{RETICLE_ARM64_ROOT})
set(libraries ${root}/usr/lib/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH ${root})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)  # header-only packages come from the host
set(BLAS_LIBRARIES ${libraries}/openblas-pthread/libopenblas.so CACHE FILEPATH "")
set(CBLAS_INCLUDE_DIR ${root}/usr/include/aarch64-linux-gnu/openblas-pthread CACHE PATH "")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static -L /usr/aarch64-linux-gnu
  -E LD_LIBRARY_PATH=${libraries}:${libraries}/openblas-pthread)
