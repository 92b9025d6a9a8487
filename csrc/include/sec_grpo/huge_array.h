#ifndef SEC_GRPO_HUGE_ARRAY_H_
#define SEC_GRPO_HUGE_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sec_grpo {

// An array for random touches, in huge pages where the system has them. New elements hold
// anything.
template <class T>
class HugeArray {
  static_assert(std::is_trivial_v<T>);

 public:
  HugeArray() = default;
  explicit HugeArray(std::size_t size) : size_(size), capacity_(size) {
    if (size == 0) return;
    data_.reset(static_cast<T*>(std::malloc(size * sizeof(T))));
    if (!data_) throw std::bad_alloc();
    advise_huge_pages();
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t index) { return data_.get()[index]; }
  const T& operator[](std::size_t index) const { return data_.get()[index]; }

  // Makes room for `size` elements in all, keeping those that are there; doubles at least, so that
  // growing by one costs a constant time on average. Nothing changes when it throws.
  void grow(std::size_t size) {
    if (size > capacity_) {
      HugeArray larger(size > 2 * capacity_ ? size : 2 * capacity_);
      if (size_ > 0) std::memcpy(larger.data(), data(), size_ * sizeof(T));
      *this = std::move(larger);
    }
    size_ = size;
  }

 private:
  struct Free {
    void operator()(T* pointer) const { std::free(pointer); }
  };

  // Random touches of a large array spend most of their time in TLB misses on 4 KiB pages.
  // Advice only: a kernel without huge pages ignores it.
  void advise_huge_pages() {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kHugePage = std::uintptr_t{1} << 21;
    const auto begin = reinterpret_cast<std::uintptr_t>(data_.get());
    const std::uintptr_t first = (begin + kHugePage - 1) & ~(kHugePage - 1);
    const std::uintptr_t last = (begin + size_ * sizeof(T)) & ~(kHugePage - 1);
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }

  std::unique_ptr<T[], Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_HUGE_ARRAY_H_
