#ifndef SEC_GRPO_HUGE_VECTOR_H_
#define SEC_GRPO_HUGE_VECTOR_H_

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sec_grpo {

// Memory for random touches. It begins at a cache line, so that an element whose size divides 64
// never takes two; from 2 MiB on it lies in huge pages where the system has them, since on pages
// of 4 KiB most of the time would go to TLB misses.
template <class T>
struct HugeAllocator {
  using value_type = T;

  HugeAllocator() = default;
  template <class U>
  HugeAllocator(const HugeAllocator<U>& /*other*/) {}

  T* allocate(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_array_new_length();
    const std::size_t bytes = count * sizeof(T);
    void* begin = ::operator new(bytes, alignment(count));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // Advice only: a kernel without huge pages ignores it.
    if (bytes >= kHugePage) madvise(begin, bytes & ~(kHugePage - 1), MADV_HUGEPAGE);
#endif
    return static_cast<T*>(begin);
  }

  void deallocate(T* begin, std::size_t count) { ::operator delete(begin, alignment(count)); }

  // Without a value an element is left as it is: zeroing what is written next costs as much again.
  template <class U>
  void construct(U* place) noexcept(std::is_nothrow_default_constructible_v<U>) {
    ::new (static_cast<void*>(place)) U;
  }
  template <class U, class... Arguments>
  void construct(U* place, Arguments&&... arguments) {
    ::new (static_cast<void*>(place)) U(std::forward<Arguments>(arguments)...);
  }

  friend bool operator==(const HugeAllocator&, const HugeAllocator&) { return true; }
  friend bool operator!=(const HugeAllocator&, const HugeAllocator&) { return false; }

 private:
  static constexpr std::size_t kCacheLine = 64;
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  static std::align_val_t alignment(std::size_t count) {
    return std::align_val_t{count * sizeof(T) >= kHugePage ? kHugePage : kCacheLine};
  }
};

template <class T>
using HugeVector = std::vector<T, HugeAllocator<T>>;

}  // namespace sec_grpo

#endif  // SEC_GRPO_HUGE_VECTOR_H_
