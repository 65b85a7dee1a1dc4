// Cases of native-sparse-attention-triton: its operations, modules, caches and toy models, values and gradients.
#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <reticle/attention/backward.hpp>
#include <reticle/attention/layers/heads.hpp>
#include <reticle/attention/llama/generate.hpp>
#include <reticle/attention/llama/self_attention.hpp>
#include <reticle/attention/nsa/native_sparse_attention.hpp>

#include "verify_case.hpp"

namespace reticle::tools {
namespace {

/// The reference's cached decoding sees one key less than its own forward pass once the context exceeds the window;
/// ours is one rule for both, so what was recorded of that path is compared only up to there.
constexpr const char* kOneWindowRule = "the cached path beyond the window: compared with the forward pass instead";

class NsaCase {
 public:
  explicit NsaCase(const CaseFile& file) : file_(file), json_(file.json()), parameters_(json_.at("params")) {
    const Json& tolerance = json_.at("suggested_tolerance");
    absolute_ = tolerance.at("float_abs").get<double>();
    relative_ = tolerance.at("float_rel").get<double>();
  }

  Report run() {
    static const std::map<std::string, void (NsaCase::*)()> ops{
        {"compress_avgpool", &NsaCase::compression},
        {"compress_weightedpool", &NsaCase::compression},
        {"compress_linear", &NsaCase::compression},
        {"compressed_attention", &NsaCase::compressed},
        {"topk_sparse_attention", &NsaCase::selected},
        {"sliding_window_attention", &NsaCase::window},
        {"flash_attention_varlen", &NsaCase::window},
        {"rope", &NsaCase::rotation},
        {"decode_ops", &NsaCase::decode_ops},
        {"nsa_infer", &NsaCase::infer},
        {"nsa_module", &NsaCase::module},
        {"self_attention_module", &NsaCase::self_attention},
        {"toy_llama", &NsaCase::toy_model},
        {"toy_nsa_llama", &NsaCase::toy_model},
    };
    const auto op = json_.at("op").get<std::string>();
    const auto found = ops.find(op);
    if (found == ops.end()) return {Outcome::unknown, 0, "\"" + op + "\" is not supported"};
    (this->*found->second)();
    return report_;
  }

 private:
  // --- what a case holds ---

  Index number(const char* name) const { return parameters_.at(name).get<Index>(); }

  std::vector<Index> offsets(const char* name) const {
    const auto values = file_.values<std::int32_t>(name);
    return {values.begin(), values.end()};
  }

  NsaConfig config() const {
    NsaConfig config;
    const auto read = [&](const char* name, Index& to) {
      if (parameters_.contains(name)) to = number(name);
    };
    const auto op = json_.at("op").get<std::string>();
    const std::string type = parameters_.value("compress_type", op.substr(op.find('_') + 1));
    config.compress_type = type == "avgpool"  ? Compression::avgpool
                           : type == "linear" ? Compression::linear
                                              : Compression::weightedpool;
    read("kernel_size", config.kernel_size);
    read("kernel_stride", config.kernel_stride);
    read("block_size", config.block_size);
    read("topk", config.topk);
    read("init_blocks", config.init_blocks);
    read("local_blocks", config.local_blocks);
    read("window_size", config.window_size);
    return config;
  }

  Rope rope() const {
    std::optional<RopeScaling> scaling;
    const Json given = parameters_.value("rope_scaling", Json());
    const std::string type = given.is_null() ? "default" : given.value("rope_type", given.value("type", "default"));
    if (type != "default") {
      scaling.emplace();
      scaling->type = type == "linear" ? RopeScaling::Type::linear : RopeScaling::Type::llama3;
      scaling->factor = given.at("factor");
      scaling->low_freq_factor = given.value("low_freq_factor", scaling->low_freq_factor);
      scaling->high_freq_factor = given.value("high_freq_factor", scaling->high_freq_factor);
      scaling->original_max_position_embeddings =
          given.value("original_max_position_embeddings", scaling->original_max_position_embeddings);
    }
    return {number("head_dim"), parameters_.at("rope_theta").get<double>(), scaling};
  }

  std::optional<TensorView> tensor_if_there(const std::string& name) const {
    return file_.has(name) ? std::optional(file_.tensor(name)) : std::nullopt;
  }

  /// Queries [begin, end) of packed tokens and keys [key_begin, key_end), for attention without a rule of its own.
  AttentionInputs inputs(const TensorView& queries, const TensorView& keys, const TensorView& values) const {
    AttentionInputs inputs{heads_first(queries), heads_first(keys), heads_first(values)};
    inputs.scaling = 1 / std::sqrt(static_cast<float>(number("head_dim")));
    return inputs;
  }

  // --- comparing ---

  void compare(const std::string& name, std::span<const float> ours, std::span<const float> theirs) {
    if (ours.size() != theirs.size())
      return report_.fail(fmt::format("{}: {} elements, recorded are {}", name, ours.size(), theirs.size()));
    for (std::size_t i = 0; i < ours.size(); ++i) {
      if (ours[i] == theirs[i]) continue;  // infinities
      const auto a = static_cast<double>(ours[i]), b = static_cast<double>(theirs[i]);
      report_.difference(name, std::abs(a - b), absolute_ + relative_ * std::abs(b));
    }
  }
  void compare(const std::string& name, const Tensor& ours) {
    compare(name, ours.span<float>(), file_.values<float>(name));
  }

  void compare_integers(const std::string& name, std::span<const std::int32_t> ours) {
    const auto theirs = file_.values<std::int32_t>(name);
    if (!std::equal(ours.begin(), ours.end(), theirs.begin(), theirs.end())) report_.fail(name + " differs");
  }

  /// Blocks of sequences [cu, cu + 1), each (kv_heads, n, own width), against (kv_heads, tokens, width).
  void compare_blocks(std::span<const SelectedBlocks> ours, const std::string& name) {
    const TensorView& theirs = file_.tensor(name);
    const Index width = theirs.size(2), tokens = theirs.size(1);
    const auto values = file_.values<std::int32_t>(name);
    for (Index kv_head = 0; kv_head < theirs.size(0); ++kv_head) {
      Index token = 0;
      for (const SelectedBlocks& blocks : ours) {
        for (Index query = 0; query < blocks.queries; ++query, ++token) {
          const auto row = values.subspan(static_cast<std::size_t>((kv_head * tokens + token) * width),
                                          static_cast<std::size_t>(width));
          // A batch's widest sequence sets the recorded width.
          std::vector<std::int32_t> own(blocks.of(kv_head, query).begin(), blocks.of(kv_head, query).end());
          own.resize(row.size(), -1);
          if (!std::equal(own.begin(), own.end(), row.begin()))
            return report_.fail(fmt::format("{} differs at KV head {}, token {}", name, kv_head, token));
        }
      }
    }
  }

  // --- operations ---

  void compression() {
    NsaConfig own = config();
    own.block_size = own.kernel_size;
    const std::vector<Index> cu = offsets("cu_seqlens");
    const CompressionWeights weights{tensor_if_there("w"), tensor_if_there("pe")};
    const Packed y = compress(file_.tensor("x"), cu, weights, own);
    compare("y", y.data);
    compare_integers("y_cu_seqlens", std::vector<std::int32_t>(y.cu_seqlens.begin(), y.cu_seqlens.end()));
    const CompressionGradients gradients = compress_backward(file_.tensor("x"), cu, weights, own, file_.tensor("dy"));
    compare("dx", gradients.x);
    if (gradients.weight) compare("dw", *gradients.weight);
    if (gradients.position_embedding) compare("dpe", *gradients.position_embedding);
  }

  /// One sequence's attention over a mask, forward and backward, put where its tokens are among all.
  struct Collected {
    Tensor o, lse, dq, dk, dv;
  };
  Collected collected(const char* queries, const char* keys) const {
    const TensorView &q = file_.tensor(queries), &k = file_.tensor(keys);
    return {zeros_like(q), Tensor(DType::f32, {q.size(1), q.size(0)}), zeros_like(q), zeros_like(k), zeros_like(k)};
  }

  void collect(Collected& all, Index q_begin, Index q_end, Index k_begin, Index k_end, Index first_head, Index kv_head,
               Index kv_heads, const Mask& mask) {
    const Index heads = mask.shape().heads;
    const auto slice = [](const TensorView& view, Index begin, Index end, Index head, Index count) {
      return view.slice(0, begin, end).slice(1, head, head + count);
    };
    const AttentionInputs in = inputs(slice(file_.tensor("q"), q_begin, q_end, first_head, heads),
                                      slice(file_.tensor("k"), k_begin, k_end, kv_head, kv_heads),
                                      slice(file_.tensor("v"), k_begin, k_end, kv_head, kv_heads));
    const AttentionResult result = attention(in, mask);
    const AttentionGradients gradients = attention_backward(
        in, mask, result.output, result.lse, heads_first(slice(file_.tensor("do"), q_begin, q_end, first_head, heads)));
    const auto put = [](const Tensor& from, Tensor& to, Index token, Index head) {
      const Index width = to.view().size(2), stride = to.view().size(1) * width;
      add_tokens_first(from, to.span<float>().data() + token * stride + head * width, stride);
    };
    put(result.output, all.o, q_begin, first_head);
    put(gradients.queries, all.dq, q_begin, first_head);
    put(gradients.keys, all.dk, k_begin, kv_head);
    put(gradients.values, all.dv, k_begin, kv_head);
    for (Index head = 0; head < heads; ++head) {
      const float* from = result.lse.view().at<float>(0, head, 0);
      std::copy_n(from, q_end - q_begin,
                  all.lse.span<float>().data() + (first_head + head) * all.lse.view().size(1) + q_begin);
    }
  }

  void compare(const Collected& all) {
    compare("o", all.o);
    compare("lse", all.lse);
    compare("dq", all.dq);
    compare("dk", all.dk);
    compare("dv", all.dv);
  }

  void compressed() {
    const NsaConfig own = config();
    const std::vector<Index> cu_q = offsets("cu_seqlens_q"), cu_k = offsets("cu_seqlens_k");
    const TensorView &q = file_.tensor("q"), &k = file_.tensor("k"), &v = file_.tensor("v");
    const auto scaling = parameters_.at("sm_scale").get<float>();
    Collected all = collected("q", "k");
    std::vector<SelectedBlocks> blocks;
    const TensorView& scores = file_.tensor("block_score_raw");
    for (std::size_t i = 0; i + 1 < cu_q.size(); ++i) {
      const TensorView queries = q.slice(0, cu_q[i], cu_q[i + 1]), keys = k.slice(0, cu_k[i], cu_k[i + 1]),
                       values = v.slice(0, cu_k[i], cu_k[i + 1]);
      CompressedAttention result = compressed_attention(queries, keys, values, 0, scaling, own);
      collect(all, cu_q[i], cu_q[i + 1], cu_k[i], cu_k[i + 1], 0, 0, k.size(1),
              compressed_mask(q.size(1), queries.size(0), keys.size(0), 0, own));
      // The fused kernel against what the general executor made of the same mask.
      const auto whole = all.o.span<float>();
      compare("o", result.output.span<float>(),
              whole.subspan(static_cast<std::size_t>(cu_q[i] * q.stride(0)), result.output.span<float>().size()));
      const Tensor ours = block_scores(queries, keys, 0, scaling, own);
      for (Index kv_head = 0; kv_head < scores.size(0); ++kv_head) {
        for (Index t = 0; t < queries.size(0); ++t) {
          for (Index block = 0; block < ours.view().size(2); ++block)
            compare("block_score_raw", {ours.view().at<float>(kv_head, t, block), 1},
                    {scores.at<float>(kv_head, cu_q[i] + t, block), 1});
        }
      }
      blocks.push_back(std::move(result.blocks));
    }
    compare(all);
    std::vector<float> log2;
    for (const float lse : all.lse.span<float>()) log2.push_back(lse * 1.44269504f);
    compare("lse_log2", log2, file_.values<float>("lse_log2"));
    compare_blocks(blocks, "topk_idx");
  }

  void selected() {
    const std::vector<Index> cu = offsets("cu_seqlens");
    const TensorView& lists = file_.tensor("topk_idx");
    const Index kv_heads = lists.size(0), group = file_.tensor("q").size(1) / kv_heads, width = lists.size(2);
    Collected all = collected("q", "k");
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) {
      for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
        const auto own = file_.values<std::int32_t>("topk_idx")
                             .subspan(static_cast<std::size_t>((kv_head * lists.size(1) + cu[i]) * width),
                                      static_cast<std::size_t>((cu[i + 1] - cu[i]) * width));
        const SelectedBlocks blocks = SelectedBlocks::from_lists(1, cu[i + 1] - cu[i], width, own);
        collect(all, cu[i], cu[i + 1], cu[i], cu[i + 1], kv_head * group, kv_head, 1,
                selected_mask(blocks, 0, group, cu[i + 1] - cu[i], 0, number("block_size")));
      }
    }
    compare(all);
  }

  void window() {
    const std::vector<Index> cu = offsets("cu_seqlens");
    const Index heads = file_.tensor("q").size(1), kv_heads = file_.tensor("k").size(1);
    const Index left = number("window_left");
    Collected all = collected("q", "k");
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) {
      const Index length = cu[i + 1] - cu[i];
      const bool causal = parameters_.value("causal", true);
      const Mask mask = causal ? window_mask(heads, length, length, 0, left < 0 ? length : left)
                               : Mask::full({1, heads, length, length});
      collect(all, cu[i], cu[i + 1], cu[i], cu[i + 1], 0, 0, kv_heads, mask);
    }
    compare(all);
  }

  void rotation() {
    const Rope own = rope();
    const std::vector<Index> cu = offsets("cu_seqlens");
    compare("inv_freq", own.inverse_frequencies(), file_.values<float>("inv_freq"));
    const auto rows = file_.values<std::int64_t>("table_rows");
    const RopeTable table = own.at(std::vector<Index>(rows.begin(), rows.end()));
    const auto twice = [&](std::span<const float> half) {  // the recorded ones are as wide as a head
      std::vector<float> whole;
      for (Index row = 0; row < table.rows(); ++row) {
        const auto part =
            half.subspan(static_cast<std::size_t>(row * table.half()), static_cast<std::size_t>(table.half()));
        for (int copy = 0; copy < 2; ++copy) whole.insert(whole.end(), part.begin(), part.end());
      }
      return whole;
    };
    compare("cos_rows", twice(table.cosines()), file_.values<float>("cos_rows"));
    compare("sin_rows", twice(table.sines()), file_.values<float>("sin_rows"));
    const auto rotated = [&](const char* name, std::span<const Index> positions, bool back) {
      Tensor x = Tensor::copy(file_.tensor(name), DType::f32);
      const RopeTable at = own.at(positions);
      back ? at.rotate_back(x.span<float>()) : at.rotate(x.span<float>());
      return x;
    };
    compare("y", rotated("x", packed_positions(cu), false).span<float>(), file_.values<float>("y"));
    compare("y_strided", rotated("x", packed_positions(cu, number("stride")), false).span<float>(),
            file_.values<float>("y_strided"));
    compare("dx", rotated("dy", packed_positions(cu), true).span<float>(), file_.values<float>("dx"));
    std::vector<Index> decode;
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) decode.push_back(cu[i + 1] - cu[i] + number("decode_step") - 1);
    compare("y_decode", rotated("x_decode", decode, false).span<float>(), file_.values<float>("y_decode"));
  }

  void decode_ops() {
    const NsaConfig own = config();
    const auto lengths = file_.values<std::int32_t>("seqlens"),
               windows = file_.values<std::int32_t>("compress_seqlens");
    const TensorView &q = file_.tensor("q"), &k = file_.tensor("k_cache"), &v = file_.tensor("v_cache"),
                     &ck = file_.tensor("ck_cache"), &cv = file_.tensor("cv_cache");
    const Index kv_heads = k.size(2), heads = q.size(1), group = heads / kv_heads, d = q.size(2);
    Tensor compressed_o = zeros_like(q), sparse_o = zeros_like(q), full_o = zeros_like(q);
    std::vector<SelectedBlocks> blocks;
    for (Index i = 0; i < q.size(0); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Index length = lengths[at];
      const auto of_sequence = [&](const TensorView& cache, Index count) {
        const TensorView part = cache.slice(0, i, i + 1).slice(1, 0, count);
        return TensorView(part.data, part.dtype, {count, part.size(2), part.size(3)});
      };
      const TensorView query = q.slice(0, i, i + 1), keys = of_sequence(k, length), values = of_sequence(v, length);
      CompressedAttention result =
          compressed_attention(query, of_sequence(ck, windows[at]), of_sequence(cv, windows[at]), length - 1,
                               parameters_.at("sm_scale").get<float>(), own);
      const auto put = [&](std::span<const float> from, Tensor& to, Index head) {
        std::copy(from.begin(), from.end(), to.span<float>().begin() + (i * heads + head) * d);
      };
      put(result.output.span<float>(), compressed_o, 0);
      for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
        const AttentionInputs in = inputs(query.slice(1, kv_head * group, (kv_head + 1) * group),
                                          keys.slice(1, kv_head, kv_head + 1), values.slice(1, kv_head, kv_head + 1));
        put(attention(in, selected_mask(result.blocks, kv_head, group, length, length - 1, own.block_size))
                .output.span<float>(),
            sparse_o, kv_head * group);
      }
      const AttentionInputs in = inputs(query, keys, values);
      put(attention(in, Mask::full(in.shape())).output.span<float>(), full_o, 0);
      blocks.push_back(std::move(result.blocks));
    }
    compare("compressed_o", compressed_o);
    compare("sparse_o", sparse_o);
    compare("full_o", full_o);
    compare_blocks(blocks, "topk_idx");
  }

  // --- modules ---

  /// Prompts, then decode steps of all sequences, through the caches.
  void infer() {
    const NsaConfig own = config();
    const Rope rotation = rope();
    const Index kv_heads = number("num_kv_heads"), heads = number("num_q_heads"), d = number("head_dim");
    const Index steps = number("num_decode_steps");
    const std::vector<Index> cu = offsets("cu_seqlens");
    const auto sequences = static_cast<Index>(cu.size()) - 1;
    const NsaCompression compression{{tensor_if_there("compress_key"), tensor_if_there("intra_block_pe")},
                                     {tensor_if_there("compress_value"), std::nullopt}};
    std::vector<KvCache> caches;
    std::vector<NsaCache> compressed;
    const Context one_thread(1);
    for (Index i = 0; i < sequences; ++i) {
      caches.emplace_back(KvCacheShape{1, kv_heads, d, d, number("max_length"), DType::f32});
      compressed.emplace_back(own, kv_heads, d);
    }
    const auto extend = [&](Index i, const TensorView& q, const TensorView& k, const TensorView& v,
                            std::span<const float> gates) {
      const auto at = static_cast<std::size_t>(i);
      caches[at].extend(std::vector<std::int32_t>(static_cast<std::size_t>(q.size(0))));
      return nsa_extend(q, k, v, gates, {&caches[at], 0, &compressed[at]}, compression, rotation, own, one_thread);
    };
    const auto lengths = [&](Index step, std::span<const std::int32_t> theirs, bool pending) {
      for (Index i = 0; i < sequences; ++i) {
        const auto at = static_cast<std::size_t>(i);
        Index expected = theirs[static_cast<std::size_t>(step * sequences + i)];
        // The reference drops what a decode step used up when the next step begins; ours at once.
        if (pending && step > 0 && expected == own.kernel_size) expected -= own.kernel_stride;
        const Index length = pending ? compressed[at].pending_length() : compressed[at].compressed_length();
        if (length != expected)
          report_.fail(fmt::format("{} of sequence {} after step {} is {}, recorded is {}",
                                   pending ? "before_compress_kv_len" : "compress_kv_len", i, step, length, expected));
      }
    };
    const auto compare_lengths = [&](Index step) {
      lengths(step, file_.values<std::int32_t>("compress_kv_len"), false);
      lengths(step, file_.values<std::int32_t>("before_compress_kv_len"), true);
    };
    const auto gates = file_.values<float>("gate"), gates_decode = file_.values<float>("gate_decode");
    const auto o_prefill = file_.values<float>("o_prefill");
    for (Index i = 0; i < sequences; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const auto part = [&](const char* name) { return file_.tensor(name).slice(0, cu[at], cu[at + 1]); };
      const Tensor o = extend(i, part("q"), part("k"), part("v"), rows_of(gates, cu[at], cu[at + 1], heads * 3));
      compare("o_prefill", o.span<float>(), rows_of(o_prefill, cu[at], cu[at + 1], heads * d));
    }
    compare_lengths(0);
    const auto consistent = file_.values<float>("o_decode_consistent"), repo = file_.values<float>("o_decode_repo");
    bool beyond = false;
    for (Index step = 0; step < steps; ++step) {
      for (Index i = 0; i < sequences; ++i) {
        const auto row = [&](const char* name) {
          const TensorView view = file_.tensor(name).slice(0, step, step + 1).slice(1, i, i + 1);
          return TensorView(view.data, view.dtype, {1, view.size(2), view.size(3)});
        };
        const Index at = step * sequences + i;
        const Tensor o =
            extend(i, row("q_decode"), row("k_decode"), row("v_decode"), rows_of(gates_decode, at, at + 1, heads * 3));
        compare("o_decode_consistent", o.span<float>(), rows_of(consistent, at, at + 1, heads * d));
        const bool within = caches[static_cast<std::size_t>(i)].length() <= own.window_size;
        if (within) compare("o_decode_repo", o.span<float>(), rows_of(repo, at, at + 1, heads * d));
        beyond |= !within;
      }
      compare_lengths(step + 1);
    }
    const TensorView& final_cache = file_.tensor("final_compress_cache");
    for (Index i = 0; i < sequences; ++i) {
      const NsaCache& cache = compressed[static_cast<std::size_t>(i)];
      const auto count = static_cast<std::size_t>(cache.compressed_length() * kv_heads * d);
      for (const Index which : {Index{0}, Index{1}}) {
        const TensorView ours = which == 0 ? cache.compressed_keys() : cache.compressed_values();
        compare("final_compress_cache", {static_cast<const float*>(ours.data), count},
                {final_cache.at<float>(which, i, 0, 0, 0), count});
      }
    }
    if (beyond && report_.outcome == Outcome::pass) report_.detail = kOneWindowRule;
  }

  void module() {
    const NsaShape shape{config(), number("hidden_size"), number("num_q_heads"), number("num_kv_heads"),
                         number("head_dim")};
    const Weights weights = Weights::from_file(file_.tensors(), "weights.");
    WeightReader reader(weights);
    const NsaWeights own = read_nsa_weights(reader, "", shape);
    reader.finish();
    const NativeSparseAttention module(shape, rope(), own);
    const NsaTape tape = module.forward(file_.tensor("x"), offsets("cu_seqlens"));
    compare("y", tape.output.span<float>(), file_.values<float>("y"));
    compare("gate", tape.gates.span<float>(), file_.values<float>("gate"));
    compare("compressed_k_roped", tape.compressed_keys.data.span<float>(), file_.values<float>("compressed_k_roped"));
    compare("compressed_v", tape.compressed_values.data.span<float>(), file_.values<float>("compressed_v"));
    const std::vector<Index>& windows = tape.compressed_keys.cu_seqlens;
    compare_integers("compressed_cu_seqlens", std::vector<std::int32_t>(windows.begin(), windows.end()));
    std::vector<float> compressed_o, sparse_o, window_o;
    std::vector<SelectedBlocks> blocks;
    const auto append = [](std::vector<float>& to, const Tensor& from) {
      const auto values = from.span<float>();
      to.insert(to.end(), values.begin(), values.end());
    };
    for (const NsaBranches& branches : tape.branches) {
      append(compressed_o, branches.compressed.output);
      append(sparse_o, branches.selected);
      append(window_o, branches.window);
      blocks.push_back(branches.compressed.blocks);
    }
    compare("compressed_o", compressed_o, file_.values<float>("compressed_o"));
    compare("sparse_o", sparse_o, file_.values<float>("sparse_o"));
    compare("window_o", window_o, file_.values<float>("window_o"));
    compare_blocks(blocks, "topk_idx");
    const NsaGradients gradients = module.backward(tape, file_.tensor("dy"));
    compare("dx", gradients.x);
    for (const auto& [name, gradient] : gradients.weights) compare("grads." + name, gradient);
  }

  void self_attention() {
    const auto weight = [&](const char* name) { return file_.tensor(std::string("weights.proj_") + name + ".weight"); };
    const SelfAttention module(number("head_dim"), rope(), {weight("q"), weight("k"), weight("v"), weight("o")});
    const SelfAttentionTape tape = module.forward(file_.tensor("x"), offsets("cu_seqlens"));
    compare("y", tape.output.span<float>(), file_.values<float>("y"));
    const SelfAttentionGradients gradients = module.backward(tape, file_.tensor("dy"));
    compare("dx", gradients.x);
    compare("grads.proj_q.weight", gradients.q_proj);
    compare("grads.proj_k.weight", gradients.k_proj);
    compare("grads.proj_v.weight", gradients.v_proj);
    compare("grads.proj_o.weight", gradients.o_proj);
  }

  void toy_model() {
    Json config = parameters_;
    config["model_type"] = json_.at("op");
    const Decoder decoder(DecoderConfig::from_json(config.dump()), Weights::from_file(file_.tensors(), "weights."));
    const std::vector<Index> cu = offsets("cu_seqlens");
    const auto ids = file_.values<std::int64_t>("input_ids");
    std::vector<std::vector<std::int32_t>> prompts;
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) prompts.emplace_back(ids.begin() + cu[i], ids.begin() + cu[i + 1]);
    const auto vocabulary = static_cast<std::size_t>(number("vocab_size"));
    const auto new_tokens = static_cast<std::size_t>(number("num_new_tokens"));
    const auto logits = file_.values<float>("logits"), forced = file_.values<float>("recompute_logits_forced"),
               repo = file_.values<float>("decode_logits_repo");
    const auto repo_tokens = file_.values<std::int64_t>("generated_tokens_repo"),
               own_tokens = file_.values<std::int64_t>("generated_tokens_recompute");
    bool beyond = false;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      DecoderState state = decoder.start(static_cast<Index>(prompts[i].size() + new_tokens));
      const Tensor prefilled = decoder.forward(prompts[i], state);
      compare("logits", prefilled.span<float>(), rows_of(logits, cu[i], cu[i + 1], number("vocab_size")));
      // The recorded tokens, fed one by one: the logits that chose each.
      auto row = prefilled.span<float>().last(vocabulary);
      Tensor last;
      for (std::size_t step = 0; step < new_tokens; ++step) {
        const std::size_t at = i * new_tokens + step;
        compare("recompute_logits_forced", row, forced.subspan(at * vocabulary, vocabulary));
        const bool within = !decoder.config().nsa || state.length() <= decoder.config().nsa->window_size;
        if (within) compare("decode_logits_repo", row, repo.subspan(at * vocabulary, vocabulary));
        beyond |= !within;
        const std::int32_t token[] = {static_cast<std::int32_t>(repo_tokens[at])};
        last = decoder.forward(token, state);
        row = last.span<float>();
      }
    }
    const Generation generation = generate(decoder, prompts, {.max_new_tokens = static_cast<Index>(new_tokens)});
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      for (std::size_t step = 0; step < new_tokens; ++step) {
        if (generation.tokens[i].at(step) != own_tokens[i * new_tokens + step])
          report_.fail(fmt::format("generated token {} of sequence {} differs", step, i));
      }
    }
    if (beyond && report_.outcome == Outcome::pass) report_.detail = kOneWindowRule;
  }

  const CaseFile& file_;
  const Json& json_;
  const Json& parameters_;
  double absolute_ = 0, relative_ = 0;
  Report report_;
};

}  // namespace

Report replay_nsa(const CaseFile& file) { return NsaCase(file).run(); }

}  // namespace reticle::tools
