#include "sec_grpo/philox.h"

#include "sec_grpo/cpu.h"

#ifdef SEC_GRPO_AVX2
#include <immintrin.h>
#endif

namespace sec_grpo {

void first_words_portable(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                          std::uint64_t* words) {
  for (std::size_t i = 0; i < count; ++i) words[i] = PhiloxWords(counters[i], key)();
}

#ifdef SEC_GRPO_AVX2
namespace {

// Four counters side by side: each 32-bit word in the low half of a 64-bit lane, in the order 0, 2,
// 1, 3. The high halves hold anything, since the multiplication reads low halves only.
struct FourCounters {
  __m256i word0, word1, word2, word3;
};

SEC_GRPO_AVX2 inline FourCounters load_four(const PhiloxCounter* counters) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(counters[0].data()));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(counters[2].data()));
  const __m256i low = _mm256_unpacklo_epi64(first, second);
  const __m256i high = _mm256_unpackhi_epi64(first, second);
  return {low, _mm256_srli_epi64(low, 32), high, _mm256_srli_epi64(high, 32)};
}

SEC_GRPO_AVX2 inline void one_round(FourCounters* state, __m256i key0, __m256i key1) {
  const __m256i product0 = _mm256_mul_epu32(_mm256_set1_epi64x(0xD2511F53), state->word0);
  const __m256i product1 = _mm256_mul_epu32(_mm256_set1_epi64x(0xCD9E8D57), state->word2);
  state->word0 =
      _mm256_xor_si256(_mm256_srli_epi64(product1, 32), _mm256_xor_si256(state->word1, key0));
  state->word2 =
      _mm256_xor_si256(_mm256_srli_epi64(product0, 32), _mm256_xor_si256(state->word3, key1));
  state->word1 = product1;
  state->word3 = product0;
}

SEC_GRPO_AVX2 inline void store_first_words(const FourCounters& state, std::uint64_t* words) {
  const __m256i low_half = _mm256_set1_epi64x(0xFFFFFFFF);
  const __m256i result =
      _mm256_or_si256(_mm256_and_si256(state.word0, low_half), _mm256_slli_epi64(state.word1, 32));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words),
                      _mm256_permute4x64_epi64(result, _MM_SHUFFLE(3, 1, 2, 0)));
}

// Two fours at once, to fill the latency of the multiplications; the words of the last
// count % 8 counters are left to the caller.
SEC_GRPO_AVX2 void first_words_avx2(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                                    std::uint64_t* words) {
  for (std::size_t i = 0; i + 8 <= count; i += 8) {
    FourCounters first = load_four(counters + i);
    FourCounters second = load_four(counters + i + 4);
    std::uint32_t key0 = key[0], key1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const __m256i keys0 = _mm256_set1_epi64x(key0);
      const __m256i keys1 = _mm256_set1_epi64x(key1);
      one_round(&first, keys0, keys1);
      one_round(&second, keys0, keys1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    store_first_words(first, words + i);
    store_first_words(second, words + i + 4);
  }
}

}  // namespace
#endif

void first_words(const PhiloxCounter* counters, std::size_t count, PhiloxKey key,
                 std::uint64_t* words) {
  std::size_t done = 0;
#ifdef SEC_GRPO_AVX2
  if (has_avx2()) {
    first_words_avx2(counters, count, key, words);
    done = count - count % 8;
  }
#endif
  first_words_portable(counters + done, count - done, key, words + done);
}

}  // namespace sec_grpo
