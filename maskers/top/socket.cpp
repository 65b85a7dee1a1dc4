// Keeps the keys of the highest soft collision scores: random hyperplanes put each key into one bucket per table, a
// query gets a probability distribution over the buckets, and a key's score is the sum of its buckets' probabilities
// times the norm of its value. SOCKET; sparse-attention-hub's SocketMasker, but with a separate seed and planes that do
// not depend on the device.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include <reticle/core/masker.hpp>
#include <reticle/core/ops/dot.hpp>
#include <reticle/core/ops/scores.hpp>

namespace reticle::maskers {

inline constexpr Index kMaxPlanes = 16;  // a table has 2^K buckets, and codes take 16 bits

/// Bounds the memory per key, which stores one bucket per table.
constexpr Index kMaxTables = 4096;
/// Bounds the memory of a query's distribution over the buckets of all tables: 16 MiB.
constexpr Index kMaxBuckets = Index{1} << 22;

struct SocketConfig {
  Size heavy_size = 0.1;
  Index K = 4;
  Index L = 1;
  double tau = 0.3;
  std::uint64_t seed = 0;

  static constexpr const char* docs[] = {"keys kept per query", "hyperplanes per table, 1 to 16",
                                         "number of hash tables", "temperature of the query's spread over the buckets",
                                         "random seed of the hyperplanes"};
  void validate() const {
    require(heavy_size.positive(), "heavy_size", "must be > 0");
    require(K > 0 && K <= kMaxPlanes, "K", "must be in [1, 16]");
    require(L > 0 && L <= kMaxTables, "L", "must be in [1, 4096]");
    require(L << K <= kMaxBuckets, "L", "must be at most 2^22 / 2^K, so that all buckets of a query fit into 16 MiB");
    require(tau > 0, "tau", "must be > 0");
  }
};

/// The state of the keys and values seen: per key a bucket for each table and the norm of the value.
struct SocketState {
  struct Head {
    std::vector<std::uint16_t> buckets;  // (keys, L)
    std::vector<float> value_norms;      // (keys)
  };
  std::vector<Head> heads;    // (batch * KV heads)
  std::vector<float> planes;  // (L * K, d)
  Index head_dim = 0;
  SeenKeys seen;

  void truncate(Index keys) { seen.truncate(keys); }
  void select(std::span<const Index> rows) {
    select_rows(heads, rows, seen.batch());
    seen.select(rows);
  }
};

class Socket final : public Masker {
 public:
  explicit Socket(const SocketConfig& config) : config_(config) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState& layer_state,
              const Context& context) const override {
    SocketState& state = layer_state.get<SocketState>(*this);
    update(inputs, state, context);
    const Index count = config_.heavy_size.resolve(inputs.keys_length());
    // Like the reference, it chooses among all keys, chosen before or not.
    return select_by_score(
        inputs, Mask::empty(inputs.shape()),
        [&](std::span<const RowId> rows, float* scores) {
          for (const RowId row : rows) {
            score(row, inputs, state, scores);
            scores += inputs.keys_length();
          }
        },
        [&](std::span<const float> scores, Selection& selection) { top_k(scores, count, selection.indices); }, context);
  }

 private:
  /// Hashes the keys beyond those seen and stores the norms of their values.
  void update(const AttentionInputs& inputs, SocketState& state, const Context& context) const {
    const Index heads = inputs.batch() * inputs.kv_heads(), d = inputs.head_dim();
    state.seen.continue_with(inputs);
    if (state.planes.empty()) {
      state.planes = planes(inputs);
      state.heads.resize(static_cast<std::size_t>(heads));
      state.head_dim = d;
    }
    const Index seen = state.seen.count();
    context.for_each_chunk(heads, 1, [&](Index, Index begin, Index end) {
      std::vector<float> key(static_cast<std::size_t>(d)), value(static_cast<std::size_t>(inputs.values.size(3)));
      std::vector<float> projections(static_cast<std::size_t>(config_.L * config_.K));
      for (Index head = begin; head < end; ++head) {
        const TensorView keys = head_matrix(inputs.keys, head / inputs.kv_heads(), head % inputs.kv_heads());
        const TensorView values = head_matrix(inputs.values, head / inputs.kv_heads(), head % inputs.kv_heads());
        SocketState::Head& head_state = state.heads[static_cast<std::size_t>(head)];
        head_state.buckets.resize(static_cast<std::size_t>(seen * config_.L));  // discards an interrupted update
        head_state.value_norms.resize(static_cast<std::size_t>(seen));
        for (Index k = seen; k < inputs.keys_length(); ++k) {
          load_row(keys, k, 1, key);
          project(state, key, projections);
          for (Index table = 0; table < config_.L; ++table) {
            std::uint16_t bucket = 0;
            for (Index plane = 0; plane < config_.K; ++plane) {
              const float side = projections[static_cast<std::size_t>(table * config_.K + plane)];
              bucket = static_cast<std::uint16_t>((bucket << 1) | (side >= 0 ? 1 : 0));
            }
            head_state.buckets.push_back(bucket);
          }
          load_row(values, k, 1, value);
          double squares = 0;
          for (const float x : value) squares += static_cast<double>(x) * static_cast<double>(x);
          head_state.value_norms.push_back(static_cast<float>(std::sqrt(squares)));
        }
      }
    });
    state.seen.finish(inputs);
  }

  /// Standard normal vectors, (L * K, d). Recorded planes, an extra tensor "planes" (L, K, d) F32, replace them.
  std::vector<float> planes(const AttentionInputs& inputs) const {
    std::vector<float> planes(static_cast<std::size_t>(config_.L * config_.K * inputs.head_dim()));
    if (const std::optional<TensorView> recorded = inputs.extra("planes")) {
      require_rank(*recorded, 3, "planes");
      if (recorded->dtype != DType::f32 || !recorded->contiguous() || recorded->size(0) != config_.L ||
          recorded->size(1) != config_.K || recorded->size(2) != inputs.head_dim())
        throw ShapeError("planes: " + recorded->describe() + "; expected F32 (L, K, head_dim)");
      std::copy_n(static_cast<const float*>(recorded->data), planes.size(), planes.begin());
      return planes;
    }
    Philox random(config_.seed, 0, 0, 0, 0);
    for (float& x : planes) x = random.normal();
    return planes;
  }

  void project(const SocketState& state, std::span<const float> vector, std::span<float> projections) const {
    dot(vector.data(), 1, TensorView(state.planes.data(), DType::f32, {config_.L * config_.K, state.head_dim}),
        projections.data(), 0);
  }

  void score(RowId row, const AttentionInputs& inputs, const SocketState& state, float* scores) const {
    std::vector<float> query(static_cast<std::size_t>(inputs.head_dim()));
    std::vector<float> projections(static_cast<std::size_t>(config_.L * config_.K));
    load_row(head_matrix(inputs.queries, row.batch, row.head), row.query, 1, query);
    project(state, query, projections);
    const Index buckets = Index{1} << config_.K;
    std::vector<float> probability(static_cast<std::size_t>(config_.L * buckets));
    for (Index table = 0; table < config_.L; ++table)
      spread({projections.data() + table * config_.K, static_cast<std::size_t>(config_.K)}, inputs.head_dim(),
             probability.data() + table * buckets);

    const SocketState::Head& head =
        state.heads[static_cast<std::size_t>(row.batch * inputs.kv_heads() + inputs.kv_head(row.head))];
    const Index visible = inputs.visible_keys(row.query);
    for (Index key = 0; key < visible; ++key) {
      float sum = 0;
      for (Index table = 0; table < config_.L; ++table)
        sum += probability[static_cast<std::size_t>(table * buckets +
                                                    head.buckets[static_cast<std::size_t>(key * config_.L + table)])];
      scores[key] = sum * head.value_norms[static_cast<std::size_t>(key)];
    }
    std::fill(scores + visible, scores + inputs.keys_length(), -std::numeric_limits<float>::infinity());
    exclude(forbidden_keys(inputs, row), {scores, static_cast<std::size_t>(inputs.keys_length())});
  }

  /// A table's softmax over its 2^K corners: logits add over the planes, so probabilities multiply, and the buckets of
  /// the first planes are split in two by each next one. The first plane is the most significant bit.
  void spread(std::span<const float> projections, Index head_dim, float* probability) const {
    probability[0] = 1;
    std::size_t buckets = 1;
    for (const float projection : projections) {
      const double lean = std::tanh(static_cast<double>(projection)) / std::sqrt(static_cast<double>(head_dim));
      const auto positive = static_cast<float>(1 / (1 + std::exp(-2 * lean / config_.tau)));
      for (std::size_t bucket = buckets; bucket-- > 0;) {
        const float whole = probability[bucket];
        probability[2 * bucket] = whole * (1 - positive);
        probability[2 * bucket + 1] = whole * positive;
      }
      buckets *= 2;
    }
  }

  SocketConfig config_;
};

RETICLE_REGISTER_MASKER(
    "socket", Socket, SocketConfig,
    {.summary = "Keeps the keys of the highest soft collision scores under random hyperplanes.",
     .source = "SOCKET; sparse-attention-hub (SocketMasker)",
     .rule = "the heavy_size keys of largest |v| * sum over L tables of P(query in the key's bucket), P a "
             "softmax of tanh(projections) / (tau sqrt(head_dim)) over the 2^K corners",
     .cost = "O(queries * keys * L) time; a decode step hashes new keys only; 2 L + 4 bytes per key of state"});

}  // namespace reticle::maskers
