#include <cstddef>
#include <cstdint>
#include <vector>

#include "check.h"
#include "sec_grpo/bounded.h"
#include "sec_grpo/philox.h"

using sec_grpo::bounded;

void test_wide_product_in_pieces() {
  sec_grpo::PhiloxWords words({1, 0, 0, 0}, {3, 4});
  std::vector<std::uint64_t> values = {0, 1, 0xFFFFFFFFu, 0x100000000u, ~std::uint64_t{0}};
  for (int i = 0; i < 20; ++i) values.push_back(words());
  for (const std::uint64_t a : values) {
    for (const std::uint64_t b : values) {
      const auto expected = sec_grpo::multiply_wide(a, b);
      const auto pieces = sec_grpo::multiply_wide_portable(a, b);
      CHECK(pieces.high == expected.high && pieces.low == expected.low);
    }
  }
}

void test_known_values() {
  const auto constant = [](std::uint64_t word) { return [word] { return word; }; };
  CHECK(bounded(1, constant(12345)) == 0);
  CHECK(bounded(10, constant(~std::uint64_t{0})) == 9);
  // floor((2^63 + 1) * 10 / 2^64) = 5; 2^63 itself is among the words rejected for 10.
  CHECK(bounded(10, constant((std::uint64_t{1} << 63) + 1)) == 5);
}

// For range 3 * 2^62 the words whose low product is below 2^62 are rejected: a quarter of them.
void test_rejection() {
  const std::uint64_t range = std::uint64_t{3} << 62;
  std::size_t calls = 0;
  const std::vector<std::uint64_t> words = {0, (std::uint64_t{1} << 63) + 1};
  const std::uint64_t result = bounded(range, [&] { return words.at(calls++); });
  CHECK(calls == 2);
  CHECK(result == range / 2);
}

// Chi-square over 7 cells, 6 degrees of freedom: 38.26 is exceeded with probability 1e-6.
void test_uniform() {
  constexpr int kDraws = 700000;
  std::vector<int> counts(7);
  for (std::uint32_t i = 0; i < kDraws; ++i) {
    ++counts[bounded(7, sec_grpo::PhiloxWords({i, 0, 0, 0}, {9, 9}))];
  }
  double chi_square = 0;
  for (const int count : counts) {
    const double difference = count - kDraws / 7.0;
    chi_square += difference * difference / (kDraws / 7.0);
  }
  CHECK(chi_square < 38.26);
}

int main() {
  test_wide_product_in_pieces();
  test_known_values();
  test_rejection();
  test_uniform();
}
