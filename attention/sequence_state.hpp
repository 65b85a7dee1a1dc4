// The state of a sequence between calls: the maskers' state, and a record of what the calls attended to.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include <reticle/core/mask/mask.hpp>
#include <reticle/core/masker.hpp>

namespace reticle {

namespace cuda {
class DeviceSequence;
}

/// The record of what one stage of one sequence attended to, call by call; a call is one layer at one step.
struct RETICLE_API StageRecord {
  struct SavedMask {
    int layer;
    Mask mask;
  };

  /// For each call, 1 - entries / causally visible positions: nano-sparse-attention's sparsity ratio.
  std::vector<double> sparsity;
  double entries = 0, visible = 0;  // sums over the calls
  std::vector<SavedMask> masks;     // with Recording::masks

  /// Adds a call that attended to `entries` of `visible` positions.
  void add(double entries_of_call, double visible_to_it);
  /// nano-sparse-attention's figure: the unweighted mean of `sparsity` over the calls; 0 without calls.
  double mean_sparsity() const;
  /// Total entries over total visible positions, to which the work is proportional; 1 without calls.
  double density() const;
  /// Appends the calls of another record.
  void merge(const StageRecord& other);
};

/// What each call records. `figures` costs a count of the mask's entries; if the keys are selected on a GPU by scores,
/// the count waits for the GPU. `masks` also keeps every mask.
enum class Recording : std::uint8_t { none, figures, masks };

/// The state of every layer's maskers for one sequence. Only one call at a time may use it; a concurrent call, from
/// another thread or from a masker's code, throws ValueError.
class RETICLE_API SequenceState {
 public:
  /// Held by a call for as long as it uses the state.
  class RETICLE_API Lease {
   public:
    explicit Lease(const SequenceState& state);
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease();

   private:
    std::atomic<bool>& leased_;
  };

  SequenceState() = default;
  explicit SequenceState(Recording recording) : recording_(recording) {}
  SequenceState(SequenceState&&) noexcept = default;
  SequenceState& operator=(SequenceState&&) noexcept = default;
  SequenceState(const SequenceState&) = delete;  // see fork
  SequenceState& operator=(const SequenceState&) = delete;
  ~SequenceState() = default;

  LayerState& layer(int index) { return layers_[index]; }
  /// The part of the state in GPU memory; created at first use.
  cuda::DeviceSequence& on_gpu();
  void reset();

  /// Sets what the calls from now on record.
  void record(Recording recording) { recording_ = recording; }
  Recording recording() const { return recording_; }
  const StageRecord& recorded(Stage stage) const { return records_[static_cast<std::size_t>(stage)]; }
  StageRecord& recorded(Stage stage) { return records_[static_cast<std::size_t>(stage)]; }

  /// Forgets the keys from position `keys` on, after a cache was cropped. ValueError, naming the masker, if its state
  /// cannot be truncated, for example because it has chosen keys to keep from a longer prompt; the state is then
  /// unspecified. The record stays.
  void truncate(Index keys);
  /// Sequence i of the batch takes the state of sequence rows[i], after beams were reordered, repeated or dropped.
  /// ValueError for negative rows, or if a masker's state cannot be reordered.
  void select(std::span<const Index> rows);
  /// A copy with an empty record, so that the sequence can continue in two ways.
  SequenceState fork() const;

 private:
  /// An atomic flag that moves as "not leased", so that SequenceState is movable.
  struct Flag {
    std::atomic<bool> value{false};
    Flag() = default;
    Flag(Flag&&) noexcept {}
    Flag& operator=(Flag&&) noexcept { return *this; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;
    ~Flag() = default;
  };
  std::map<int, LayerState> layers_;
  std::shared_ptr<cuda::DeviceSequence> on_gpu_;
  mutable Flag leased_;
  Recording recording_ = Recording::none;
  std::array<StageRecord, 2> records_;  // indexed by Stage
};

}  // namespace reticle
