#include <string>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/masker_docs.hpp>

#include "support/message_of.hpp"

namespace reticle::docs_test {

struct DocumentedConfig {
  double share = 0.25;
  Index needed = 0;
  Size window = 0.5;

  static constexpr const char* docs[] = {"how much", "what must be given", "how many keys"};
  static constexpr std::string_view required[] = {"needed"};
};

class Documented final : public Masker {
 public:
  explicit Documented(const DocumentedConfig&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::full(inputs.shape());
  }
};

struct NoConfig {};

class Bare final : public Masker {
 public:
  explicit Bare(const NoConfig&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::full(inputs.shape());
  }
};

RETICLE_REGISTER_MASKER(
    "test_documented", Documented, DocumentedConfig,
    {.summary = "Everything.", .source = "A paper", .rule = "all keys", .cost = "none", .extras = "a tensor"});
RETICLE_REGISTER_MASKER("test_bare", Bare, NoConfig, {.summary = "All.", .source = "-", .rule = "all", .cost = "none"});

namespace {

TEST(MaskerDocs, SayEverythingOfAMaskerAndATableOfItsParameters) {
  EXPECT_EQ(describe_masker("test_documented"),
            "## test_documented\n\nEverything.\n\n- Source: A paper\n- Selects: all keys\n- Cost: none\n"
            "- Needs: a tensor\n- Origin: built in\n\n| parameter | type | default | meaning |\n|---|---|---|---|\n"
            "| `share` | number | `0.25` | how much |\n| `needed` | integer | required | what must be given |\n"
            "| `window` | count or fraction | `0.5` | how many keys |\n");
  EXPECT_EQ(describe_masker("test_bare"),
            "## test_bare\n\nAll.\n\n- Source: -\n- Selects: all\n- Cost: none\n- Origin: built in\n\n"
            "No parameters.\n");
}

TEST(MaskerDocs, AnUnknownMaskerIsNamedWithTheNearest) {
  EXPECT_EQ(testing::message_of<ConfigError>([] { describe_masker("test_documentd"); }),
            "no masker \"test_documentd\"; did you mean \"test_documented\"?");
}

}  // namespace
}  // namespace reticle::docs_test
