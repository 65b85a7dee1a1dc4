// The interface for authors of maskers: a masker is one file that includes this header.
//
//   // Keeps the first `sink_size` keys. StreamingLLM (Xiao et al. 2023). O(1) memory.
//   namespace reticle::maskers {
//   struct SinkConfig { ... };                                     // see config/fields.hpp
//   class Sink final : public Masker { ... };
//   RETICLE_REGISTER_MASKER("sink", Sink, SinkConfig, {.summary = "...", ...});
//   }
//
// The same file is a built-in if it is in maskers/, and a plugin if it is built into a shared object.
#pragma once

#include <concepts>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <typeinfo>
#include <vector>

#include <reticle/core/abi_stamp.hpp>
#include <reticle/core/attention_inputs.hpp>
#include <reticle/core/base/context.hpp>
#include <reticle/core/config/fields.hpp>
#include <reticle/core/mask/mask.hpp>
#include <reticle/core/rule.hpp>

namespace reticle {

class Masker;

/// State of a masker about the sequences of a batch that can follow changes to their keys. truncate(n) forgets the keys
/// from position n on, as if they had never been seen; select(rows) makes sequence i what sequence rows[i] was; a copy
/// lets a sequence continue in two ways. State that cannot follow a change throws CannotFollow.
template <class T>
concept FollowsSequences = std::copy_constructible<T> && requires(T& kept, Index keys, std::span<const Index> rows) {
  kept.truncate(keys);
  kept.select(rows);
};

/// Thrown by truncate and select; `why` completes "masker x cannot follow its sequence: why".
class RETICLE_API CannotFollow : public Error {
 public:
  explicit CannotFollow(const std::string& why) : Error(why) {}
  ~CannotFollow() override;
};

/// The state of one layer's maskers across decode steps: one typed value per masker, owned by the caller and reset with
/// the sequence. Not thread-safe: one sequence is decoded by one caller.
class RETICLE_API LayerState {
 public:
  LayerState() = default;
  LayerState(LayerState&&) noexcept = default;
  LayerState& operator=(LayerState&&) noexcept = default;
  LayerState(const LayerState&) = delete;  // copies are made by fork(), so that their cost shows
  LayerState& operator=(const LayerState&) = delete;
  ~LayerState() = default;

  /// The value of this masker, default-constructed at first use.
  template <class T>
  T& get(const Masker& owner);
  void reset() { values_.clear(); }

  /// See FollowsSequences. ValueError, naming the masker, if its value cannot follow.
  void truncate(Index keys);
  void select(std::span<const Index> rows);
  LayerState fork() const;

 private:
  struct Operations {
    void (*truncate)(void* kept, Index keys);
    void (*select)(void* kept, std::span<const Index> rows);
    std::shared_ptr<void> (*copy)(const void* kept);
  };
  struct Kept {
    std::shared_ptr<void> value;
    const std::type_info* type;
    const Operations* operations;  // null: the type does not follow sequences
    std::string masker;
  };
  template <class T>
  static const Operations* operations_of();
  static std::string name_of(const Masker& owner);
  [[noreturn]] static void refuse(const Kept& kept, const std::string& why);

  std::map<std::uint64_t, Kept> values_;  // by Masker::id
};

/// One selection rule. Immutable: select may be called from many threads.
class RETICLE_API Masker {
 public:
  Masker();
  Masker(const Masker&) = delete;
  Masker& operator=(const Masker&) = delete;
  virtual ~Masker();

  /// The keys that this masker adds, as a mask of the inputs' shape. `previous` is what the maskers before it chose:
  /// the pipeline merges the result into it, so a masker cannot lose what came before. By default the keys that its
  /// rules choose (core/ops/select_by_rules.hpp); Error if it has no rules.
  virtual Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& state,
                      const Context& context) const;

  /// Called for every prefill before anything is selected, for the maskers of the generation stage too: eviction
  /// maskers decide here which of the prompt's keys to keep. Does nothing by default.
  virtual void observe(const AttentionInputs& prefill, LayerState& state, const Context& context) const;

  /// The selection from `keys` keys at a layer as rules, applied one after another, which can be executed where the
  /// tensors lie, on the CPU or on a GPU. The pipeline sets Rule::seed. Empty by default: the masker then overrides
  /// select(), which chooses on the CPU.
  virtual std::vector<Rule> rules(Index keys, int layer) const;

  /// The number of a prompt's last queries that observe() uses; 0: it uses none. A prompt that comes in parts is
  /// refused if its last part has fewer.
  virtual Index observed_queries() const;
  /// Whether the selection for a query depends only on the query and on the keys up to its position, so that a prompt
  /// may come in parts. False by default: such prompts are refused.
  virtual bool selects_by_query() const;

  /// Whether a key that is not chosen for one query of the generation is neither chosen nor read for any later one, so
  /// that a cache may evict it. False by default.
  virtual bool forgets() const;
  /// The keys so far that it may choose or read for queries from position `first` on, as a mask of inputs.one_query().
  /// All of them by default; called only if forgets() is true.
  virtual Mask lasting(const AttentionInputs& inputs, Index first, LayerState& state, const Context& context) const;

  /// Whether it draws keys at random and gives each the probability p of being drawn. Two such maskers at one head
  /// would draw one after the other, so that neither p is that of their union; a pipeline refuses them. False by
  /// default.
  virtual bool samples() const;

  /// Unique in the process and never reused; the key of this masker's value in LayerState.
  std::uint64_t id() const { return id_; }
  /// The masker's type in configs; "?" before the registry has made it.
  const std::string& type() const { return type_; }

 private:
  friend struct MaskerType;
  std::uint64_t id_;
  std::string type_ = "?";
};

template <class T>
const LayerState::Operations* LayerState::operations_of() {
  if constexpr (FollowsSequences<T>) {
    static constexpr Operations kOperations{
        [](void* kept, Index keys) { static_cast<T*>(kept)->truncate(keys); },
        [](void* kept, std::span<const Index> rows) { static_cast<T*>(kept)->select(rows); },
        [](const void* kept) -> std::shared_ptr<void> { return std::make_shared<T>(*static_cast<const T*>(kept)); }};
    return &kOperations;
  } else {
    return nullptr;
  }
}

template <class T>
T& LayerState::get(const Masker& owner) {
  Kept& kept = values_[owner.id()];
  if (kept.value == nullptr) kept = {std::make_shared<T>(), &typeid(T), operations_of<T>(), name_of(owner)};
  if (*kept.type != typeid(T)) throw Error("masker \"" + kept.masker + "\": keeps values of two types at one layer");
  return *static_cast<T*>(kept.value.get());
}

/// What `reticle describe` and the docs say about a masker.
struct MaskerDocs {
  std::string_view summary;   // one sentence
  std::string_view source;    // paper or system
  std::string_view rule;      // what it selects, as a formula or a sentence
  std::string_view cost;      // time and memory
  std::string_view extras{};  // extra tensors that it requires: names and shapes
  std::string_view color{};   // "#rrggbb" in pictures; empty: the next free color
};

// --- registration --------------------------------------------------------------------------------------------------

/// Makes, reads and describes the config of one masker, without knowing its type.
struct MaskerFactory {
  const FieldType* config_type;
  std::function<std::shared_ptr<void>()> default_config;
  std::function<std::unique_ptr<Masker>(const void* config)> make;
};

/// Whether a masker overrides select() or rules().
template <class M>
concept SaysWhatItKeeps = !requires {
  requires std::same_as<decltype(&M::select), decltype(&Masker::select)>;
  requires std::same_as<decltype(&M::rules), decltype(&Masker::rules)>;
};

template <class M, class Config>
  requires std::derived_from<M, Masker> && SaysWhatItKeeps<M> && std::constructible_from<M, const Config&>
MaskerFactory masker_factory() {
  return {type_of<Config>(), []() -> std::shared_ptr<void> { return std::make_shared<Config>(); },
          [](const void* config) -> std::unique_ptr<Masker> {
            return std::make_unique<M>(*static_cast<const Config*>(config));
          }};
}

/// Raise when a virtual function of Masker or the meaning of a struct in plugin_layout changes without changing its
/// layout.
inline constexpr std::uint64_t kInterface = 16;

consteval std::uint64_t plugin_layout() {
  std::uint64_t hash = kInterface;
  for (const std::uint64_t part :
       {sizeof(Mask), sizeof(MaskShape), sizeof(Run), sizeof(Selection), sizeof(TensorView), sizeof(AttentionInputs),
        sizeof(NamedTensor), sizeof(Context), sizeof(LayerState), sizeof(Masker), sizeof(Rule), sizeof(FieldType),
        sizeof(Field), sizeof(Scalar), sizeof(Size), sizeof(MaskerDocs), offsetof(AttentionInputs, scaling),
        offsetof(AttentionInputs, extras), offsetof(AttentionInputs, wanted_heads)})
    hash = derive_seed(hash ^ part, 1);
  return hash;
}

/// The stamp of what is compiled here.
consteval AbiStamp abi_stamp() { return abi_stamp(plugin_layout()); }

/// Registers a masker on construction. Problems are stored and thrown at the first use of the registry, or cause the
/// plugin to be refused.
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
