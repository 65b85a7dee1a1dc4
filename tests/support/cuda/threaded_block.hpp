// Kernels' bodies run by threads that really are threads, so that what a block that takes turns cannot show comes to
// light: under ThreadSanitizer a missing sync() is a data race, as it is on a GPU; and with copies and products done as
// late as their waits allow, what is read, or written over, too early gives wrong results.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <pthread.h>
#include <thread>
#include <type_traits>
#include <vector>

#include <reticle/core/cuda/block.hpp>

namespace reticle::cuda {

enum class Execution {
  turns,         // a thread after another, see HostBlock
  threads,       // threads; copies and products are done when they are begun
  threads_late,  // ... when they are waited for
};
/// What run_block does.
inline Execution execution = Execution::turns;

/// Changes it for a scope.
class ExecutedBy {
 public:
  explicit ExecutedBy(Execution how) { execution = how; }
  ExecutedBy(const ExecutedBy&) = delete;
  ExecutedBy& operator=(const ExecutedBy&) = delete;
  ~ExecutedBy() { execution = Execution::turns; }
};

class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, static_cast<unsigned>(threads)); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

/// What the threads of a block share beside its memory: barriers, and places to exchange registers at.
struct Team {
  struct Slot {
    float number = 0;
    std::int64_t count = 0;
    const void* row = nullptr;
    std::uint32_t registers[6] = {};
  };
  Team(int count, bool copies_late) : threads(count), late(copies_late), all(count), slots(extent_of(count)) {
    for (int warp = 0; warp < count / kWarp; ++warp) warps.push_back(std::make_unique<Barrier>(kWarp));
  }
  static std::size_t extent_of(int count) { return static_cast<std::size_t>(count); }

  int threads;
  bool late;
  Barrier all;
  std::vector<std::unique_ptr<Barrier>> warps;
  std::vector<Slot> slots;
};

/// One thread of a block; see DeviceBlock.
class ThreadedBlock {
 public:
  template <class T>
  struct PerThread {
    T value{};
    explicit PerThread(const ThreadedBlock&) {}
    T& operator[](int) { return value; }
  };

  ThreadedBlock(Team& team, int thread) : team_(team), thread_(thread) {}

  int threads() const { return team_.threads; }
  template <class F>
  void each(F&& f) const {
    f(thread_);
  }
  void sync() const { team_.all.wait(); }

  template <int lanes, class T, class Of>
  void sum_over(PerThread<T>& x, Of&& of) const {
    combine_over<lanes>(of(x.value), [](float a, float b) { return a + b; });
  }
  template <int lanes>
  void sum_over(PerThread<float>& x) const {
    sum_over<lanes>(x, [](float& own) -> float& { return own; });
  }
  template <int lanes, class T, class Of>
  void max_over(PerThread<T>& x, Of&& of) const {
    combine_over<lanes>(of(x.value), [](float a, float b) { return std::max(a, b); });
  }

  template <bool transposed, class RowOf, class To>
  void load_matrices(RowOf&& row_of, To&& to) const {
    own().row = row_of(thread_);
    exchange([&] {
      const int lane = thread_ % kWarp;
      for (int matrix = 0; matrix < 4; ++matrix) {
        std::uint16_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int row = transposed ? lane % 4 * 2 + i : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + i;
          std::memcpy(&pair[i], static_cast<const std::uint16_t*>(of_lane(matrix * 8 + row).row) + column, 2);
        }
        to(thread_)[matrix] = pair[0] | static_cast<std::uint32_t>(pair[1]) << 16;
      }
    });
  }
  template <class T, class C, class A, class B>
  void multiply_add(C&& c_of, A&& a_of, B&& b_of) const {
    std::memcpy(own().registers, a_of(thread_), 16);
    std::memcpy(own().registers + 4, b_of(thread_), 8);
    exchange([&] {
      const int lane = thread_ % kWarp;
      for (int piece = 0; piece < 4; ++piece) {
        const int row_half = piece / 2, column = lane % 4 * 2 + piece % 2;
        for (int k = 0; k < 16; ++k) {
          const std::uint32_t a = of_lane(lane / 4 * 4 + k % 8 / 2).registers[row_half + k / 8 * 2],
                              b = of_lane(column * 4 + k % 8 / 2).registers[4 + k / 8];
          c_of(thread_)[piece] += element<T>(a, k % 2) * element<T>(b, k % 2);
        }
      }
    });
  }
  template <class T, bool transposed, bool accumulate, class C, class A>
  void multiply_panel(C&& c_of, A&& a_of, const T* panel, int step) const {
    float* const c = c_of(thread_);
    const std::uint32_t* const a = a_of(thread_);
    products_.begin(team_.late, [this, c, a, panel, step] {
      std::memcpy(own().registers, a, 16);
      exchange([&] {
        for (int i = 0; i < 32; ++i) {
          const int column = i / 4 * 8 + thread_ % 4 * 2 + i % 2;
          float sum = accumulate ? c[i] : 0;
          for (int k = 0; k < 16; ++k) {
            const std::uint32_t pair = of_lane(thread_ % kWarp / 4 * 4 + k % 8 / 2).registers[i % 4 / 2 + k / 8 * 2];
            sum += element<T>(pair, k % 2) * panel_element<transposed>(panel, step, k, column);
          }
          c[i] = sum;
        }
      });
    });
  }
  void open_products() const {}
  void close_products() const { products_.close(); }
  template <int pending>
  void wait_products() const {
    products_.wait(pending);
  }
  template <int n, class Of>
  void settle(Of&&) const {}
  void publish() const {}

  void copy_16(void* to, const void* from, bool there) const {
    copies_.begin(team_.late, [to, from, there] {
      if (there) {
        std::memcpy(to, from, 16);
      } else {
        std::memset(to, 0, 16);
      }
    });
  }
  void commit() const { copies_.close(); }
  template <int pending>
  void wait() const {
    copies_.wait(pending);
  }

  template <class T>
  T exclusive_scan(PerThread<T>& count, T*) const {
    own().count = static_cast<std::int64_t>(count.value);
    sync();
    std::int64_t before = 0, all = 0;
    for (int thread = 0; thread < threads(); ++thread) {
      const std::int64_t of = team_.slots[Team::extent_of(thread)].count;
      before += thread < thread_ ? of : 0;
      all += of;
    }
    sync();
    count.value = static_cast<T>(before);
    return static_cast<T>(all);
  }
  int add(int* to, int value) const { return std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed); }
  void add(std::uint64_t* to, std::uint64_t value) const {
    std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
  }
  void set_bits(std::uint32_t* in, std::uint32_t bits) const {
    std::atomic_ref(*in).fetch_or(bits, std::memory_order_relaxed);
  }
  void keep_max(std::uint32_t* in, std::uint32_t value) const { keep(in, value, std::greater<>()); }
  void keep_min(std::int32_t* in, std::int32_t value) const { keep(in, value, std::less<>()); }
  bool last_to_arrive(int* counter, int blocks, int* scratch) const {
    sync();
    if (thread_ == 0) {
      *scratch = (*counter)++;
      if (*scratch == blocks - 1) *counter = 0;
    }
    sync();
    return *scratch == blocks - 1;
  }

 private:
  /// Groups of things that are begun and waited for.
  class Pipeline {
   public:
    void begin(bool late, std::function<void()> work) {
      if (late) {
        open_.push_back(std::move(work));
      } else {
        work();
      }
    }
    void close() { groups_.push_back(std::exchange(open_, {})); }
    void wait(int pending) {
      while (groups_.size() > static_cast<std::size_t>(pending)) {
        for (const std::function<void()>& work : groups_.front()) work();
        groups_.erase(groups_.begin());
      }
    }

   private:
    std::vector<std::function<void()>> open_;
    std::vector<std::vector<std::function<void()>>> groups_;
  };

  Team::Slot& own() const { return team_.slots[Team::extent_of(thread_)]; }
  const Team::Slot& of_lane(int lane) const { return team_.slots[Team::extent_of(thread_ / kWarp * kWarp + lane)]; }
  /// Reads what the warp's lanes have put into their slots.
  template <class Read>
  void exchange(Read&& read) const {
    Barrier& warp = *team_.warps[Team::extent_of(thread_ / kWarp)];
    warp.wait();
    read();
    warp.wait();
  }
  template <int lanes, class Combine>
  void combine_over(float& x, Combine&& combine) const {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      own().number = x;
      exchange([&] { x = combine(x, of_lane(thread_ % kWarp ^ offset).number); });
    }
  }
  template <class T>
  static float element(std::uint32_t pair, int which) {
    return to_float(T{static_cast<std::uint16_t>(pair >> (16 * which))});
  }
  template <class T, class Better>
  static void keep(T* in, T value, Better better) {
    std::atomic_ref<T> kept(*in);
    T now = kept.load(std::memory_order_relaxed);
    while (better(value, now) && !kept.compare_exchange_weak(now, value, std::memory_order_relaxed)) {
    }
  }

  Team& team_;
  int thread_;
  mutable Pipeline copies_, products_;
};

/// Runs body(block) for one block of so many threads, by `execution`. Shared memory holds nothing useful before.
template <class Shared, class Body>
void run_block(int threads, Shared& shared, Body&& body) {
  static_assert(std::is_trivially_copyable_v<Shared>);
  std::memset(static_cast<void*>(&shared), 0xA5, sizeof(shared));
  if (execution == Execution::turns) return body(HostBlock(threads));
  Team team(threads, execution == Execution::threads_late);
  std::vector<std::thread> workers;
  for (int thread = 0; thread < threads; ++thread)
    workers.emplace_back([&team, &body, thread] { body(ThreadedBlock(team, thread)); });
  for (std::thread& worker : workers) worker.join();
}

}  // namespace reticle::cuda
