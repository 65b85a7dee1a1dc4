// What a plugin was built against, as data in its file.
#pragma once

#include <cstdint>
#include <string_view>

#include <reticle/version.hpp>

namespace reticle {

/// What a shared object was built against. Plain data: the loader reads it from the file before any code runs.
struct AbiStamp {
  char magic[16];
  char version[16];
  char compiler[48];
  std::uint64_t layout;
  std::uint64_t seal;  // checksum of the file, written by seal_plugin; 0: none
};

namespace abi_detail {

template <std::size_t N>
consteval void put(char (&to)[N], std::string_view text, std::size_t& at) {
  for (const char c : text) {
    if (at + 1 < N) to[at++] = c;
  }
}

template <std::size_t N>
consteval void put_number(char (&to)[N], long number, std::size_t& at) {
  if (number >= 10) put_number(to, number / 10, at);
  const char digit[] = {static_cast<char>('0' + number % 10)};
  put(to, {digit, 1}, at);
}

}  // namespace abi_detail

/// `layout`: of what crosses between a plugin and the library, see core/masker.hpp.
consteval AbiStamp abi_stamp(std::uint64_t layout) {
  AbiStamp stamp{};
  std::size_t at = 0;
  abi_detail::put(stamp.magic, "reticle-abi:v1", at);
  at = 0;
  abi_detail::put(stamp.version, RETICLE_VERSION, at);
  at = 0;
#if defined(__clang__)
  abi_detail::put(stamp.compiler, "clang ", at);
  abi_detail::put_number(stamp.compiler, __clang_major__, at);
#else
  abi_detail::put(stamp.compiler, "gcc ", at);
  abi_detail::put_number(stamp.compiler, __GNUC__, at);
#endif
#if defined(_LIBCPP_VERSION)
  abi_detail::put(stamp.compiler, ", libc++", at);
#else
  abi_detail::put(stamp.compiler, ", libstdc++ cxx11-abi ", at);
  abi_detail::put_number(stamp.compiler, _GLIBCXX_USE_CXX11_ABI, at);
#endif
  stamp.layout = layout;
  return stamp;
}

}  // namespace reticle
