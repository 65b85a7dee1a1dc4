// Shell completion scripts, generated from the parser's definitions so that they cannot become outdated.
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/core.h>

#include <reticle/core/registry.hpp>

#include "options.hpp"

namespace reticle::tools {
namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  }
  return flags;
}

std::vector<std::string> subcommands_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) names.push_back(command->get_name());
  return names;
}

std::string maskers() {
  std::vector<std::string> names;
  for (const MaskerType* type : Registry::global().list()) names.push_back(type->name);
  return joined(names);
}

/// zsh reads the same script through bashcompinit.
void print_bash(const CLI::App& app) {
  fmt::print(R"(_reticle() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{} --help --version" -- "$current"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
)",
             joined(subcommands_of(app)));
  for (const CLI::App* command : app.get_subcommands({}))
    fmt::print("    {}) words=\"{}\" ;;\n", command->get_name(), joined(flags_of(*command)));
  fmt::print(R"(  esac
  case ${{COMP_WORDS[1]}}:$current in
    *:-*) COMPREPLY=($(compgen -W "$words" -- "$current")) ;;
    describe:*|schema:*) COMPREPLY=($(compgen -W "{}" -- "$current")) ;;
    *) COMPREPLY=($(compgen -f -- "$current")) ;;
  esac
}}
complete -o filenames -F _reticle reticle
)",
             maskers());
}

void print_fish(const CLI::App& app) {
  const auto quoted = [](std::string text) {
    for (std::size_t at = 0; (at = text.find_first_of("'\\", at)) != text.npos; at += 2) text.insert(at, "\\");
    return "'" + text + "'";
  };
  for (const CLI::App* command : app.get_subcommands({})) {
    fmt::print("complete -c reticle -n __fish_use_subcommand -f -a {} -d {}\n", command->get_name(),
               quoted(command->get_description()));
    for (const CLI::Option* option : command->get_options()) {
      for (const std::string& name : option->get_lnames()) {
        fmt::print("complete -c reticle -n '__fish_seen_subcommand_from {}' -l {}{} -d {}\n", command->get_name(), name,
                   option->get_items_expected_max() > 0 ? " -r" : "", quoted(option->get_description()));
      }
    }
  }
  fmt::print("complete -c reticle -n '__fish_seen_subcommand_from describe schema' -f -a '{}'\n", maskers());
}

}  // namespace

int completion(const CLI::App& app, const std::string& shell) {
  if (shell == "zsh") fmt::print("autoload -U +X bashcompinit && bashcompinit\n");
  if (shell == "fish") {
    print_fish(app);
  } else {
    print_bash(app);
  }
  return 0;
}

}  // namespace reticle::tools
