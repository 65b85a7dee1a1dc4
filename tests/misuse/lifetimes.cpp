// Views of what is about to be destroyed, and copies of what has one owner.
#include <utility>

#include <reticle/attention/sparse_attention.hpp>
#include <reticle/core/tensor/tensor.hpp>

namespace {

[[maybe_unused]] void mistakes() {
  reticle::Tensor tensor(reticle::DType::f32, {2, 3});
  reticle::SequenceState state;
#if defined(A_VIEW_OF_A_TEMPORARY_TENSOR)
  // expected: deleted function
  reticle::TensorView view = reticle::Tensor(reticle::DType::f32, {2, 3});
#elif defined(THE_VIEW_METHOD_OF_A_TEMPORARY_TENSOR)
  // expected: deleted function
  const reticle::TensorView& view = reticle::Tensor(reticle::DType::f32, {2, 3}).view();
#elif defined(A_TENSOR_IS_NOT_COPIED_UNSEEN)
  // expected: deleted function
  reticle::Tensor copy = tensor;
#elif defined(A_STATE_IS_FORKED_NOT_COPIED)
  // expected: deleted function
  reticle::SequenceState copy = state;
#elif defined(A_LEASE_IS_NOT_COPIED)
  // expected: deleted function
  const reticle::SequenceState::Lease lease(state);
  reticle::SequenceState::Lease second = lease;
#endif
}

}  // namespace
