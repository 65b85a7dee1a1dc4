#include <reticle/core/base/context.hpp>

namespace reticle {
namespace {

const std::shared_ptr<ThreadPool>& process_pool() {
  static const auto& pool = *new std::shared_ptr<ThreadPool>(std::make_shared<ThreadPool>());
  return pool;
}

}  // namespace

Context::Context() : pool(process_pool()) {}
Context::Context(int threads) : pool(std::make_shared<ThreadPool>(threads)) {}

}  // namespace reticle
