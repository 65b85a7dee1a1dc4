#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/base/error.hpp>
#include <reticle/core/ops/channel_table.hpp>

#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::testing {
namespace {

using Channels = std::vector<std::vector<Index>>;

class ChannelTables : public ::testing::Test {
 protected:
  ChannelTable read(const std::string& text) {
    write_bytes(folder_ / "table.json", text);
    return {folder_ / "table.json", "k_proj"};
  }
  /// The error message without the path, with which every message begins.
  std::string refusal(const std::string& text) {
    const std::string message = message_of<FormatError>([&] { read(text); }), path = (folder_ / "table.json").string();
    EXPECT_TRUE(message.starts_with(path + ": ")) << message;
    return message.substr(path.size() + 2);
  }

  TemporaryFolder folder_;
};

TEST_F(ChannelTables, HoldAListPerHeadOfEachLayer) {
  const ChannelTable table = read(R"({"model.layers.0.self_attn.k_proj": [[3, 1], [0, 2]],
                                      "model.layers.12.self_attn.k_proj": [[7]]})");
  EXPECT_EQ(table.layer(0), (Channels{{3, 1}, {0, 2}}));
  EXPECT_EQ(table.layer(12), (Channels{{7}}));
}

TEST_F(ChannelTables, OfOtherProjectionsArePassedOver) {
  const ChannelTable table = read(R"({"model.layers.0.self_attn.q_proj": "anything", "version": 1,
                                      "model.layers.0.self_attn.k_proj": [[5, 4]]})");
  EXPECT_EQ(table.layer(0), (Channels{{5, 4}}));
}

TEST_F(ChannelTables, WithoutTheLayerThatIsAskedForAreRefused) {
  const ChannelTable table = read(R"({"model.layers.0.self_attn.k_proj": [[0]]})");
  EXPECT_EQ(message_of<FormatError>([&] { table.layer(3); }),
            (folder_ / "table.json").string() + ": has no \"model.layers.3.self_attn.k_proj\"");
}

TEST_F(ChannelTables, OfAnotherFormAreRefusedByTheirKey) {
  EXPECT_EQ(refusal("[1]"), "is not a JSON object");
  EXPECT_EQ(refusal("{"), "is not a JSON object");
  EXPECT_EQ(refusal(R"({"model.layers.x.self_attn.k_proj": [[0]]})"),
            "key \"model.layers.x.self_attn.k_proj\" does not name a layer");
  EXPECT_EQ(refusal(R"({"model.layers.-1.self_attn.k_proj": [[0]]})"),
            "key \"model.layers.-1.self_attn.k_proj\" does not name a layer");
  for (const char* heads : {"3", "[]", "[3]", "{\"0\": [1]}"})
    EXPECT_EQ(refusal(R"({"model.layers.0.self_attn.k_proj": )" + std::string(heads) + "}"),
              "\"model.layers.0.self_attn.k_proj\" must be a list with one list per query head")
        << heads;
  for (const char* channel : {"-1", "1.5", "\"2\"", "2147483648"})
    EXPECT_EQ(refusal(R"({"model.layers.0.self_attn.k_proj": [[0, )" + std::string(channel) + "]]}"),
              "\"model.layers.0.self_attn.k_proj\" holds " + std::string(channel) + "; expected channel numbers");
}

TEST_F(ChannelTables, ThatAreNotThereAreRefused) {
  const auto absent = folder_ / "absent.json";
  EXPECT_EQ(message_of<FormatError>([&] { ChannelTable(absent, "k_proj"); }),
            absent.string() + ": cannot be read: No such file or directory");
}

}  // namespace
}  // namespace reticle::testing
