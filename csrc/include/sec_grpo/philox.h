#ifndef SEC_GRPO_PHILOX_H_
#define SEC_GRPO_PHILOX_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace sec_grpo {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

inline PhiloxKey philox_key(std::uint64_t seed) {
  return {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)};
}

// Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011):
// 128 random bits as a pure function of a 128-bit counter and a 64-bit key.
inline PhiloxCounter philox4x32(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The 64-bit words of one draw: two from the block of `counter`, and two from each next block,
// the last word of the counter (its attempt number) going up by one. Only a rejection in
// `bounded` asks for a second word, so the attempt number stays far below 256.
class PhiloxWords {
 public:
  PhiloxWords(PhiloxCounter counter, PhiloxKey key) : counter_(counter), key_(key) {}

  std::uint64_t operator()() {
    if (has_second_) {
      has_second_ = false;
      return second_;
    }
    const PhiloxCounter block = philox4x32(counter_, key_);
    ++counter_[3];
    second_ = std::uint64_t{block[2]} | (std::uint64_t{block[3]} << 32);
    has_second_ = true;
    return std::uint64_t{block[0]} | (std::uint64_t{block[1]} << 32);
  }

 private:
  PhiloxCounter counter_;
  PhiloxKey key_;
  std::uint64_t second_ = 0;
  bool has_second_ = false;
};

// The last counter word holds the purpose of a draw in its top bit, so that the choice of an
// arm and the choice of a prompt inside it never share a block.

// Counter for the choice of the arm of the `index`-th prompt ever drawn.
inline PhiloxCounter arm_counter(std::uint64_t index) {
  return {static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), 0u, 0u};
}

inline constexpr std::uint64_t kEpochLimit = std::uint64_t{1} << 55;

// Counter for step `cursor` of the shuffle of `arm` in `epoch` (below kEpochLimit).
inline PhiloxCounter prompt_counter(std::uint32_t arm, std::uint64_t epoch, std::uint32_t cursor) {
  const auto epoch_high = static_cast<std::uint32_t>(epoch >> 32);
  return {cursor, arm, static_cast<std::uint32_t>(epoch), 0x80000000u | (epoch_high << 8)};
}

// words[i] = PhiloxWords(counters[i], key)(), eight counters at a time where AVX2 is there.
void first_words(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                 std::uint64_t* words);
void first_words_portable(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                          std::uint64_t* words);

}  // namespace sec_grpo

#endif  // SEC_GRPO_PHILOX_H_
