#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/cuda/choose.hpp>
#include <reticle/core/rule.hpp>

#include "support/cuda/on_device.hpp"
#include "support/cuda/rules.hpp"
#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::cuda {
namespace {

void expect_every_rule_chooses_as_the_pipeline(bool biased, Index keys = 4000) {
  Case c;
  c.rows = 1;
  c.keys = keys;
  c.biased = biased;
  const reticle::testing::TemporaryFolder folder;
  for (const std::string& masker : maskers_by_rules(folder)) expect_rules_choose_as_the_pipeline(masker, c);
}

TEST_F(CudaDevice, RulesChooseWhatThePipelineChooses) { expect_every_rule_chooses_as_the_pipeline(false); }

TEST_F(CudaDevice, RulesChooseUnderAttentionMasks) { expect_every_rule_chooses_as_the_pipeline(true); }

TEST_F(CudaDevice, BoundsOfPagesFollowTheKeysOfASequence) {
  expect_steps_choose_as_the_pipeline(R"({"type": "quest_top_k", "heavy_size": 64, "page_size": 16})");
}

TEST_F(CudaDevice, ChoosersAreForAtLeastOneRowAndKey) {
  using reticle::testing::message_of;
  EXPECT_EQ(message_of<ValueError>([] { KeyChooser(0, 10, nullptr); }),
            "choosing keys: for 0 rows of 10 keys; expected at least one of each, and fewer than 2^31");
  EXPECT_THROW(KeyChooser(1, 0, nullptr), ValueError);
}

TEST_F(CudaDevice, WhatAChooserCannotFollowIsRefusedByName) {
  using reticle::testing::message_of;
  Case c;
  c.batch = 1;
  c.rows = 1;
  c.keys = 20;
  const Problem<float> drawn(c, 64);
  const OnDevice<float> on_device(drawn);
  const auto choosing = [](const KeyChooser& by, const std::vector<Rule>& rules, const AttentionInputs& inputs) {
    return [=] { by.choose(inputs, rules, nullptr); };
  };
  const KeyChooser chooser(4, 20, nullptr);
  const Rule sink{Rule::Kind::sinks, 2};
  Rule pages{Rule::Kind::pages, 1};
  pages.page_size = 4;
  EXPECT_EQ(message_of<ShapeError>(choosing(KeyChooser(3, 20, nullptr), {sink}, on_device.inputs)),
            "choosing keys: queries F32 (1, 4, 1, 64) and keys F32 (1, 2, 20, 64); expected at most 3 rows of 20 keys");
  EXPECT_EQ(message_of<ShapeError>(choosing(KeyChooser(4, 19, nullptr), {sink}, on_device.inputs)),
            "choosing keys: queries F32 (1, 4, 1, 64) and keys F32 (1, 2, 20, 64); expected at most 4 rows of 19 keys");
  EXPECT_EQ(message_of<ValueError>(choosing(chooser, {}, on_device.inputs)), "choosing keys: 0 rules; expected 1 to 8");
  EXPECT_EQ(message_of<ValueError>(choosing(chooser, std::vector<Rule>(9, sink), on_device.inputs)),
            "choosing keys: 9 rules; expected 1 to 8");
  EXPECT_EQ(message_of<ValueError>(choosing(chooser, {pages, pages}, on_device.inputs)),
            "choosing keys: two rules keep pages; expected at most one");
  AttentionInputs masked = on_device.inputs;
  masked.attention_mask = on_gpu(TensorView(nullptr, DType::f16, {1, 1, 1, 20}), nullptr);
  EXPECT_EQ(message_of<DeviceError>(choosing(chooser, {sink}, masked)),
            "attention_mask: F16 (1, 1, 1, 20); on a GPU it is F32");
}

TEST_F(CudaSmall, Choices) { expect_every_rule_chooses_as_the_pipeline(false, 300); }

}  // namespace
}  // namespace reticle::cuda
