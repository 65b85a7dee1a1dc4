// Maskers and configs that reflection or the pipeline could not serve.
#include <string>

#include <reticle/core/masker.hpp>

namespace reticle::mistakes {

struct Config {
  Index size = 1;
  static constexpr const char* docs[] = {"keys"};
};

class Selecting final : public Masker {
 public:
  explicit Selecting(const Config&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::empty(inputs.shape());
  }
};

#if defined(A_MASKER_WITHOUT_SELECT_OR_RULES)
// expected: constraint
class Idle final : public Masker {
 public:
  explicit Idle(const Config&) {}
};
RETICLE_REGISTER_MASKER("idle", Idle, Config, {.summary = "."});
#elif defined(A_MASKER_THAT_CANNOT_BE_MADE_OF_ITS_CONFIG)
// expected: constraint
struct Other {
  Index size = 1;
  static constexpr const char* docs[] = {"keys"};
};
RETICLE_REGISTER_MASKER("selecting", Selecting, Other, {.summary = "."});
#elif defined(A_CONFIG_WITH_A_FIELD_THAT_JSON_HAS_NO_WORD_FOR)
// expected: static assertion
struct Pointing {
  const int* place = nullptr;
  static constexpr const char* docs[] = {"where"};
};
class OfPointing final : public Masker {
 public:
  explicit OfPointing(const Pointing&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::empty(inputs.shape());
  }
};
RETICLE_REGISTER_MASKER("pointing", OfPointing, Pointing, {.summary = "."});
#elif defined(A_CONFIG_WITH_A_FIELD_WITHOUT_DOCS)
// expected: static assertion
struct Undocumented {
  Index size = 1, other = 2;
  static constexpr const char* docs[] = {"keys"};
};
class OfUndocumented final : public Masker {
 public:
  explicit OfUndocumented(const Undocumented&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::empty(inputs.shape());
  }
};
RETICLE_REGISTER_MASKER("undocumented", OfUndocumented, Undocumented, {.summary = "."});
#elif defined(SELECT_MUST_NOT_CHANGE_THE_MASKER)
// expected: override
class Changing final : public Masker {
 public:
  explicit Changing(const Config&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) override {
    return Mask::empty(inputs.shape());
  }
};
#else
RETICLE_REGISTER_MASKER("selecting", Selecting, Config, {.summary = "."});
#endif

}  // namespace reticle::mistakes
