// Samples keys by locality-sensitive hashing: a key is kept when it shares all lsh_k sign bits with the query in one of
// lsh_l tables, and p is the probability of that, so that attention over the sample is an importance-weighted estimate.
// MagicPIG (Chen et al. 2024): the defaults are sparse-attention-hub's, with the simple asymmetric transform of
// Neyshabur and Srebro (2015) and the largest norm taken per sequence; min_collisions 2, lift and center_query false
// are the authors' own.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/lsh.hpp>
#include <reticle/core/ops/select.hpp>

namespace reticle::maskers {

enum class SignPacking : std::uint8_t { int64, float32 };

/// A code of each is kept with every key.
constexpr Index kMaxTables = 4096;

struct MagicPigConfig {
  Index lsh_l = 75;
  Index lsh_k = 8;
  bool center = true;
  SignPacking packing = SignPacking::int64;
  std::uint64_t seed = 42;
  Index min_collisions = 1;
  bool lift = true;
  bool center_query = true;
  Index mean_skips_first = 0;
  Index mean_skips_last = 0;

  static constexpr const char* docs[] = {
      "number of hash tables",
      "sign bits per table, at most 64",
      "subtract the mean key, as the first keys of a sequence have it",
      "how sparse-attention-hub holds signs; bits are packed either way",
      "random seed of the projections, varied by layer",
      "tables, 1 or 2, that a key must share with the query",
      "lift keys by one dimension onto a sphere, so that the angle follows q.k; false: the angle with the key itself",
      "subtract the mean key from queries, too",
      "first keys that the mean leaves out: those that are always attended",
      "last keys, of the first call, that the mean leaves out"};
  void validate() const {
    require(lsh_l > 0 && lsh_l <= kMaxTables, "lsh_l", "must be in [1, 4096]");
    require(lsh_k > 0 && lsh_k <= 64, "lsh_k", "must be in [1, 64]");
    require(min_collisions == 1 || (min_collisions == 2 && lsh_l > 1), "min_collisions",
            "must be 1, or 2 with lsh_l > 1");
    require(mean_skips_first >= 0, "mean_skips_first", "must be >= 0");
    require(mean_skips_last >= 0, "mean_skips_last", "must be >= 0");
  }
};

/// What is kept of the keys seen: their codes, the mean key, and per sequence the largest norm.
struct MagicPigState {
  std::vector<float> projections;                // per KV head, or for all of them: (L * K, d + lifted)
  std::vector<std::vector<float>> means;         // per (batch, KV head): (d)
  std::vector<std::vector<std::uint8_t>> codes;  // per (batch, KV head): (keys, L, bytes per code)
  std::vector<float> largest_norm;               // per batch
  Index head_dim = 0, kv_heads = 0;
  SeenKeys seen;
  /// What the largest norms were when so many keys had been seen: codes of the keys up to there are of them.
  struct Norms {
    Index keys;
    std::vector<float> largest;
    bool single;  // the last update brought one key
  };
  std::vector<Norms> history;
  Index first_query = 0;  // of the first call: cut before it, there was none
  Index resume = 0;       // keys that are taken in first, on their own: those left by truncate that come again

  void truncate(Index keys) {
    if (keys >= seen.count()) return;
    // Keys that came one by one under the same norms can be parted anywhere.
    Norms last{0, {}, false};
    while (!history.empty() && history.back().keys > keys) {
      last = std::move(history.back());
      history.pop_back();
    }
    if (last.single && !history.empty() && history.back().largest == last.largest) history.back().keys = keys;
    resume = keys;
    if (history.empty()) {
      const bool called = keys > first_query;
      *this = MagicPigState();
      resume = called ? keys : 0;
      return;
    }
    largest_norm = history.back().largest;
    seen.truncate(history.back().keys);
  }
  void select(std::span<const Index> rows) {
    const Index batch = seen.batch();
    select_rows(means, rows, batch);
    select_rows(codes, rows, batch);
    select_rows(largest_norm, rows, batch);
    for (Norms& norms : history) select_rows(norms.largest, rows, batch);
    seen.select(rows);
  }
};

class MagicPig final : public Masker {
 public:
  explicit MagicPig(const MagicPigConfig& config)
      : recipe_{config.lsh_l,           config.lsh_k,        config.min_collisions,
                config.center,          config.center_query, config.mean_skips_first,
                config.mean_skips_last, config.lift,         config.seed},
        code_bytes_((config.lsh_k + 7) / 8) {}

  Mask select(const AttentionInputs& inputs, const Mask& previous, LayerState& layer_state,
              const Context& context) const override {
    MagicPigState& state = layer_state.get<MagicPigState>(*this);
    update(inputs, state, context);
    return Mask::from_selections(
        inputs.shape(), [&](RowId row, Selection& selection) { sample(inputs, previous, state, row, selection); },
        context);
  }

  bool samples() const override { return true; }
  std::vector<Rule> rules(Index, int) const override {
    Rule rule{Rule::Kind::colliding};
    rule.lsh = &recipe_;
    return {rule};
  }

 private:
  // --- keys ----------------------------------------------------------------------------------------------------------

  void update(const AttentionInputs& inputs, MagicPigState& state, const Context& context) const {
    if (const Index resume = std::exchange(state.resume, 0);
        resume > state.seen.count() && resume < inputs.keys_length()) {
      AttentionInputs before = inputs;
      before.keys = inputs.keys.slice(2, 0, resume);
      const bool first = state.history.empty();
      update(before, state, context);
      if (first) state.first_query = 0;  // of a prompt
    }
    const Index heads = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim(), count = inputs.keys_length();
    state.seen.continue_with(inputs);
    if (state.projections.empty()) {
      state.projections = projections(inputs);
      state.means.assign(static_cast<std::size_t>(heads), std::vector<float>(static_cast<std::size_t>(d), 0.0f));
      state.codes.resize(static_cast<std::size_t>(heads));
      state.largest_norm.assign(static_cast<std::size_t>(inputs.batch()), 0.0f);
      state.head_dim = d;
      state.kv_heads = inputs.kv_heads();
      state.first_query = inputs.position(0);
    }
    if (count == state.seen.count()) return;
    if (recipe_.center && state.seen.count() == 0) set_means(inputs, state);
    // Norms first: codes depend on the largest of the sequence. Codes of older keys keep the largest norm of their
    // time.
    for (Index head = 0; head < heads; ++head) {
      float& largest = state.largest_norm[static_cast<std::size_t>(head / state.kv_heads)];
      const ReachableKeys reachable(inputs, head / state.kv_heads, head % state.kv_heads);
      for_new_keys(inputs, state, head, [&](Index position, std::span<const float> key) {
        if (reachable(position)) largest = std::max(largest, norm(key));
      });
    }
    context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
      for (Index head = begin; head < end; ++head) {
        std::vector<std::uint8_t>& codes = state.codes[static_cast<std::size_t>(head)];
        codes.resize(
            static_cast<std::size_t>(state.seen.count() * code_stride()));  // an update that was stopped starts again
        const float largest = state.largest_norm[static_cast<std::size_t>(head / state.kv_heads)];
        std::vector<float> extended(static_cast<std::size_t>(recipe_.width(d)));
        for_new_keys(inputs, state, head, [&](Index, std::span<const float> key) {
          // [k, sqrt(M^2 - |k|^2)], on the sphere of radius M; signs do not see the radius.
          std::copy(key.begin(), key.end(), extended.begin());
          const float length = norm(key);
          if (recipe_.lift) extended.back() = std::sqrt(std::max(0.0f, largest * largest - length * length));
          codes.resize(codes.size() + static_cast<std::size_t>(code_stride()));
          write_codes(state, head % state.kv_heads, extended, codes.data() + codes.size() - code_stride());
        });
      }
    });
    const bool single = count == state.seen.count() + 1;
    if (single && !state.history.empty() && state.history.back().single &&
        state.history.back().largest == state.largest_norm) {
      state.history.back().keys = count;
    } else {
      state.history.push_back({count, state.largest_norm, single});
    }
    state.seen.finish(inputs);
  }

  /// Calls use(position, key) with each centred key that the state has not seen.
  template <class Use>
  void for_new_keys(const AttentionInputs& inputs, const MagicPigState& state, Index head, Use&& use) const {
    const TensorView keys = head_matrix(inputs.keys, head / state.kv_heads, head % state.kv_heads);
    std::vector<float> key(static_cast<std::size_t>(state.head_dim));
    for (Index k = state.seen.count(); k < inputs.keys_length(); ++k) {
      load_row(keys, k, 1, key);
      center(state.means[static_cast<std::size_t>(head)], key);
      use(k, std::span<const float>(key));
    }
  }

  void set_means(const AttentionInputs& inputs, MagicPigState& state) const {
    const Index first = std::min(recipe_.mean_skips_first, inputs.keys_length());
    const Index end = std::max(first, inputs.keys_length() - recipe_.mean_skips_last);
    if (first == end) return;
    std::vector<float> key(static_cast<std::size_t>(state.head_dim));
    std::vector<double> sum(key.size());
    for (std::size_t head = 0; head < state.means.size(); ++head) {
      const auto h = static_cast<Index>(head);
      const TensorView keys = head_matrix(inputs.keys, h / state.kv_heads, h % state.kv_heads);
      const ReachableKeys reachable(inputs, h / state.kv_heads, h % state.kv_heads);
      Index count = 0;
      std::fill(sum.begin(), sum.end(), 0.0);
      for (Index k = first; k < end; ++k) {
        if (!reachable(k)) continue;
        ++count;
        load_row(keys, k, 1, key);
        for (std::size_t i = 0; i < key.size(); ++i) sum[i] += static_cast<double>(key[i]);
      }
      for (std::size_t i = 0; i < key.size(); ++i)
        state.means[head][i] = count == 0 ? 0.0f : static_cast<float>(sum[i] / static_cast<double>(count));
    }
  }

  static void center(std::span<const float> mean, std::span<float> vector) {
    for (std::size_t i = 0; i < vector.size(); ++i) vector[i] -= mean[i];
  }

  static float norm(std::span<const float> vector) {
    double squares = 0;
    for (const float x : vector) squares += static_cast<double>(x) * static_cast<double>(x);
    return static_cast<float>(std::sqrt(squares));
  }

  // --- codes ---------------------------------------------------------------------------------------------------------

  Index code_stride() const { return recipe_.tables * code_bytes_; }

  /// (L * K, d + lifted) normal vectors for all heads; those that were recorded, an extra tensor "projection" of
  /// (d + lifted, L * K), or of (KV heads, d + lifted, L * K), F32, replace ours.
  std::vector<float> projections(const AttentionInputs& inputs) const {
    const std::optional<TensorView> recorded = inputs.extra("projection");
    if (!recorded) return recipe_.projections(inputs.head_dim(), inputs.layer);
    const Index rows = recipe_.tables * recipe_.bits, columns = recipe_.width(inputs.head_dim());
    const bool per_head = recorded->rank == 3;
    const int dim = per_head ? 1 : 0;
    if ((recorded->rank != 2 && !per_head) || recorded->dtype != DType::f32 || recorded->size(dim) != columns ||
        recorded->size(dim + 1) != rows || (per_head && recorded->size(0) != inputs.kv_heads()))
      throw ShapeError("projection: " + recorded->describe() + "; expected F32 (" + std::to_string(columns) +
                       ", lsh_l * lsh_k), for all heads or for each of " + std::to_string(inputs.kv_heads()));
    const Index matrices = per_head ? recorded->size(0) : 1;
    std::vector<float> projections(static_cast<std::size_t>(matrices * rows * columns));
    float* to = projections.data();
    for (Index head = 0; head < matrices; ++head) {
      TensorView matrix = *recorded;
      if (per_head) {
        matrix = TensorView(recorded->at<float>(head, 0, 0), DType::f32, {columns, rows});
        matrix.strides = {recorded->stride(1), recorded->stride(2)};
      }
      for (Index row = 0; row < rows; ++row, to += columns)
        load_row(matrix.permute({1, 0}), row, 1, {to, static_cast<std::size_t>(columns)});
    }
    return projections;
  }

  void write_codes(const MagicPigState& state, Index kv_head, std::span<const float> extended,
                   std::uint8_t* codes) const {
    const Index rows = recipe_.tables * recipe_.bits, columns = recipe_.width(state.head_dim);
    const bool per_head = static_cast<Index>(state.projections.size()) > rows * columns;
    const float* matrix = state.projections.data() + (per_head ? kv_head * rows * columns : 0);
    std::vector<float> sides(static_cast<std::size_t>(rows));
    dot(extended.data(), 1, TensorView(matrix, DType::f32, {rows, columns}), sides.data(), 0);
    std::fill(codes, codes + code_stride(), std::uint8_t{0});
    for (Index table = 0; table < recipe_.tables; ++table) {
      for (Index bit = 0; bit < recipe_.bits; ++bit) {
        if (sides[static_cast<std::size_t>(table * recipe_.bits + bit)] > 0)
          codes[table * code_bytes_ + bit / 8] |= static_cast<std::uint8_t>(1 << (bit % 8));
      }
    }
  }

  // --- rows ----------------------------------------------------------------------------------------------------------

  void sample(const AttentionInputs& inputs, const Mask& previous, const MagicPigState& state, RowId row,
              Selection& selection) const {
    const Index kv_head = inputs.kv_head(row.head), d = inputs.head_dim();
    const auto head = static_cast<std::size_t>(row.batch * state.kv_heads + kv_head);
    std::vector<float> query(static_cast<std::size_t>(recipe_.width(d)), 0.0f);  // lifted by 0
    const std::span<float> own(query.data(), static_cast<std::size_t>(d));
    load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, own);
    if (recipe_.center_query) center(state.means[head], own);
    std::vector<std::uint8_t> code(static_cast<std::size_t>(code_stride()));
    write_codes(state, kv_head, query, code.data());

    std::vector<std::int32_t> candidates(static_cast<std::size_t>(inputs.visible_keys(row.query)));
    std::vector<Run> chosen, taken;
    previous.row(row, chosen);
    const std::vector<Run> forbidden = forbidden_keys(inputs, row);
    combine_rows<row_op::Max>(chosen, forbidden, [&](Run run) { taken.push_back(run); });
    const Gaps gaps(taken, inputs.visible_keys(row.query));
    candidates.resize(static_cast<std::size_t>(gaps.size()));
    for (std::size_t i = 0; i < candidates.size(); ++i) candidates[i] = static_cast<std::int32_t>(i);
    gaps.to_positions(candidates);

    const TensorView keys = head_matrix(inputs.keys, row.batch, kv_head);
    std::vector<float> key(static_cast<std::size_t>(d));
    const double query_norm = static_cast<double>(norm(own));
    const double largest = static_cast<double>(state.largest_norm[static_cast<std::size_t>(row.batch)]);
    for (const std::int32_t k : candidates) {
      if (!collide(code.data(), state.codes[head].data() + k * code_stride(), recipe_.tables, code_bytes_,
                   recipe_.min_collisions))
        continue;
      load_row(keys, k, 1, key);
      center(state.means[head], key);
      double product = 0;
      for (std::size_t i = 0; i < key.size(); ++i) product += static_cast<double>(own[i]) * static_cast<double>(key[i]);
      const double key_norm = recipe_.lift ? largest : static_cast<double>(norm(key));
      const double cosine = key_norm > 0 ? product / ((query_norm + 1e-8) * key_norm) : 0;
      const auto p =
          static_cast<float>(collision_probability(cosine, recipe_.bits, recipe_.tables, recipe_.min_collisions));
      if (!(p > 0)) continue;  // exactly opposite: never drawn but by rounding
      selection.indices.push_back(k);
      selection.p.push_back(std::min(p, 1.0f));
    }
  }

  LshRecipe recipe_;
  Index code_bytes_;
};

RETICLE_REGISTER_MASKER(
    "magic_pig", MagicPig, MagicPigConfig,
    {.summary = "Samples keys that collide with the query under locality-sensitive hashing.",
     .source = "MagicPIG (Chen et al. 2024); sparse-attention-hub (MagicPig)",
     .rule =
         "keys not chosen yet that share all lsh_k bits with the query in at least min_collisions of lsh_l tables; p "
         "is the probability of that, for one 1 - (1 - (1 - angle / pi)^lsh_k)^lsh_l",
     .cost = "O(queries * keys * lsh_l) time; a decode step hashes new keys only; lsh_l * ceil(lsh_k / 8) "
             "bytes per key of state"});

}  // namespace reticle::maskers
