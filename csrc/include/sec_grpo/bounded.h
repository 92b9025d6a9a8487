#ifndef SEC_GRPO_BOUNDED_H_
#define SEC_GRPO_BOUNDED_H_

#include <cstdint>

namespace sec_grpo {

struct WideProduct {
  std::uint64_t high;
  std::uint64_t low;
};

// The 128-bit product in 32-bit pieces, for compilers without a 128-bit integer.
constexpr WideProduct multiply_wide_portable(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a_low = a & 0xFFFFFFFFu, a_high = a >> 32;
  const std::uint64_t b_low = b & 0xFFFFFFFFu, b_high = b >> 32;
  const std::uint64_t low = a_low * b_low;
  const std::uint64_t middle = a_high * b_low + (low >> 32);
  const std::uint64_t cross = a_low * b_high + (middle & 0xFFFFFFFFu);
  return {a_high * b_high + (middle >> 32) + (cross >> 32), (cross << 32) | (low & 0xFFFFFFFFu)};
}

inline WideProduct multiply_wide(std::uint64_t a, std::uint64_t b) {
#ifdef __SIZEOF_INT128__
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  return {static_cast<std::uint64_t>(product >> 64), static_cast<std::uint64_t>(product)};
#else
  return multiply_wide_portable(a, b);
#endif
}

// A uniform integer in [0, range), range > 0, without bias: Lemire, "Fast random integer
// generation in an interval" (2019), from 64-bit words. A word is rejected with probability
// below range / 2^64.
template <class Words>
std::uint64_t bounded(std::uint64_t range, Words&& words) {
  WideProduct product = multiply_wide(words(), range);
  if (product.low < range) {
    const std::uint64_t threshold = (std::uint64_t{0} - range) % range;
    while (product.low < threshold) product = multiply_wide(words(), range);
  }
  return product.high;
}

// The same integer, given the first word of `words` ahead of time.
template <class Words>
std::uint64_t bounded_from(std::uint64_t first_word, std::uint64_t range, Words&& words) {
  const WideProduct product = multiply_wide(first_word, range);
  return product.low >= range ? product.high : bounded(range, words);
}

}  // namespace sec_grpo

#endif  // SEC_GRPO_BOUNDED_H_
