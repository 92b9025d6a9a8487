#ifndef SEC_GRPO_PREFETCH_H_
#define SEC_GRPO_PREFETCH_H_

namespace sec_grpo {

inline void prefetch_for_write(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 1);
#else
  (void)address;
#endif
}

inline void prefetch_for_read(const void* address) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(address, 0);
#else
  (void)address;
#endif
}

}  // namespace sec_grpo

#endif  // SEC_GRPO_PREFETCH_H_
