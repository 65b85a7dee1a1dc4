#include <reticle/core/base/types.hpp>

namespace reticle {

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "F32";
    case DType::f16:
      return "F16";
    case DType::bf16:
      return "BF16";
    case DType::f64:
      return "F64";
    case DType::i64:
      return "I64";
    case DType::i32:
      return "I32";
    case DType::i16:
      return "I16";
    case DType::i8:
      return "I8";
    case DType::u64:
      return "U64";
    case DType::u32:
      return "U32";
    case DType::u16:
      return "U16";
    case DType::u8:
      return "U8";
    case DType::boolean:
      return "BOOL";
    case DType::q8:
      return "Q8";
    case DType::q4:
      return "Q4";
  }
  return "?";
}

std::string Device::describe() const { return kind == Kind::cpu ? "the CPU" : "GPU " + std::to_string(index); }

}  // namespace reticle
