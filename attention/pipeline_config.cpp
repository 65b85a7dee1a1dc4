#include <algorithm>
#include <string>

#include <nlohmann/json.hpp>

#include <reticle/attention/pipeline_config.hpp>
#include <reticle/core/config/config.hpp>
#include <reticle/core/masker_docs.hpp>

namespace reticle {

using Json = nlohmann::ordered_json;

namespace {

constexpr std::string_view kStages[] = {"prefill", "generation"};

/// Moves those members of a JSON object that are fields of `type` into a new object.
Json take_fields(Json& object, const FieldType& type) {
  Json taken = Json::object();
  for (const Field& field : type.fields()) {
    const std::string name(field.name);
    if (!object.contains(name)) continue;
    taken[name] = std::move(object[name]);
    object.erase(name);
  }
  return taken;
}

std::vector<MaskerEntry> maskers_from(const Json& list, const JsonPlace& place) {
  if (!list.is_array()) place.fail(std::string("expected a list of maskers, got ") + list.type_name());
  const FieldType& served_type = *type_of<Served>();
  std::vector<MaskerEntry> entries;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const JsonPlace here = place / i;
    if (!list[i].is_object()) here.fail(std::string("expected an object with a \"type\", got ") + list[i].type_name());
    const auto type = list[i].find("type");
    if (type == list[i].end() || !type->is_string()) here.fail("expected a \"type\" that names a masker");
    const MaskerType* found = nullptr;
    try {
      found = &Registry::global().at(type->get_ref<const std::string&>());
    } catch (const ConfigError& error) {
      (here / "type").fail(error.what());
    }
    Json parameters = list[i];
    parameters.erase("type");
    Served served;
    reticle::from_json(served_type, &served, take_fields(parameters, served_type), here);
    const std::shared_ptr<void> config = found->factory.default_config();
    reticle::from_json(*found->factory.config_type, config.get(), parameters, here);
    entries.push_back({found, config, found->make(config.get()), served});
    if (!entries.back().masker->samples()) continue;
    for (std::size_t j = 0; j < i; ++j) {
      const MaskerEntry& other = entries[j];
      if (other.masker->samples() && other.served.layers.meets(served.layers) && other.served.heads.meets(served.heads))
        here.fail("\"" + found->name + "\" samples keys that \"" + other.type->name + "\", at " + std::to_string(j) +
                  ", has sampled already, so that their p would hold for neither; expected one sampler for a head");
    }
  }
  return entries;
}

Json maskers_to(const std::vector<MaskerEntry>& entries) {
  Json list = Json::array();
  for (const MaskerEntry& entry : entries) {
    Json masker = {{"type", entry.type->name}};
    masker.update(reticle::to_json(*entry.type->factory.config_type, entry.config.get()));
    masker.update(reticle::to_json(*type_of<Served>(), &entry.served));
    list.push_back(std::move(masker));
  }
  return list;
}

}  // namespace

PipelineConfig PipelineConfig::from_json(std::string_view text, const std::filesystem::path& directory,
                                         Plugins plugins) {
  const JsonPlace place{"", directory};
  Json document = parse_json(text);
  const FieldType& options_type = *type_of<PipelineOptions>();
  std::vector<std::string_view> known{"maskers", kStages[0], kStages[1], "$schema"};
  for (const Field& field : options_type.fields()) known.push_back(field.name);
  if (document.is_array()) place.fail(R"(is a list; expected an object, with the maskers as {"maskers": [...]})");
  require_keys(document, place, known);

  PipelineConfig config;
  // No directory here, so plugin paths stay as written: plugins are searched for in several folders, not only the
  // config's.
  reticle::from_json(options_type, &config.options, take_fields(document, options_type), {place.pointer, ""});
  if (plugins == Plugins::refuse && !config.options.plugins.empty())
    (place / "plugins")
        .fail("names " + config.options.plugins.front().string() +
              ", whose code would run; plugins are refused here (reticle check --plugins and, in Python, "
              "plugins=True load them)");
  for (const std::filesystem::path& plugin : config.options.plugins)
    Registry::global().load_plugin(find_plugin(plugin, directory));

  if (document.contains("maskers")) {
    for (const std::string_view stage : kStages) {
      if (document.contains(stage)) (place / stage).fail("a config has either \"maskers\" or stages, not both");
    }
    config.stages[0] = config.stages[1] = maskers_from(document["maskers"], place / "maskers");
  } else {
    config.by_stage = true;
    for (std::size_t stage = 0; stage < 2; ++stage) {
      const std::string name(kStages[stage]);
      if (const std::string other(kStages[1 - stage]); !document.contains(name) && document.contains(other))
        place.fail("\"" + name + "\" is missing beside \"" + other + R"("; dense attention is {"maskers": []})");
      if (!document.contains(name))
        place.fail(R"("maskers" is missing (or both "prefill" and "generation", each {"maskers": [...]}))");
      const std::string_view only[] = {"maskers"};
      require_keys(document[name], place / name, only);
      if (!document[name].contains("maskers")) (place / name).fail("\"maskers\" is missing");
      config.stages[stage] = maskers_from(document[name]["maskers"], place / name / "maskers");
    }
  }
  return config;
}

PipelineConfig PipelineConfig::by_stage_of(const PipelineConfig& prefill, const PipelineConfig& generation) {
  const PipelineOptions &first = prefill.options, &second = generation.options;
  if (first.seed != second.seed || first.merge != second.merge)
    throw ConfigError("a prefill and a generation config that go together need the same \"seed\" and \"merge\"");
  PipelineConfig config = prefill;
  config.by_stage = true;
  config.options.causal = first.causal || second.causal;
  for (const std::filesystem::path& plugin : second.plugins) {
    if (std::find(first.plugins.begin(), first.plugins.end(), plugin) == first.plugins.end())
      config.options.plugins.push_back(plugin);
  }
  config.stages[1] = generation.stages[1];
  return config;
}

std::string PipelineConfig::to_json() const {
  Json document = reticle::to_json(*type_of<PipelineOptions>(), &options);
  if (!by_stage) {
    document["maskers"] = maskers_to(stages[0]);
  } else {
    for (std::size_t stage = 0; stage < 2; ++stage)
      document[std::string(kStages[stage])] = {{"maskers", maskers_to(stages[stage])}};
  }
  return document.dump(2);
}

std::string schema(std::string_view type) {
  const Served everywhere;
  const auto masker_schema = [&](const MaskerType& masker) {
    Json schema = Json::parse(schema_of(masker)), placement = schema_of(*type_of<Served>(), &everywhere);
    schema["properties"]["type"]["const"] = masker.name;
    schema["properties"].update(placement["properties"]);
    Json required = Json::array({"type"});
    if (schema.contains("required"))
      required.insert(required.end(), schema["required"].begin(), schema["required"].end());
    schema["required"] = std::move(required);
    return schema;
  };
  Json document = {{"$schema", "https://json-schema.org/draft/2020-12/schema"}};
  if (!type.empty()) {
    document.update(masker_schema(Registry::global().at(type)));
    return document.dump(2);
  }
  const PipelineOptions defaults;
  document.update(schema_of(*type_of<PipelineOptions>(), &defaults));
  document["title"] = "reticle config";
  Json any = Json::array();
  for (const MaskerType* masker : Registry::global().list()) any.push_back(masker_schema(*masker));
  Json items = {{"anyOf", std::move(any)}};
  Json list = {{"type", "array"}, {"items", std::move(items)}};
  document["$defs"]["maskers"] = std::move(list);
  const Json reference = {{"$ref", "#/$defs/maskers"}};
  Json stage = {{"type", "object"}, {"required", Json::array({"maskers"})}, {"additionalProperties", false}};
  stage["properties"]["maskers"] = reference;
  document["properties"]["maskers"] = reference;
  for (const std::string_view name : kStages) document["properties"][std::string(name)] = stage;
  document["properties"]["$schema"]["type"] = "string";
  Json flat, staged;
  flat["required"] = Json::array({"maskers"});
  staged["required"] = Json::array({"prefill", "generation"});
  document["oneOf"] = Json::array({std::move(flat), std::move(staged)});
  return document.dump(2);
}

}  // namespace reticle
