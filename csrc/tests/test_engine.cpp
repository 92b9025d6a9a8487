#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <vector>

#include "check.h"
#include "sec_grpo/engine.h"

using sec_grpo::Engine;
using sec_grpo::FloatType;
using sec_grpo::GroupArray;
using sec_grpo::Reduction;

std::vector<std::int32_t> striped_codes(std::size_t num_prompts, std::int32_t num_arms) {
  std::vector<std::int32_t> codes(num_prompts);
  for (std::size_t i = 0; i < num_prompts; ++i) {
    codes[i] = static_cast<std::int32_t>(i) % num_arms;
  }
  return codes;
}

// One group of two rollouts, +value and -value, for each prompt.
Reduction reduce(const Engine& engine, const std::vector<std::int64_t>& indices,
                 const std::vector<double>& values) {
  std::vector<double> advantages;
  for (const double value : values) {
    advantages.push_back(value);
    advantages.push_back(-value);
  }
  const GroupArray array{advantages.data(), FloatType::kFloat64, indices.size(), 2};
  return engine.reduce(indices.data(), indices.size(), array, {});
}

void test_td_by_hand() {
  const auto codes = striped_codes(30, 3);
  Engine engine(codes.data(), codes.size(), 3, 1, 0);
  engine.td_update(reduce(engine, {0, 3, 1}, {2.0, 1.2, 0.5}), 0.5, 1.0, false);
  CHECK((engine.scores() == std::vector<double>{0.8, 0.25, 0.0}));
  // Arm 0 is not drawn: the paper's rule keeps it, the authors' code halves it.
  engine.td_update(reduce(engine, {1}, {0.25}), 0.5, 1.0, false);
  CHECK((engine.scores() == std::vector<double>{0.8, 0.25, 0.0}));
  engine.td_update(reduce(engine, {1}, {0.25}), 0.5, 1.0, true);
  CHECK((engine.scores() == std::vector<double>{0.4, 0.25, 0.0}));
  // A change of temperature alone changes the weights.
  engine.td_update(reduce(engine, {1}, {0.25}), 0.5, 0.1, false);
  const auto p = engine.probabilities();
  CHECK(std::fabs(p[0] / p[1] - std::exp(1.5)) < 1e-9);
  CHECK(std::fabs(p[1] / p[2] - std::exp(2.5)) < 1e-9);
}

void test_draws_follow_the_weights() {
  const auto codes = striped_codes(3000, 3);
  Engine engine(codes.data(), codes.size(), 4, 3, 0);
  const double scores[] = {std::log(0.5), std::log(0.3), std::log(0.2), 5.0};
  engine.assign(scores, 4, 1.0);
  constexpr std::size_t kDraws = 100000;
  std::vector<std::int64_t> prompts(kDraws), arms(kDraws);
  engine.draw(kDraws, prompts.data());
  engine.arm_indices(prompts.data(), kDraws, arms.data());
  const double expected[] = {0.5, 0.3, 0.2};
  double chi_square = 0;
  for (std::int64_t arm = 0; arm < 3; ++arm) {
    const double mean = expected[arm] * kDraws;
    const double count = double(std::count(arms.begin(), arms.end(), arm));
    chi_square += (count - mean) * (count - mean) / mean;
  }
  // 2 degrees of freedom: exp(-27.6 / 2) = 1e-6.
  CHECK(chi_square < 27.6);
  CHECK(engine.step() == 1 && engine.summary().prompts_drawn == kDraws);
}

void test_minus_infinity_stays() {
  const auto codes = striped_codes(4, 2);
  Engine engine(codes.data(), codes.size(), 2, 3, 0);
  const double scores[] = {-std::numeric_limits<double>::infinity(), 0.0};
  engine.assign(scores, 2, 1.0);
  engine.td_update(reduce(engine, {0}, {1.0}), 1.0, 1.0, false);
  engine.td_update(reduce(engine, {0}, {1.0}), 1.0, 1.0, true);
  CHECK(engine.probabilities()[0] == 0.0 && engine.probabilities()[1] == 1.0);
}

void test_table() {
  const auto codes = striped_codes(30, 3);
  Engine engine(codes.data(), codes.size(), 4, 1, 0);
  const double scores[] = {0.0, -std::numeric_limits<double>::infinity(), -50.0, 0.0};
  engine.assign(scores, 4, 1.0);
  std::vector<std::int64_t> prompts(25);
  engine.draw(5, prompts.data());
  engine.draw(20, prompts.data());
  engine.record(reduce(engine, {2}, {0.5}));
  const auto table = engine.arm_table();
  CHECK((table.prompts == std::vector<std::int64_t>{10, 10, 10, 0}));
  CHECK((table.draws == std::vector<std::int64_t>{25, 0, 0, 0}));
  CHECK((table.epochs == std::vector<double>{2.5, 0, 0, 0}));
  CHECK((table.last_drawn_step == std::vector<std::int64_t>{1, -1, -1, -1}));
  CHECK(table.abs_advantage[2] == 0.5 && std::isnan(table.abs_advantage[0]));
  CHECK(table.dead_groups[2] == 0.0 && std::isnan(table.reward[2]));
  CHECK(engine.summary().observations == 1);
}

void test_refusals_change_nothing() {
  const auto codes = striped_codes(10, 2);
  Engine engine(codes.data(), codes.size(), 2, 1, 0);
  engine.td_update(reduce(engine, {0}, {0.7}), 0.5, 0.3, false);
  const std::string before = engine.serialize("s", "");
  std::int64_t prompt;
  CHECK_THROWS(engine.draw(0, &prompt), std::invalid_argument, "batch_size");
  const Reduction reduction = reduce(engine, {1}, {0.7});
  for (const double alpha : {0.0, -0.1, 1.1, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK_THROWS(engine.td_update(reduction, alpha, 0.3, false), std::invalid_argument, "alpha");
  }
  CHECK_THROWS(engine.td_update(reduction, 0.5, 0.0, false), std::invalid_argument, "temperature");
  const double scores[] = {0.0, std::numeric_limits<double>::quiet_NaN()};
  CHECK_THROWS(engine.assign(scores, 2, 1.0), std::invalid_argument, "arm 1");
  CHECK_THROWS(engine.assign(scores, 1, 1.0), std::invalid_argument, "one score an arm");
  const std::int64_t outside = 10;
  CHECK_THROWS(engine.arm_indices(&outside, 1, &prompt), std::out_of_range, "indices[0]");
  const auto many = striped_codes(10, 5);
  const Engine other(many.data(), many.size(), 5, 1, 0);
  CHECK_THROWS(engine.record(reduce(other, {4}, {1.0})), std::out_of_range, "2 arms");
  CHECK(engine.serialize("s", "") == before);
}

int main() {
  test_td_by_hand();
  test_draws_follow_the_weights();
  test_minus_infinity_stays();
  test_table();
  test_refusals_change_nothing();
}
