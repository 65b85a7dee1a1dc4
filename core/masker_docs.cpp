#include <memory>
#include <span>
#include <sstream>

#include <nlohmann/json.hpp>

#include <reticle/core/config/config.hpp>
#include <reticle/core/masker_docs.hpp>

namespace reticle {

std::string schema_of(const MaskerType& masker) {
  const std::shared_ptr<void> defaults = masker.factory.default_config();
  nlohmann::ordered_json schema = schema_of(*masker.factory.config_type, defaults.get());
  schema["title"] = masker.name;
  schema["description"] = std::string(masker.docs.summary);
  return schema.dump();
}

std::string describe_masker(std::string_view type) {
  const MaskerType& masker = Registry::global().at(type);
  std::ostringstream text;
  text << "## " << masker.name << "\n\n"
       << masker.docs.summary << "\n\n- Source: " << masker.docs.source << "\n- Selects: " << masker.docs.rule
       << "\n- Cost: " << masker.docs.cost;
  if (!masker.docs.extras.empty()) text << "\n- Needs: " << masker.docs.extras;
  text << "\n- Origin: " << masker.origin << "\n";
  const std::span<const Field> fields = masker.factory.config_type->fields();
  if (fields.empty()) {
    text << "\nNo parameters.\n";
    return text.str();
  }
  text << "\n| parameter | type | default | meaning |\n|---|---|---|---|\n";
  const std::shared_ptr<void> defaults = masker.factory.default_config();
  for (const Field& field : fields) {
    text << "| `" << field.name << "` | " << type_name(*field.type) << " | "
         << (field.required ? "required" : "`" + reticle::to_json(*field.type, field.in(defaults.get())).dump() + "`")
         << " | " << field.doc << " |\n";
  }
  return text.str();
}

}  // namespace reticle
