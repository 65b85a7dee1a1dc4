// Cases of native-sparse-attention-triton: its operations, modules, caches and toy models, values and gradients.
#include <algorithm>
#include <cmath>
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

#include "golden/case.hpp"

namespace reticle::golden {
namespace {

class NsaCase : public Case {
 public:
  explicit NsaCase(const Case& file) : Case(file) {
    const Json& tolerance = json().at("suggested_tolerance");
    usual_ = {tolerance.at("float_abs").get<double>(), tolerance.at("float_rel").get<double>()};
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
    const auto found = ops.find(op());
    if (found == ops.end()) return {Outcome::unknown, 0, "\"" + op() + "\" is not supported"};
    (this->*found->second)();
    if (beyond_window_ && report_.outcome == Outcome::pass)
      report_.detail = "the cached path beyond the window: compared with the forward pass instead";
    return report_;
  }

 private:
  // --- what a case records -------------------------------------------------------------------------------------------

  std::string op() const { return json().at("op").get<std::string>(); }

  /// The parameters as a model's config. A case of one operation records only what that needs; the rest is made up.
  DecoderConfig model() const {
    Json config = parameters();
    config["model_type"] = op();
    if (!op().starts_with("toy_")) {
      config["model_type"] = "toy_nsa_llama";
      for (const char* size : {"vocab_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"})
        config[size] = 1;
      if (!config.contains("hidden_size")) config["hidden_size"] = 1;
      if (!config.contains("rope_theta")) config["head_dim"] = 2;  // without a rotation, heads may be of any size
    }
    if (op().starts_with("compress_")) {
      config["compress_type"] = op().substr(op().find('_') + 1);
      config["block_size"] = number("kernel_size");
    }
    return DecoderConfig::from_json(config.dump());
  }
  NsaConfig config() const { return *model().nsa; }
  Rope rope() const {
    const DecoderConfig config = model();
    return {config.head_dim, config.rope_theta, config.rope_scaling};
  }

  /// The inputs of attention from packed tensors, (tokens, heads, head_dim) each.
  AttentionInputs inputs(const TensorView& queries, const TensorView& keys, const TensorView& values) const {
    AttentionInputs inputs{heads_first(queries), heads_first(keys), heads_first(values)};
    inputs.scaling = 1 / std::sqrt(static_cast<float>(number("head_dim")));
    return inputs;
  }

  // --- comparisons ---------------------------------------------------------------------------------------------------

  using Case::compare;

  void compare_integers(const std::string& name, const std::vector<Index>& ours) {
    if (ours != integers<Index>(name)) fail(name + " differs");
  }

  /// Compares the blocks of all sequences with "topk_idx" (kv_heads, tokens, width), whose width is that of the widest
  /// sequence.
  void compare_blocks(std::span<const SelectedBlocks> ours) {
    const TensorView& recorded = tensor("topk_idx");
    Index tokens = 0;
    for (const SelectedBlocks& blocks : ours) tokens += blocks.queries;
    const bool fits = recorded.rank == 3 && recorded.dtype == DType::i32 && recorded.size(1) == tokens &&
                      std::ranges::all_of(ours, [&](const SelectedBlocks& blocks) {
                        return blocks.kv_heads == recorded.size(0) && blocks.width <= recorded.size(2);
                      });
    if (!fits) return fail("topk_idx: is " + recorded.describe() + "; expected I32 (KV heads, tokens, blocks)");
    for (Index kv_head = 0; kv_head < recorded.size(0); ++kv_head) {
      const TensorView rows = entry(recorded, kv_head);
      Index token = 0;
      for (const SelectedBlocks& blocks : ours) {
        for (Index query = 0; query < blocks.queries; ++query, ++token) {
          std::vector<std::int32_t> row(blocks.of(kv_head, query).begin(), blocks.of(kv_head, query).end());
          row.resize(static_cast<std::size_t>(recorded.size(2)), -1);
          if (!std::equal(row.begin(), row.end(), rows.at<std::int32_t>(token, 0)))
            return fail(fmt::format("topk_idx differs at KV head {}, token {}", kv_head, token));
        }
      }
    }
  }

  // --- operations ----------------------------------------------------------------------------------------------------

  void compression() {
    const NsaConfig own = config();
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("x").size(0));
    const CompressionWeights weights{find_tensor("w"), find_tensor("pe")};
    const Packed y = compress(tensor("x"), cu, weights, own);
    compare("y", y.data);
    compare_integers("y_cu_seqlens", y.cu_seqlens);
    const CompressionGradients gradients = compress_backward(tensor("x"), cu, weights, own, tensor("dy"));
    compare("dx", gradients.x);
    if (gradients.weight) compare("dw", *gradients.weight);
    if (gradients.position_embedding) compare("dpe", *gradients.position_embedding);
  }

  /// Attention and its gradients over the tensors "q", "k", "v" and "do" of all sequences, gathered part by part.
  struct Collected {
    Tensor o, lse, dq, dk, dv;
  };
  Collected collected() const {
    const TensorView &q = tensor("q"), &k = tensor("k");
    return {zeros_like(q), Tensor(DType::f32, {q.size(1), q.size(0)}), zeros_like(q), zeros_like(k), zeros_like(k)};
  }

  /// Tokens [begin, end) and heads [head, head + heads).
  struct Part {
    Index begin, end, head, heads;
    TensorView of(const TensorView& view) const { return view.slice(0, begin, end).slice(1, head, head + heads); }
    /// Adds a (1, heads, tokens, width) tensor where the part is in `whole`.
    void add(const Tensor& from, Tensor& whole) const {
      const Index stride = whole.view().stride(0);
      add_tokens_first(from, whole.span<float>().data() + begin * stride + head * whole.view().stride(1), stride);
    }
  };

  void collect(Collected& all, const Part& query, const Part& key, const Mask& mask) const {
    const AttentionInputs in = inputs(query.of(tensor("q")), key.of(tensor("k")), key.of(tensor("v")));
    const AttentionResult result = attention(in, mask);
    const AttentionGradients gradients =
        attention_backward(in, mask, result.output, result.lse, heads_first(query.of(tensor("do"))));
    query.add(result.output, all.o);
    query.add(gradients.queries, all.dq);
    key.add(gradients.keys, all.dk);
    key.add(gradients.values, all.dv);
    for (Index head = 0; head < query.heads; ++head)
      std::copy_n(result.lse.view().at<float>(0, head, 0), query.end - query.begin,
                  all.lse.span<float>().data() + (query.head + head) * all.lse.view().size(1) + query.begin);
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
    const std::vector<Index> cu_q = offsets("cu_seqlens_q", tensor("q").size(0)),
                             cu_k = offsets("cu_seqlens_k", tensor("k").size(0));
    if (cu_q.size() != cu_k.size())
      throw FormatError(path().string() + ": cu_seqlens_q and cu_seqlens_k: expected as many sequences in both");
    const TensorView &q = tensor("q"), &k = tensor("k"), &scores = tensor("block_score_raw");
    const auto scaling = parameters().at("sm_scale").get<float>();
    Collected all = collected();
    std::vector<SelectedBlocks> blocks;
    for (std::size_t i = 0; i + 1 < cu_q.size(); ++i) {
      const Part query{cu_q[i], cu_q[i + 1], 0, q.size(1)}, key{cu_k[i], cu_k[i + 1], 0, k.size(1)};
      const TensorView queries = query.of(q), keys = key.of(k);
      CompressedAttention result = compressed_attention(queries, keys, key.of(tensor("v")), 0, scaling, own);
      collect(all, query, key, compressed_mask(query.heads, queries.size(0), keys.size(0), 0, own));
      // The fused kernel must agree with the general executor over the same mask.
      const std::span<const float> output = result.output.span<float>(), general = all.o.span<float>();
      compare("o", output, general.subspan(static_cast<std::size_t>(query.begin * q.stride(0)), output.size()), usual_);
      const Tensor ours = block_scores(queries, keys, 0, scaling, own);
      if (scores.rank != 3 || scores.size(0) != ours.view().size(0))
        return fail("block_score_raw: is " + scores.describe() + "; expected (KV heads, tokens, blocks)");
      for (Index kv_head = 0; kv_head < scores.size(0); ++kv_head) {
        for (Index t = 0; t < queries.size(0); ++t)
          compare_part("block_score_raw",
                       {ours.view().at<float>(kv_head, t, 0), static_cast<std::size_t>(ours.view().size(2))},
                       kv_head * scores.stride(0) + (query.begin + t) * scores.stride(1));
      }
      blocks.push_back(std::move(result.blocks));
    }
    compare(all);
    std::vector<float> log2;
    for (const float lse : all.lse.span<float>()) log2.push_back(lse * 1.44269504f);
    compare("lse_log2", log2);
    compare_blocks(blocks);
  }

  void selected() {
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("q").size(0));
    const TensorView& lists = tensor("topk_idx");
    if (lists.rank != 3 || lists.size(0) < 1 || lists.size(1) < cu.back())
      throw FormatError(path().string() + ": topk_idx is " + lists.describe() +
                        "; expected (KV heads, tokens, blocks)");
    const Index kv_heads = lists.size(0), group = tensor("q").size(1) / kv_heads, width = lists.size(2);
    Collected all = collected();
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) {
      for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
        const Index first = kv_head * lists.size(1);
        const SelectedBlocks blocks = SelectedBlocks::from_lists(
            1, cu[i + 1] - cu[i], width,
            rows_of(values<std::int32_t>("topk_idx"), first + cu[i], first + cu[i + 1], width));
        collect(all, {cu[i], cu[i + 1], kv_head * group, group}, {cu[i], cu[i + 1], kv_head, 1},
                selected_mask(blocks, 0, group, cu[i + 1] - cu[i], 0, number("block_size")));
      }
    }
    compare(all);
  }

  void window() {
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("q").size(0));
    const Index heads = tensor("q").size(1), kv_heads = tensor("k").size(1), left = number("window_left");
    Collected all = collected();
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) {
      const Index length = cu[i + 1] - cu[i];
      const bool causal = parameters().value("causal", true);
      const Mask mask = causal ? window_mask(heads, length, length, 0, left < 0 ? length : left)
                               : Mask::full({1, heads, length, length});
      collect(all, {cu[i], cu[i + 1], 0, heads}, {cu[i], cu[i + 1], 0, kv_heads}, mask);
    }
    compare(all);
  }

  void rotation() {
    const Rope own = rope();
    compare("inv_freq", own.inverse_frequencies());
    const RopeTable table = own.at(integers<Index>("table_rows"));
    const auto twice = [&](std::span<const float> half) {  // the recorded ones are as wide as a head
      std::vector<float> whole;
      for (Index row = 0; row < 2 * table.rows(); ++row) {
        const auto part = rows_of(half, row / 2, row / 2 + 1, table.half());
        whole.insert(whole.end(), part.begin(), part.end());
      }
      return whole;
    };
    compare("cos_rows", twice(table.cosines()));
    compare("sin_rows", twice(table.sines()));
    const auto rotate = [&](const char* x, std::span<const Index> positions, const char* y, bool back = false) {
      Tensor rotated = Tensor::copy(tensor(x), DType::f32);
      const RopeTable at = own.at(positions);
      back ? at.rotate_back(rotated.span<float>()) : at.rotate(rotated.span<float>());
      compare(y, rotated);
    };
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("x").size(0));
    rotate("x", packed_positions(cu), "y");
    rotate("x", packed_positions(cu, number("stride")), "y_strided");
    rotate("dy", packed_positions(cu), "dx", true);
    std::vector<Index> decode;
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) decode.push_back(cu[i + 1] - cu[i] + number("decode_step") - 1);
    rotate("x_decode", decode, "y_decode");
  }

  void decode_ops() {
    const NsaConfig own = config();
    const std::vector<Index> lengths = integers<Index>("seqlens"), windows = integers<Index>("compress_seqlens");
    const TensorView& q = tensor("q");
    require_elements("seqlens", q.size(0));
    require_elements("compress_seqlens", q.size(0));
    const Index kv_heads = tensor("k_cache").size(2), heads = q.size(1), d = q.size(2);
    if (kv_heads < 1) throw FormatError(path().string() + ": k_cache is " + tensor("k_cache").describe());
    const Index group = heads / kv_heads;
    Tensor compressed_o = zeros_like(q), sparse_o = zeros_like(q), full_o = zeros_like(q);
    std::vector<SelectedBlocks> blocks;
    for (Index i = 0; i < q.size(0); ++i) {
      const Index length = lengths[static_cast<std::size_t>(i)], window = windows[static_cast<std::size_t>(i)];
      const auto cached = [&](const char* name, Index count) { return entry(tensor(name), i).slice(0, 0, count); };
      const TensorView query = q.slice(0, i, i + 1), keys = cached("k_cache", length),
                       values = cached("v_cache", length);
      CompressedAttention result = compressed_attention(query, cached("ck_cache", window), cached("cv_cache", window),
                                                        length - 1, parameters().at("sm_scale").get<float>(), own);
      const auto put = [&](const Tensor& from, Tensor& to, Index head) {
        std::ranges::copy(from.span<float>(), to.span<float>().begin() + (i * heads + head) * d);
      };
      put(result.output, compressed_o, 0);
      for (Index kv_head = 0; kv_head < kv_heads; ++kv_head) {
        const Part of_group{0, 1, kv_head * group, group}, of_keys{0, length, kv_head, 1};
        const Mask mask = selected_mask(result.blocks, kv_head, group, length, length - 1, own.block_size);
        put(attention(inputs(of_group.of(query), of_keys.of(keys), of_keys.of(values)), mask).output, sparse_o,
            kv_head * group);
      }
      const AttentionInputs in = inputs(query, keys, values);
      put(attention(in, Mask::full(in.shape())).output, full_o, 0);
      blocks.push_back(std::move(result.blocks));
    }
    compare("compressed_o", compressed_o);
    compare("sparse_o", sparse_o);
    compare("full_o", full_o);
    compare_blocks(blocks);
  }

  // --- modules -------------------------------------------------------------------------------------------------------

  /// Runs the prompts, then the decode steps of all sequences, through the caches.
  void infer() {
    const NsaConfig own = config();
    const Rope rotation = rope();
    const Index kv_heads = number("num_kv_heads"), heads = number("num_q_heads"), d = number("head_dim");
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("q").size(0));
    const std::size_t sequences = cu.size() - 1;
    const Index steps = number("num_decode_steps");
    for (const char* name : {"before_compress_kv_len", "compress_kv_len"})
      require_elements(name, (steps + 1) * static_cast<Index>(sequences));
    require_elements("gate", cu.back() * heads * 3);
    require_elements("gate_decode", steps * static_cast<Index>(sequences) * heads * 3);
    const NsaCompression compression{{find_tensor("compress_key"), find_tensor("intra_block_pe")},
                                     {find_tensor("compress_value"), std::nullopt}};
    std::vector<KvCache> caches;
    std::vector<NsaCache> compressed;
    const Context one_thread(1);
    for (std::size_t i = 0; i < sequences; ++i) {
      caches.emplace_back(KvCacheShape{1, kv_heads, d, d, number("max_length"), DType::f32});
      compressed.emplace_back(own, kv_heads, d);
    }
    const auto extend = [&](std::size_t i, const TensorView& q, const TensorView& k, const TensorView& v,
                            std::span<const float> gates) {
      caches[i].extend(std::vector<std::int32_t>(static_cast<std::size_t>(q.size(0))));
      return nsa_extend(q, k, v, gates, {&caches[i], 0, &compressed[i]}, compression, rotation, own, one_thread);
    };
    const auto compare_lengths = [&](Index step) {
      for (const bool pending : {false, true}) {
        const char* name = pending ? "before_compress_kv_len" : "compress_kv_len";
        const auto recorded = rows_of(values<std::int32_t>(name), step, step + 1, static_cast<Index>(sequences));
        for (std::size_t i = 0; i < sequences; ++i) {
          Index expected = recorded[i];
          // The reference drops what a decode step used up when the next step begins; ours at once.
          if (pending && step > 0 && expected == own.kernel_size) expected -= own.kernel_stride;
          const Index length = pending ? compressed[i].pending_length() : compressed[i].compressed_length();
          if (length != expected)
            fail(fmt::format("{} of sequence {} after step {} is {}, recorded is {}", name, i, step, length, expected));
        }
      }
    };
    for (std::size_t i = 0; i < sequences; ++i) {
      const auto part = [&](const char* name) { return tensor(name).slice(0, cu[i], cu[i + 1]); };
      const auto gates = rows_of(values<float>("gate"), cu[i], cu[i + 1], heads * 3);
      compare_part("o_prefill", extend(i, part("q"), part("k"), part("v"), gates).span<float>(), cu[i] * heads * d);
    }
    compare_lengths(0);
    for (Index step = 0; step < steps; ++step) {
      for (std::size_t i = 0; i < sequences; ++i) {
        const auto sequence = static_cast<Index>(i), at = step * static_cast<Index>(sequences) + sequence;
        const auto row = [&](const char* name) { return entry(tensor(name), step).slice(0, sequence, sequence + 1); };
        const auto gates = rows_of(values<float>("gate_decode"), at, at + 1, heads * 3);
        const Tensor o = extend(i, row("q_decode"), row("k_decode"), row("v_decode"), gates);
        compare_part("o_decode_consistent", o.span<float>(), at * heads * d);
        if (decoding_comparable(caches[i].length(), own))
          compare_part("o_decode_repo", o.span<float>(), at * heads * d);
      }
      compare_lengths(step + 1);
    }
    const TensorView& final_cache = tensor("final_compress_cache");
    for (std::size_t i = 0; i < sequences; ++i) {
      const auto first = static_cast<Index>(i) * final_cache.stride(1);
      const auto size = static_cast<std::size_t>(compressed[i].compressed_length() * kv_heads * d);
      const auto elements = [&](const TensorView& view) {
        return std::span(static_cast<const float*>(view.data), size);
      };
      compare_part("final_compress_cache", elements(compressed[i].compressed_keys()), first);
      compare_part("final_compress_cache", elements(compressed[i].compressed_values()), final_cache.stride(0) + first);
    }
  }

  void module() {
    const NsaShape shape{config(), number("hidden_size"), number("num_q_heads"), number("num_kv_heads"),
                         number("head_dim")};
    const Weights weights = Weights::from_file(tensors(), "weights.");
    WeightReader reader(weights);
    const NsaWeights own = read_nsa_weights(reader, "", shape);
    reader.finish();
    const NativeSparseAttention module(shape, rope(), own);
    const NsaTape tape = module.forward(tensor("x"), integers<Index>("cu_seqlens"));
    compare("y", tape.output);
    compare("gate", tape.gates);
    compare("compressed_k_roped", tape.compressed_keys.data);
    compare("compressed_v", tape.compressed_values.data);
    compare_integers("compressed_cu_seqlens", tape.compressed_keys.cu_seqlens);
    std::vector<SelectedBlocks> blocks;
    for (std::size_t i = 0; i < tape.branches.size(); ++i) {
      const NsaBranches& branches = tape.branches[i];
      const Index first = tape.cu_seqlens[i] * shape.heads * shape.head_dim;
      compare_part("compressed_o", branches.compressed.output.span<float>(), first);
      compare_part("sparse_o", branches.selected.span<float>(), first);
      compare_part("window_o", branches.window.span<float>(), first);
      blocks.push_back(branches.compressed.blocks);
    }
    compare_blocks(blocks);
    const NsaGradients gradients = module.backward(tape, tensor("dy"));
    compare("dx", gradients.x);
    for (const auto& [name, gradient] : gradients.weights) compare("grads." + name, gradient);
  }

  void self_attention() {
    const auto weight = [&](const char* name) { return tensor(std::string("weights.proj_") + name + ".weight"); };
    const SelfAttention module(number("head_dim"), rope(), {weight("q"), weight("k"), weight("v"), weight("o")});
    const SelfAttentionTape tape = module.forward(tensor("x"), integers<Index>("cu_seqlens"));
    compare("y", tape.output);
    const SelfAttentionGradients gradients = module.backward(tape, tensor("dy"));
    compare("dx", gradients.x);
    compare("grads.proj_q.weight", gradients.q_proj);
    compare("grads.proj_k.weight", gradients.k_proj);
    compare("grads.proj_v.weight", gradients.v_proj);
    compare("grads.proj_o.weight", gradients.o_proj);
  }

  void toy_model() {
    const Decoder decoder(model(), Weights::from_file(tensors(), "weights."));
    const std::vector<Index> cu = offsets("cu_seqlens", tensor("input_ids").elements());
    const auto ids = integers<std::int32_t>("input_ids"), repo_tokens = integers<std::int32_t>("generated_tokens_repo"),
               own_tokens = integers<std::int32_t>("generated_tokens_recompute");
    std::vector<std::vector<std::int32_t>> prompts;
    for (std::size_t i = 0; i + 1 < cu.size(); ++i) prompts.emplace_back(ids.begin() + cu[i], ids.begin() + cu[i + 1]);
    const Index vocabulary = number("vocab_size");
    const auto new_tokens = static_cast<std::size_t>(number("num_new_tokens"));
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      DecoderState state = decoder.start(static_cast<Index>(prompts[i].size() + new_tokens));
      Tensor logits = decoder.forward(prompts[i], state);
      compare_part("logits", logits.span<float>(), cu[i] * vocabulary);
      // Feeds the recorded tokens one by one, and compares the logits that chose each.
      for (std::size_t at = i * new_tokens; at < (i + 1) * new_tokens; ++at) {
        const std::span<const float> row = logits.span<float>().last(static_cast<std::size_t>(vocabulary));
        compare_part("recompute_logits_forced", row, static_cast<Index>(at) * vocabulary);
        if (!decoder.config().nsa || decoding_comparable(state.length(), *decoder.config().nsa))
          compare_part("decode_logits_repo", row, static_cast<Index>(at) * vocabulary);
        logits = decoder.forward(std::span(&repo_tokens.at(at), 1), state);
      }
    }
    const Generation generation = generate(decoder, prompts, {.max_new_tokens = static_cast<Index>(new_tokens)});
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      for (std::size_t step = 0; step < new_tokens; ++step) {
        if (generation.tokens[i].at(step) != own_tokens.at(i * new_tokens + step))
          fail(fmt::format("generated token {} of sequence {} differs", step, i));
      }
    }
  }

  /// Whether what the reference's cached decoding recorded can be compared. Once the context exceeds the window, that
  /// path sees one key less than the reference's forward pass; ours follows one rule in both.
  bool decoding_comparable(Index length, const NsaConfig& config) {
    const bool within = length <= config.window_size;
    beyond_window_ |= !within;
    return within;
  }

  bool beyond_window_ = false;
};

}  // namespace

Report replay_nsa(const Case& file) { return NsaCase(file).run(); }

}  // namespace reticle::golden
