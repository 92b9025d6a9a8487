#include "sec_grpo/philox.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace sec_grpo {

#ifdef __SSE2__
namespace {

// Two counters side by side: each 32-bit word in the low half of a 64-bit lane. The high halves
// hold anything, since the multiplication reads low halves only.
struct TwoCounters {
  __m128i word0, word1, word2, word3;
};

TwoCounters load_two(const PhiloxCounter* counters) {
  const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(counters[0].data()));
  const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(counters[1].data()));
  const __m128i low = _mm_unpacklo_epi64(first, second);
  const __m128i high = _mm_unpackhi_epi64(first, second);
  return {low, _mm_srli_epi64(low, 32), high, _mm_srli_epi64(high, 32)};
}

inline void one_round(TwoCounters* state, __m128i key0, __m128i key1) {
  const __m128i product0 = _mm_mul_epu32(_mm_set1_epi64x(0xD2511F53), state->word0);
  const __m128i product1 = _mm_mul_epu32(_mm_set1_epi64x(0xCD9E8D57), state->word2);
  state->word0 = _mm_xor_si128(_mm_srli_epi64(product1, 32), _mm_xor_si128(state->word1, key0));
  state->word2 = _mm_xor_si128(_mm_srli_epi64(product0, 32), _mm_xor_si128(state->word3, key1));
  state->word1 = product1;
  state->word3 = product0;
}

void store_first_words(const TwoCounters& state, std::uint64_t* words) {
  const __m128i low_half = _mm_set1_epi64x(0xFFFFFFFF);
  const __m128i result =
      _mm_or_si128(_mm_and_si128(state.word0, low_half), _mm_slli_epi64(state.word1, 32));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(words), result);
}

}  // namespace
#endif

void first_words(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                 std::uint64_t* words) {
  std::size_t i = 0;
#ifdef __SSE2__
  // Two pairs at once, to fill the latency of the multiplications.
  for (; i + 4 <= count; i += 4) {
    TwoCounters first = load_two(counters + i);
    TwoCounters second = load_two(counters + i + 2);
    std::uint32_t key0 = key[0], key1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const __m128i keys0 = _mm_set1_epi64x(key0);
      const __m128i keys1 = _mm_set1_epi64x(key1);
      one_round(&first, keys0, keys1);
      one_round(&second, keys0, keys1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    store_first_words(first, words + i);
    store_first_words(second, words + i + 2);
  }
#endif
  for (; i < count; ++i) words[i] = PhiloxWords(counters[i], key)();
}

}  // namespace sec_grpo
