// Keeps attention within documents that are packed into one sequence: block-diagonal masks.
#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <reticle/core/masker.hpp>

namespace reticle::maskers {

struct DocumentConfig {
  std::vector<Index> lengths;

  static constexpr const char* docs[] = {
      "keys of each document, in order; what comes after them is one more document; empty: the extra tensor "
      "document_ids says which document each key is of"};
  void validate() const {
    for (const Index length : lengths) require_count(length, "lengths");
  }
};

class Document final : public Masker {
 public:
  explicit Document(const DocumentConfig& config) : lengths_(config.lengths) {}

  Mask select(const AttentionInputs& inputs, const Mask&, LayerState&, const Context& context) const override {
    const std::vector<Sequence> sequences = lengths_.empty() ? from_ids(inputs) : from_lengths(inputs);
    MaskShape shape = inputs.shape();
    shape.shared_heads = true;
    shape.shared_batch = sequences.size() == 1;
    return Mask::from_runs(
        shape,
        [&](RowId row, FunctionRef<void(Run)> emit) {
          const Index position = inputs.position(row.query);
          if (position < 0) return;
          const Sequence& sequence = sequences[sequences.size() == 1 ? 0 : static_cast<std::size_t>(row.batch)];
          for (const Run& run : sequence.runs.at(sequence.document[static_cast<std::size_t>(position)])) emit(run);
        },
        context);
  }

 private:
  /// The document of each key, and each document's keys as runs.
  struct Sequence {
    std::vector<Index> document;
    std::map<Index, std::vector<Run>> runs;

    explicit Sequence(std::vector<Index> ids) : document(std::move(ids)) {
      for (std::size_t key = 0; key < document.size(); ++key) {
        std::vector<Run>& document_runs = runs[document[key]];
        const auto at = static_cast<std::int32_t>(key);
        if (!document_runs.empty() && document_runs.back().end == at) {
          ++document_runs.back().end;
        } else {
          document_runs.push_back({at, at + 1, 1});
        }
      }
    }
  };

  std::vector<Sequence> from_lengths(const AttentionInputs& inputs) const {
    std::vector<Index> ids;
    for (std::size_t i = 0; i < lengths_.size(); ++i)
      ids.resize(static_cast<std::size_t>(std::min(inputs.keys_length(), static_cast<Index>(ids.size()) + lengths_[i])),
                 static_cast<Index>(i));
    ids.resize(static_cast<std::size_t>(inputs.keys_length()), static_cast<Index>(lengths_.size()));
    std::vector<Sequence> one;
    one.emplace_back(std::move(ids));
    return one;
  }

  static std::vector<Sequence> from_ids(const AttentionInputs& inputs) {
    const std::optional<TensorView> tensor = inputs.extra("document_ids");
    if (!tensor)
      throw ShapeError("document: lengths is empty and the extra tensor document_ids is missing; expected one of them");
    require_rank(*tensor, 2, "document_ids");
    if ((tensor->dtype != DType::i64 && tensor->dtype != DType::i32) || tensor->size(1) != inputs.keys_length() ||
        (tensor->size(0) != 1 && tensor->size(0) != inputs.batch()))
      throw ShapeError("document_ids: " + tensor->describe() + "; expected I64 or I32 (1 or " +
                       std::to_string(inputs.batch()) + ", " + std::to_string(inputs.keys_length()) + ")");
    std::vector<Sequence> sequences;
    for (Index batch = 0; batch < tensor->size(0); ++batch) {
      std::vector<Index> ids;
      for (Index key = 0; key < inputs.keys_length(); ++key)
        ids.push_back(tensor->dtype == DType::i64 ? *tensor->at<Index>(batch, key)
                                                  : *tensor->at<std::int32_t>(batch, key));
      sequences.emplace_back(std::move(ids));
    }
    return sequences;
  }

  std::vector<Index> lengths_;
};

RETICLE_REGISTER_MASKER("document", Document, DocumentConfig,
                        {.summary = "Keeps attention within documents packed into one sequence (block-diagonal).",
                         .source = "packed training; FlexAttention's document masks",
                         .rule = "keys of the query's own document",
                         .cost = "O(queries + keys) time and memory",
                         .extras = "document_ids (1 or b, sk) I64 or I32, unless lengths is given"});

}  // namespace reticle::maskers
