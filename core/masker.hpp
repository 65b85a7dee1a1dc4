// The door for authors of maskers: a masker is one file that includes this header.
//
//   // Keeps the first `sink_size` keys. StreamingLLM (Xiao et al. 2023). O(1) memory.
//   namespace reticle::maskers {
//   struct SinkConfig { ... };                                     // see config/fields.hpp
//   class Sink final : public Masker { ... };
//   RETICLE_REGISTER_MASKER("sink", Sink, SinkConfig, {.summary = "...", ...});
//   }
//
// The same file is a built-in when it stands in maskers/, and a plugin when it is built into a shared object.
#pragma once

#include <any>
#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/config/fields.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/rule.hpp>
#include <reticle/version.hpp>

namespace reticle {

class Masker;

/// What the maskers of one layer keep across decode steps: typed, one value per masker, owned by the caller and reset
/// with the sequence. Not thread-safe: one sequence is decoded by one caller.
class RETICLE_API LayerState {
 public:
  /// The value of this masker, default-made at first use.
  template <class T>
  T& get(const Masker& owner);
  void reset() { values_.clear(); }

 private:
  std::map<std::uint64_t, std::any> values_;  // by Masker::id
};

/// One selection rule. Immutable: select may be called from many threads.
class RETICLE_API Masker {
 public:
  Masker();
  Masker(const Masker&) = delete;
  Masker& operator=(const Masker&) = delete;
  virtual ~Masker();

  /// The keys that this masker adds, as a mask of the inputs' shape. `previous` is what the maskers before it chose:
  /// the pipeline merges the result into it, so a masker cannot lose what came before.
  virtual Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
                      const Context& context) const = 0;

  /// Shown every prefill before anything is selected, the maskers of the generation stage too: what rules that compress
  /// the prompt's keys decide by. Keeps nothing by default.
  virtual void observe(const AttentionInputs& prefill, LayerState& state, const Context& context) const;

  /// What select chooses from `keys` keys at a layer, if rules can say it, one after another: then it can also be
  /// chosen where the tensors lie, on a GPU. Without an attention mask; the seed is the pipeline's to fill in. None by
  /// default.
  virtual std::vector<Rule> rules(Index keys, int layer) const;

  /// Unique in the process, and never given again: what LayerState knows a masker by.
  std::uint64_t id() const { return id_; }

 private:
  std::uint64_t id_;
};

template <class T>
T& LayerState::get(const Masker& owner) {
  std::any& value = values_[owner.id()];
  if (!value.has_value()) value = std::make_shared<T>();
  return **std::any_cast<std::shared_ptr<T>>(&value);
}

/// What `reticle describe` and the docs say about a masker.
struct MaskerDocs {
  std::string_view summary;   // one sentence
  std::string_view source;    // paper or system
  std::string_view rule;      // what it selects, as a formula or a sentence
  std::string_view cost;      // time and memory
  std::string_view extras{};  // extra tensors that it cannot do without: names and shapes
};

// --- registration and the plugin ABI --------------------------------------------------------------------------------

/// Says what a shared object was built against. Plain data: the loader reads it out of the file before any code runs.
struct AbiStamp {
  char magic[16];
  char version[16];
  char compiler[48];
  std::uint64_t layout;
};

namespace abi_detail {

/// Raise when a virtual function of Masker or the meaning of a struct below changes without changing its layout.
inline constexpr std::uint64_t kInterface = 8;

consteval std::uint64_t layout_hash() {
  std::uint64_t hash = kInterface;
  for (const std::uint64_t part :
       {sizeof(Mask), sizeof(MaskShape), sizeof(Run), sizeof(Selection), sizeof(TensorView), sizeof(AttentionInputs),
        sizeof(NamedTensor), sizeof(Context), sizeof(LayerState), sizeof(Masker), sizeof(Rule), sizeof(FieldType),
        sizeof(Field), sizeof(Scalar), sizeof(Size), sizeof(MaskerDocs), offsetof(AttentionInputs, scaling),
        offsetof(AttentionInputs, extras), offsetof(AttentionInputs, wanted_heads)})
    hash = derive_seed(hash ^ part, 1);
  return hash;
}

template <std::size_t N>
consteval void put(char (&to)[N], std::string_view text, std::size_t& at) {
  for (const char c : text) {
    if (at + 1 < N) to[at++] = c;
  }
}

template <std::size_t N>
consteval void put_number(char (&to)[N], long number, std::size_t& at) {
  if (number >= 10) put_number(to, number / 10, at);
  const char digit[] = {static_cast<char>('0' + number % 10)};
  put(to, {digit, 1}, at);
}

}  // namespace abi_detail

consteval AbiStamp abi_stamp() {
  AbiStamp stamp{};
  std::size_t at = 0;
  abi_detail::put(stamp.magic, "reticle-abi:v1", at);
  at = 0;
  abi_detail::put(stamp.version, RETICLE_VERSION, at);
  at = 0;
#if defined(__clang__)
  abi_detail::put(stamp.compiler, "clang ", at);
  abi_detail::put_number(stamp.compiler, __clang_major__, at);
#else
  abi_detail::put(stamp.compiler, "gcc ", at);
  abi_detail::put_number(stamp.compiler, __GNUC__, at);
#endif
#if defined(_LIBCPP_VERSION)
  abi_detail::put(stamp.compiler, ", libc++", at);
#else
  abi_detail::put(stamp.compiler, ", libstdc++ cxx11-abi ", at);
  abi_detail::put_number(stamp.compiler, _GLIBCXX_USE_CXX11_ABI, at);
#endif
  stamp.layout = abi_detail::layout_hash();
  return stamp;
}

/// Makes, reads and describes the config of one masker, without knowing its type.
struct MaskerFactory {
  const FieldType* config_type;
  std::function<std::shared_ptr<void>()> default_config;
  std::function<std::unique_ptr<const Masker>(const void* config)> make;
};

template <class M, class Config>
  requires std::derived_from<M, Masker> && std::constructible_from<M, const Config&>
MaskerFactory masker_factory() {
  return {type_of<Config>(), []() -> std::shared_ptr<void> { return std::make_shared<Config>(); },
          [](const void* config) -> std::unique_ptr<const Masker> {
            return std::make_unique<M>(*static_cast<const Config*>(config));
          }};
}

/// Its constructor registers; problems are kept and thrown at the first use of the registry, or refuse the plugin.
class RETICLE_API MaskerRegistration {
 public:
  MaskerRegistration(std::string_view name, MaskerFactory factory, const MaskerDocs& docs,
                     const AbiStamp& stamp) noexcept;
};

/// RETICLE_REGISTER_MASKER("name", Class, Config, {.summary = ..., .source = ..., .rule = ..., .cost = ...})
/// in a named namespace. The stamp is passed by reference so that no linker drops it.
#define RETICLE_REGISTER_MASKER(name, Class, Config, ...)                                                   \
  static constexpr ::reticle::AbiStamp kAbiStampOf##Class = ::reticle::abi_stamp();                         \
  static const ::reticle::MaskerRegistration kRegistrationOf##Class {                                       \
    name, ::reticle::masker_factory<Class, Config>(), ::reticle::MaskerDocs __VA_ARGS__, kAbiStampOf##Class \
  }

}  // namespace reticle
