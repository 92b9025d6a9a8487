#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "sec_grpo/philox.h"
#include "sec_grpo/softmax_weights.h"

using sec_grpo::SoftmaxWeights;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double probability(const SoftmaxWeights& softmax, std::size_t arm) {
  return static_cast<double>(softmax.tree().weight(arm)) /
         static_cast<double>(softmax.tree().total());
}

// The quantisation of w to integers of at least 1 with total >= 2^(s-1): at most 2 K / 2^s.
void check_is_softmax(const SoftmaxWeights& softmax) {
  const std::size_t num_arms = softmax.num_arms();
  double largest = -kInfinity;
  for (std::size_t arm = 0; arm < num_arms; ++arm) {
    if (!softmax.is_empty(arm)) largest = std::fmax(largest, softmax.scores()[arm]);
  }
  std::vector<double> expected(num_arms);
  double sum = 0;
  for (std::size_t arm = 0; arm < num_arms; ++arm) {
    if (softmax.is_empty(arm)) continue;
    expected[arm] = std::exp((softmax.scores()[arm] - largest) / softmax.temperature());
    sum += expected[arm];
  }
  for (std::size_t arm = 0; arm < num_arms; ++arm) {
    CHECK(std::fabs(probability(softmax, arm) - expected[arm] / sum) <
          2.0 * static_cast<double>(num_arms) * 0x1p-40 + 1e-14);
    const bool has_weight = !softmax.is_empty(arm) && std::isfinite(softmax.scores()[arm]);
    CHECK((softmax.tree().weight(arm) >= 1) == has_weight);
  }
}

// Random updates, with jumps up and falls of the maximum, stay the softmax of the scores; and a
// restored copy has the same weights bit for bit.
void test_random_updates(double temperature) {
  constexpr std::size_t kArms = 37;
  std::vector<std::uint8_t> is_empty(kArms, 0);
  is_empty[5] = 1;
  SoftmaxWeights softmax(is_empty);
  CHECK(softmax.tree().weight(5) == 0 && softmax.tree().weight(6) == std::uint64_t{1} << 40);
  softmax.assign(std::vector<double>(kArms, 0.0), temperature);
  for (std::uint32_t round = 0; round < 3000; ++round) {
    sec_grpo::PhiloxWords words({round, 0, 0, 0}, {8, 8});
    auto arm = static_cast<std::int64_t>(words() % kArms);
    if (arm == 5) arm = 6;
    const double spread = round % 100 == 0 ? 50.0 : 1.0;
    const double score = spread * static_cast<double>(words() >> 11) * 0x1p-53;
    softmax.update(&arm, &score, 1);
    check_is_softmax(softmax);
    SoftmaxWeights restored(is_empty);
    restored.restore(softmax.scores(), temperature, softmax.ref());
    for (std::size_t other = 0; other < kArms; ++other) {
      CHECK(restored.tree().weight(other) == softmax.tree().weight(other));
    }
  }
}

// Without a falling ref every weight would sit at the floor of 1 and the choice turn uniform.
void test_ref_comes_down() {
  SoftmaxWeights softmax(std::vector<std::uint8_t>(3, 0));
  softmax.assign({100.0, 0.0, -1.0}, 1.0);
  CHECK(softmax.ref() == 100.0);
  CHECK(softmax.tree().weight(1) == 1 && softmax.tree().weight(2) == 1);
  const std::int64_t arm = 0;
  const double score = -2.0;
  softmax.update(&arm, &score, 1);
  CHECK(softmax.ref() == 0.0);
  check_is_softmax(softmax);
}

// ref moves at the stated thresholds only: up past ref + temperature ln 2.
void test_ref_goes_up_past_one_doubling() {
  SoftmaxWeights softmax(std::vector<std::uint8_t>(2, 0));
  softmax.assign({0.0, 0.0}, 0.5);
  const std::int64_t arm = 0;
  double score = 0.34;
  softmax.update(&arm, &score, 1);
  CHECK(softmax.ref() == 0.0);
  score = 0.35;
  softmax.update(&arm, &score, 1);
  CHECK(softmax.ref() == 0.35);
}

void test_zero_probability_and_extremes() {
  SoftmaxWeights softmax(std::vector<std::uint8_t>{0, 0, 1});
  softmax.assign({-kInfinity, 3.0, 0.0}, 1e-300);
  CHECK(softmax.tree().weight(0) == 0 && softmax.tree().weight(2) == 0);
  CHECK(softmax.tree().total() == softmax.tree().weight(1));
  softmax.assign({1e308, -1e308, 0.0}, 1e-300);
  CHECK(softmax.tree().weight(0) == std::uint64_t{1} << 40 && softmax.tree().weight(1) == 1);
  softmax.assign({1e308, -1e308, 0.0}, 1e300);
  CHECK(softmax.tree().weight(1) == 1);
  softmax.assign({1.0, 2.0, 0.0}, 1e300);
  CHECK(softmax.tree().weight(0) == softmax.tree().weight(1));
}

void test_check() {
  const SoftmaxWeights softmax(std::vector<std::uint8_t>{0, 0, 1});
  const double nan = std::numeric_limits<double>::quiet_NaN();
  softmax.check({0.0, -kInfinity, -kInfinity}, 1.0);
  CHECK_THROWS(softmax.check({0.0, nan, 0.0}, 1.0), std::invalid_argument, "arm 1");
  CHECK_THROWS(softmax.check({0.0, kInfinity, 0.0}, 1.0), std::invalid_argument, "arm 1");
  CHECK_THROWS(softmax.check({-kInfinity, -kInfinity, 0.0}, 1.0), std::invalid_argument,
               "at least one");
  CHECK_THROWS(softmax.check({0.0, 0.0}, 1.0), std::invalid_argument, "one score an arm");
  for (const double temperature : {0.0, -1.0, nan, kInfinity}) {
    CHECK_THROWS(softmax.check({0.0, 0.0, 0.0}, temperature), std::invalid_argument, "temperature");
  }
}

int main() {
  test_random_updates(1.0);
  test_random_updates(0.02);
  test_ref_comes_down();
  test_ref_goes_up_past_one_doubling();
  test_zero_probability_and_extremes();
  test_check();
}
