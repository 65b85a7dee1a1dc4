#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include <reticle/core/registry.hpp>

#include "support/files.hpp"
#include "support/message_of.hpp"

namespace reticle::registry_test {

struct PlainConfig {
  Index count = 3;

  static constexpr const char* docs[] = {"keys"};
};

struct ClashingConfig {
  Index layers = 3;

  static constexpr const char* docs[] = {"a name that configs use themselves"};
};

template <class Config>
class Full final : public Masker {
 public:
  explicit Full(const Config&) {}
  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context&) const override {
    return Mask::full(inputs.shape());
  }
};

namespace {

using testing::message_of;
using testing::TemporaryFolder;

/// Names begin with "test_", which the tests over all maskers skip.
MaskerType type_named(std::string name, std::string origin, std::string_view color = {}) {
  return {std::move(name), {.color = color}, std::move(origin), masker_factory<Full<PlainConfig>, PlainConfig>()};
}

TEST(Registry, ListsByName) {
  const auto types = Registry::global().list();
  EXPECT_TRUE(
      std::is_sorted(types.begin(), types.end(), [](const auto* a, const auto* b) { return a->name < b->name; }));
  EXPECT_TRUE(std::any_of(types.begin(), types.end(), [](const auto* type) { return type->name == "sink"; }));
  EXPECT_EQ(Registry::global().at("sink").origin, "built in");
}

TEST(Registry, NamesTheNearestForANameThatItDoesNotKnow) {
  const Registry& registry = Registry::global();
  EXPECT_EQ(message_of<ConfigError>([&] { registry.at("sinc"); }), "no masker \"sinc\"; did you mean \"sink\"?");
  EXPECT_EQ(message_of<ConfigError>([&] { registry.at("entirely_unknown_name"); }),
            "no masker \"entirely_unknown_name\"; `reticle list` shows those there are");
  EXPECT_FALSE(registry.contains("sinc"));
}

TEST(Registry, RefusesDuplicatesAndBadNames) {
  MaskerType type = Registry::global().at("sink");
  EXPECT_THROW(Registry::global().add(type), ConfigError);
  type.name = "Bad Name";
  EXPECT_THROW(Registry::global().add(type), ConfigError);
  EXPECT_FALSE(Registry::global().contains("Bad Name"));
}

TEST(Registry, SaysWhyATypeIsRefused) {
  const auto refusal = [](MaskerType type) {
    const std::string name = type.name;
    const std::string message = message_of<ConfigError>([&] { Registry::global().add(std::move(type)); });
    EXPECT_EQ(Registry::global().contains(name), name == "sink");
    return message;
  };
  EXPECT_EQ(refusal(type_named("sink", "a plugin")), "masker \"sink\" (a plugin) is registered already (built in)");
  EXPECT_EQ(refusal(type_named("", "here")), "masker name \"\" is not made of a-z, 0-9 and _");
  EXPECT_EQ(refusal(type_named("test-dash", "here")), "masker name \"test-dash\" is not made of a-z, 0-9 and _");
  for (const char* color : {"#12345", "#12345g", "0072B2", "#0072B2f"})
    EXPECT_EQ(refusal(type_named("test_color", "here", color)),
              "masker \"test_color\": color \"" + std::string(color) + "\"; expected \"#rrggbb\"");
  EXPECT_EQ(refusal({"test_clash", {}, "here", masker_factory<Full<ClashingConfig>, ClashingConfig>()}),
            "masker \"test_clash\" has a field \"layers\"; a config uses that name to say which masker serves where");
}

TEST(Registry, ReplacesATypeOfTheSameOriginOnly) {
  Registry& registry = Registry::global();
  registry.add_or_replace(type_named("test_replaced", "a notebook", "#000001"));
  const MaskerType& before = registry.at("test_replaced");
  registry.add_or_replace(type_named("test_replaced", "a notebook", "#000002"));
  EXPECT_EQ(registry.at("test_replaced").docs.color, "#000002");
  EXPECT_EQ(before.docs.color, "#000001") << "pipelines may hold the old one";
  EXPECT_EQ(message_of<ConfigError>([&] { registry.add_or_replace(type_named("test_replaced", "another")); }),
            "masker \"test_replaced\" (another) is registered already (a notebook)");
  EXPECT_EQ(registry.at("test_replaced").docs.color, "#000002");
}

TEST(Registry, MakesMaskersThatKnowTheirName) {
  const MaskerType& sink = Registry::global().at("sink");
  const std::shared_ptr<void> config = sink.factory.default_config();
  EXPECT_EQ(sink.make(config.get())->type(), "sink");
  EXPECT_NE(sink.make(config.get())->id(), sink.make(config.get())->id());
}

TEST(MaskerColors, SinksAreBlueWindowsOrangeAndOthersGreenFirst) {
  const std::vector<std::string> types{"dense", "oracle_top_k", "sink", "local", "moba", "oracle_top_k"};
  const std::vector<Color> colors = masker_colors(types);
  EXPECT_EQ(colors[2], (Color{0x00, 0x72, 0xB2}));
  EXPECT_EQ(colors[3], (Color{0xE6, 0x9F, 0x00}));
  EXPECT_EQ(colors[1], (Color{0x00, 0x9E, 0x73}));
  EXPECT_EQ(colors[1], colors[5]);
  EXPECT_EQ(masker_colors(std::vector<std::string>{"moba"})[0], colors[1]);
  for (std::size_t i = 0; i < 5; ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_FALSE(colors[i] == colors[j]) << i << ' ' << j;
  }
}

TEST(MaskerColors, BeginAgainAfterFiveOthers) {
  const std::vector<std::string> types{"a", "b", "c", "d", "e", "f"};
  const std::vector<Color> colors = masker_colors(types);
  ASSERT_EQ(colors.size(), 6u);
  EXPECT_EQ(colors[5], colors[0]);
  EXPECT_TRUE(masker_colors({}).empty());
}

/// Sets RETICLE_PLUGIN_PATH for the lifetime of the object.
class PluginPath {
 public:
  explicit PluginPath(const std::string& folders) { setenv("RETICLE_PLUGIN_PATH", folders.c_str(), 1); }
  PluginPath(const PluginPath&) = delete;
  PluginPath& operator=(const PluginPath&) = delete;
  ~PluginPath() { unsetenv("RETICLE_PLUGIN_PATH"); }
};

TEST(FindPlugin, LooksBesideTheConfigThenInEachFolderOfThePath) {
  const TemporaryFolder folder;
  for (const char* name : {"config", "first", "second"}) std::filesystem::create_directory(folder / name);
  const PluginPath path((folder / "first").string() + "::" + (folder / "second").string());
  testing::write_bytes(folder / "second/mine.so", "");
  EXPECT_EQ(find_plugin("mine.so", folder / "config"), folder / "second/mine.so");
  testing::write_bytes(folder / "first/mine.so", "");
  EXPECT_EQ(find_plugin("mine.so", folder / "config"), folder / "first/mine.so");
  testing::write_bytes(folder / "config/mine.so", "");
  EXPECT_EQ(find_plugin("mine.so", folder / "config"), folder / "config/mine.so");
  EXPECT_EQ(find_plugin(folder / "second/mine.so", folder / "config"), folder / "second/mine.so");
}

TEST(FindPlugin, ListsThePlacesThatItTried) {
  const PluginPath path("/nonexistent/a:/nonexistent/b");
  EXPECT_EQ(message_of<PluginError>([] { find_plugin("mine.so", "/nonexistent"); }),
            "no plugin \"mine.so\"; looked for /nonexistent/mine.so, /nonexistent/a/mine.so, /nonexistent/b/mine.so");
  EXPECT_EQ(message_of<PluginError>([] { find_plugin("/nonexistent/mine.so", "/tmp"); }),
            "no plugin \"/nonexistent/mine.so\"; looked for /nonexistent/mine.so");
}

TEST(PluginsFromTheEnvironment, ThatAreRefusedGiveAMessageEach) {
  EXPECT_TRUE(load_plugins_from_environment().empty()) << "no folder is named";
  const TemporaryFolder folder;
  testing::write_bytes(folder / "b.so", "not a plugin");
  testing::write_bytes(folder / "a.so", "nor this");
  testing::write_bytes(folder / "notes.txt", "passed over");
  const PluginPath path("/nonexistent:" + folder.path().string());
  EXPECT_EQ(load_plugins_from_environment(),
            (std::vector<std::string>{"RETICLE_PLUGIN_PATH: /nonexistent: No such file or directory",
                                      (folder / "a.so").string() + ": is not a shared object",
                                      (folder / "b.so").string() + ": is not a shared object"}));
}

}  // namespace
}  // namespace reticle::registry_test
