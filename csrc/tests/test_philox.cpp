#include <vector>

#include "check.h"
#include "sec_grpo/philox.h"

using sec_grpo::philox4x32;
using sec_grpo::PhiloxCounter;
using sec_grpo::PhiloxKey;

// The known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
void test_known_answers() {
  CHECK((philox4x32({0, 0, 0, 0}, {0, 0}) ==
         PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  CHECK((philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
         PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  CHECK((philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
         PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

void test_words_walk_through_the_blocks() {
  const PhiloxKey key = sec_grpo::philox_key(0x0123456789abcdefu);
  CHECK((key == PhiloxKey{0x89abcdef, 0x01234567}));
  sec_grpo::PhiloxWords words({5, 6, 7, 8}, key);
  for (std::uint32_t attempt = 8; attempt < 11; ++attempt) {
    const PhiloxCounter block = philox4x32({5, 6, 7, attempt}, key);
    CHECK(words() == (block[0] | std::uint64_t{block[1]} << 32));
    CHECK(words() == (block[2] | std::uint64_t{block[3]} << 32));
  }
}

std::uint64_t first_word(PhiloxCounter counter, PhiloxKey key) {
  return sec_grpo::PhiloxWords(counter, key)();
}

void test_purposes_never_share_a_block() {
  const PhiloxKey key{1, 2};
  // The same numbers in every other word: only the purpose differs.
  CHECK(first_word(sec_grpo::arm_counter(0), key) !=
        first_word(sec_grpo::prompt_counter(0, 0, 0), key));
  // Epochs that differ above bit 32 only.
  CHECK(first_word(sec_grpo::prompt_counter(3, 1, 4), key) !=
        first_word(sec_grpo::prompt_counter(3, (std::uint64_t{1} << 32) + 1, 4), key));
}

// The vectorised words are those of the plain function, for every remainder of the step of eight.
void test_first_words() {
  for (std::size_t count = 0; count < 26; ++count) {
    std::vector<PhiloxCounter> counters;
    for (std::uint32_t i = 0; i < count; ++i) {
      counters.push_back(philox4x32({i, ~i, 7, 8}, {1, 2}));
    }
    const PhiloxKey key{0xFFFFFFF0u, 0x80000001u};
    std::vector<std::uint64_t> words(count + 1, 42);
    sec_grpo::first_words(counters.data(), count, key, words.data());
    for (std::size_t i = 0; i < count; ++i) CHECK(words[i] == first_word(counters[i], key));
    CHECK(words[count] == 42);
  }
}

int main() {
  test_first_words();
  test_known_answers();
  test_words_walk_through_the_blocks();
  test_purposes_never_share_a_block();
}
