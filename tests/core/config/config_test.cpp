// Tests reflection, registration and messages with a masker that is defined here as a user would define one.
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/masker.hpp>
#include <reticle/core/registry.hpp>

namespace reticle::config_test {

enum class Flavour : std::uint8_t { vanilla, dark_chocolate, p99 };

struct Nested {
  Index depth = 3;
  std::vector<double> weights = {0.5};
  static constexpr const char* docs[] = {"how deep", "per level"};
};

struct EverythingConfig {
  bool _x = true;
  std::int32_t T = -4;
  std::uint8_t p99 = 7;
  double share = 0.25;
  std::string text = "a";
  std::filesystem::path file;
  Size size = 0.5;
  Flavour flavour = Flavour::dark_chocolate;
  std::optional<Index> maybe;
  Nested nested;
  std::vector<Nested> list;
  Index needed = 0;

  static constexpr const char* docs[] = {"d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9", "d10", "d11"};
  static constexpr std::string_view required[] = {"needed"};
  void validate() const { require(share <= 1, "share", "must be <= 1"); }
};

class Everything final : public Masker {
 public:
  explicit Everything(const EverythingConfig&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::full(inputs.shape());
  }
};

RETICLE_REGISTER_MASKER("test_everything", Everything, EverythingConfig,
                        {.summary = "Every kind of field.", .source = "tests", .rule = "all", .cost = "none"});

namespace {

using Json = nlohmann::ordered_json;

std::string refusal(const std::string& config) {
  try {
    SparseAttention::from_json(config, "/configs");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

/// The error message for a config whose only masker is test_everything with these parameters.
std::string refusal_of(const std::string& parameters) {
  return refusal(R"({"maskers": [{"type": "test_everything", "needed": 1, )" + parameters + "}]}");
}

TEST(Reflection, NamesFieldsAsTheyAreSpelled) {
  const auto names = field_names<EverythingConfig>();
  const std::string_view expected[] = {"_x",   "T",       "p99",   "share",  "text", "file",
                                       "size", "flavour", "maybe", "nested", "list", "needed"};
  ASSERT_EQ(names.size(), std::size(expected));
  for (std::size_t i = 0; i < names.size(); ++i) EXPECT_EQ(names[i], expected[i]);
}

TEST(Reflection, NamesEnumerators) {
  EXPECT_EQ(enumerator_names<Flavour>[0], "vanilla");
  EXPECT_EQ(enumerator_names<Flavour>[1], "dark_chocolate");
  EXPECT_EQ(enumerator_names<Flavour>[2], "p99");
  EXPECT_EQ(enumerator_names<Flavour>[3], "");
}

TEST(Config, PrintsBackWithDefaultsFilledIn) {
  const Json config =
      Json::parse(SparseAttention::from_json(R"({"maskers": [{"type": "test_everything", "needed": 9}]})").to_json());
  const Json expected =
      Json::parse(R"({"type": "test_everything", "_x": true, "T": -4, "p99": 7, "share": 0.25, "text": "a",
    "file": "", "size": 0.5, "flavour": "dark_chocolate", "maybe": null, "nested": {"depth": 3, "weights": [0.5]}, "list": [],
    "needed": 9})");
  EXPECT_EQ(config["maskers"][0], expected);
  EXPECT_EQ(config["causal"], false);
  EXPECT_EQ(config["merge"], "add");
}

TEST(Config, ReadsEveryKindOfField) {
  const std::string text =
      R"({"maskers": [{"type": "test_everything", "_x": false, "T": -2147483648, "p99": 255, "share": 1,
    "text": "ü\n", "file": "sub/x.bin", "size": 12, "flavour": "p99", "maybe": 5, "nested": {"weights": [1, 2.5]},
    "list": [{"depth": 1}, {}], "needed": -3}], "seed": 7, "merge": "independent", /* a comment */ "causal": true})";
  const Json read = Json::parse(SparseAttention::from_json(text, "/configs").to_json());
  const Json& masker = read["maskers"][0];
  EXPECT_EQ(masker["T"], -2147483648);
  EXPECT_EQ(masker["file"], "/configs/sub/x.bin") << "relative to the config";
  EXPECT_EQ(masker["size"], 12);
  EXPECT_TRUE(masker["size"].is_number_integer());
  EXPECT_EQ(masker["nested"], Json::parse(R"({"depth": 3, "weights": [1.0, 2.5]})"));
  EXPECT_EQ(masker["list"].size(), 2u);
  EXPECT_EQ(masker["list"][0]["depth"], 1);
  EXPECT_EQ(masker["maybe"], 5);
  EXPECT_EQ(read["merge"], "independent");
  // The printed config can be parsed, and prints the same.
  EXPECT_EQ(Json::parse(SparseAttention::from_json(read.dump(), "/elsewhere").to_json()), read);
}

TEST(Config, SizesTellCountsFromFractions) {
  EXPECT_EQ(Size(0.29).resolve(100), 28) << "truncated in double, as in Python";
  EXPECT_EQ(Size(1).resolve(100), 1);
  EXPECT_EQ(Size(1.0).resolve(100), 100);
  EXPECT_EQ(Size(17).resolve(10), 17);
}

TEST(Messages, NameThePlaceTheValueAndWhatWasExpected) {
  EXPECT_EQ(refusal_of(R"("T": 2147483648)"),
            "/maskers/0/T: 2147483648 is not an integer in [-2147483648, 2147483647]");
  EXPECT_EQ(refusal_of(R"("T": 1.5)"), "/maskers/0/T: 1.5 is not an integer in [-2147483648, 2147483647]");
  EXPECT_EQ(refusal_of(R"("p99": -1)"), "/maskers/0/p99: -1 is not an integer in [0, 255]");
  EXPECT_EQ(refusal_of(R"("needed": 18446744073709551615)"), "config: key \"needed\" occurs twice in one object");
  EXPECT_EQ(refusal_of(R"("_x": 1)"), "/maskers/0/_x: 1 is not true or false");
  EXPECT_EQ(refusal_of(R"("text": [])"), "/maskers/0/text: [] is not a string");
  EXPECT_EQ(
      refusal_of(R"("size": 1.5)"),
      "/maskers/0/size: 1.5 is not a size: expected an integer in [0, 2^31) (a count) or a real in [0, 1] (a fraction "
      "of the keys)");
  EXPECT_EQ(refusal_of(R"("size": -1)"),
            "/maskers/0/size: -1 is not a size: expected an integer in [0, 2^31) (a count) or a real in [0, 1] (a "
            "fraction of "
            "the keys)");
  EXPECT_EQ(
      refusal_of(R"("flavour": "dark_choclate")"),
      "/maskers/0/flavour: \"dark_choclate\" is not one of \"vanilla\", \"dark_chocolate\", \"p99\"; did you mean "
      "\"dark_chocolate\"?");
  EXPECT_EQ(refusal_of(R"("flavour": 1)"),
            "/maskers/0/flavour: 1 is not one of \"vanilla\", \"dark_chocolate\", \"p99\"");
  EXPECT_EQ(refusal_of(R"("nested": {"weights": [1, "x"]})"), "/maskers/0/nested/weights/1: \"x\" is not a number");
  EXPECT_EQ(refusal_of(R"("nested": 3)"), "/maskers/0/nested: 3 is not an object");
  EXPECT_EQ(refusal_of(R"("list": {})"), "/maskers/0/list: {} is not a list");
  EXPECT_EQ(refusal_of(R"("share": 2)"), "/maskers/0/share: must be <= 1, got 2");
  EXPECT_EQ(refusal_of(R"("shar": 0.5)"), "/maskers/0/shar: unknown key; did you mean \"share\"?");
  EXPECT_EQ(refusal_of(R"("nested": {"zzzzzz": 1})"),
            "/maskers/0/nested/zzzzzz: unknown key; known are depth, weights");
  EXPECT_EQ(refusal(R"({"maskers": [{"type": "test_everything"}]})"), "/maskers/0: \"needed\" is missing: d11");
}

TEST(Messages, OfPipelineConfigs) {
  EXPECT_EQ(refusal("{}"),
            R"(config: "maskers" is missing (or both "prefill" and "generation", each {"maskers": [...]}))");
  EXPECT_EQ(refusal("[]"), R"(config: is a list; expected an object, with the maskers as {"maskers": [...]})");
  EXPECT_EQ(refusal("1"), "config: 1 is not an object");
  EXPECT_EQ(refusal(R"({"maskers": {}})"), "/maskers: expected a list of maskers, got object");
  EXPECT_EQ(refusal(R"({"maskers": [1]})"), "/maskers/0: expected an object with a \"type\", got number");
  EXPECT_EQ(refusal(R"({"maskers": [{"sink_size": 1}]})"), "/maskers/0: expected a \"type\" that names a masker");
  EXPECT_EQ(refusal(R"({"maskers": [{"type": "sinc"}]})"),
            "/maskers/0/type: no masker \"sinc\"; did you mean \"sink\"?");
  EXPECT_EQ(refusal(R"({"maskers": [{"type": "quest"}]})"),
            "/maskers/0/type: no masker \"quest\"; did you mean \"quest_top_k\"?");
  EXPECT_EQ(refusal(R"({"maskers": [{"type": "entirely_unknown_name"}]})"),
            "/maskers/0/type: no masker \"entirely_unknown_name\"; `reticle list` shows those there are");
  EXPECT_EQ(refusal(R"({"maskers": [], "casual": true})"), "/casual: unknown key; did you mean \"causal\"?");
  EXPECT_EQ(refusal(R"({"maskers": [], "prefill": {"maskers": []}})"),
            "/prefill: a config has either \"maskers\" or stages, not both");
  EXPECT_EQ(refusal(R"({"prefill": {"maskers": []}})"),
            R"(config: "generation" is missing beside "prefill"; dense attention is {"maskers": []})");
  EXPECT_EQ(refusal(R"({"generation": {"maskers": []}})"),
            R"(config: "prefill" is missing beside "generation"; dense attention is {"maskers": []})");
  EXPECT_EQ(refusal(R"({"prefill": {"maskers": []}, "generation": {}})"), "/generation: \"maskers\" is missing");
  EXPECT_EQ(refusal(R"({"maskers": [], "seed": -1})"), "/seed: -1 is not an integer in [0, 9223372036854775807]");
  EXPECT_EQ(refusal(R"({"maskers": [], "merge": "plus"})"),
            "/merge: \"plus\" is not one of \"add\", \"max\", \"independent\"");
  EXPECT_EQ(refusal(R"({"maskers": [{"type": "sink", "sink_size": 0}]})"), "/maskers/0/sink_size: must be > 0, got 0");
  EXPECT_TRUE(refusal(R"({"maskers": [)").starts_with("config: is not JSON: parse error at line 1, column 14"));
  EXPECT_TRUE(refusal("").starts_with("config: is not JSON"));
  for (const Index depth : {200, 200000}) {  // with and without closing brackets
    std::string deep(static_cast<std::size_t>(depth), '[');
    EXPECT_EQ(refusal(deep), "config: is nested more than 100 levels deep");
    deep += std::string(deep.size(), ']');
    EXPECT_EQ(refusal(R"({"maskers": )" + deep + "}"), "config: is nested more than 100 levels deep");
  }
  EXPECT_THROW(SparseAttention::from_json(R"({"maskers": [], "plugins": ["absent.so"]})"), PluginError);
  EXPECT_THROW(SparseAttention::from_file("/nonexistent/config.json"), ConfigError);
  EXPECT_THROW(SparseAttention::from_file("/"), ConfigError);
}

TEST(Schema, DescribesFieldsDefaultsAndRequirements) {
  const Json schema = Json::parse(reticle::schema("test_everything"));
  EXPECT_EQ(schema["properties"]["type"]["const"], "test_everything");
  EXPECT_EQ(schema["properties"]["T"]["minimum"], -2147483648);
  EXPECT_EQ(schema["properties"]["flavour"]["enum"], Json::parse(R"(["vanilla", "dark_chocolate", "p99"])"));
  EXPECT_EQ(schema["properties"]["flavour"]["default"], "dark_chocolate");
  EXPECT_EQ(schema["properties"]["nested"]["properties"]["weights"]["items"]["type"], "number");
  EXPECT_EQ(schema["required"], Json::parse(R"(["type", "needed"])"));
  EXPECT_EQ(schema["additionalProperties"], false);
  const Json whole = Json::parse(reticle::schema());
  EXPECT_EQ(whole["$defs"]["maskers"]["items"]["anyOf"].size(), Registry::global().list().size());
}

}  // namespace
}  // namespace reticle::config_test
