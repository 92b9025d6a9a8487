#ifndef SEC_GRPO_CPU_H_
#define SEC_GRPO_CPU_H_

// Functions marked SEC_GRPO_AVX2 are compiled for AVX2 whatever the flags, and called only where
// has_avx2() says that the processor has it. Beside each stands a portable one that gives the same
// integers.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(SEC_GRPO_PORTABLE)
#define SEC_GRPO_AVX2 __attribute__((target("avx2,popcnt")))
#endif

namespace sec_grpo {

#ifdef SEC_GRPO_AVX2
inline bool has_avx2() {
  static const bool result = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
  return result;
}
#endif

}  // namespace sec_grpo

#endif  // SEC_GRPO_CPU_H_
