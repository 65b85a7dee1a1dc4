// What a sequence leaves behind from call to call: what maskers keep of it, and a record of what its calls attended to.
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

/// What one stage of one sequence attended to, call by call (a call is a layer at a step).
struct RETICLE_API StageRecord {
  struct SavedMask {
    int layer;
    Mask mask;
  };

  /// 1 - entries / positions that causality leaves, of each call: nano-sparse-attention's sparsity ratio.
  std::vector<double> sparsity;
  double entries = 0, visible = 0;  // sums over the calls
  std::vector<SavedMask> masks;     // if asked for

  /// Adds a call that attended to `entries` of `visible` positions.
  void add(double entries_of_call, double visible_to_it);
  /// nano-sparse-attention's figure: the mean over the calls, each counting alike; 0 without calls.
  double mean_sparsity() const;
  /// Entries over visible positions of all calls together: what the work is proportional to; 1 without calls.
  double density() const;
  /// Adds another's calls to these.
  void merge(const StageRecord& other);
};

/// What is recorded of each call. Figures cost a count of the mask's entries, for which a choice made on a GPU has to
/// be waited for where it depends on scores; masks are kept whole.
enum class Recording : std::uint8_t { none, figures, masks };

/// What the maskers of every layer keep for one sequence. One call at a time works on it: another one that comes
/// meanwhile, from a second thread or from a masker's own code, gets a ValueError.
class RETICLE_API SequenceState {
 public:
  /// Held by a call for as long as it works on a state.
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
  /// What is kept where the tensors lie on a GPU; made at first use.
  cuda::DeviceSequence& on_gpu();
  void reset();

  /// Of the calls from now on.
  void record(Recording recording) { recording_ = recording; }
  Recording recording() const { return recording_; }
  const StageRecord& recorded(Stage stage) const { return records_[static_cast<std::size_t>(stage)]; }
  StageRecord& recorded(Stage stage) { return records_[static_cast<std::size_t>(stage)]; }

  /// As if keys from position `keys` on had never been seen: the cache was cropped. ValueError, naming the masker,
  /// where what it keeps cannot follow (it chose what to keep from a prompt that is longer); what was kept is then
  /// unspecified. The record stays.
  void truncate(Index keys);
  /// Sequence i of the batch becomes what sequence rows[i] was: beams were reordered, repeated or dropped. ValueError
  /// for rows that are negative, or likewise.
  void select(std::span<const Index> rows);
  /// A copy, with an empty record: the sequences go on in two ways.
  SequenceState fork() const;

 private:
  /// A state that was moved is not leased.
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
  std::array<StageRecord, 2> records_;  // by Stage
};

}  // namespace reticle
