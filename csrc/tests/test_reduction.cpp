#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "sec_grpo/reduction.h"

using sec_grpo::ArmCodes;
using sec_grpo::ArmReducer;
using sec_grpo::FloatType;
using sec_grpo::GroupArray;

const std::vector<std::int32_t> kCodes = {0, 1, 2, 1};

template <class T>
GroupArray array_of(const std::vector<T>& values, std::size_t rows, std::size_t columns) {
  return {values.data(), sizeof(T) == 4 ? FloatType::kFloat32 : FloatType::kFloat64, rows, columns};
}

template <class T>
void test_means_by_hand() {
  const ArmCodes codes(kCodes.data(), kCodes.size(), 3);
  ArmReducer reducer(3);
  // Arms 1, 0, 1: mean |A| of arm 1 is (1 + 1 + 0 + 0) / 4, of arm 0 (0.5 + 1.5) / 2.
  const std::vector<std::int64_t> indices = {3, 0, 1};
  const std::vector<T> advantages = {-1, 1, T(0.5), T(-1.5), 0, 0};
  const std::vector<T> rewards = {0, 1, 1, 0, T(0.25), T(0.25)};
  for (int repeat = 0; repeat < 2; ++repeat) {
    const auto result = reducer.reduce(codes, indices.data(), 3, array_of(advantages, 3, 2),
                                       array_of(rewards, 3, 2));
    CHECK((result.arms == std::vector<std::int64_t>{1, 0}));
    CHECK((result.groups == std::vector<std::int64_t>{2, 1}));
    CHECK((result.abs_advantage == std::vector<double>{0.5, 1.0}));
    CHECK((result.reward == std::vector<double>{0.375, 0.5}));
    CHECK((result.dead_groups == std::vector<double>{0.5, 0.0}));
    CHECK(result.batch_abs_advantage == 4.0 / 6.0 && result.batch_reward == 2.5 / 6.0);
    CHECK(result.batch_dead_groups == 1.0 / 3.0);
  }
  // Without rewards a dead group is one without advantage.
  const auto result = reducer.reduce(codes, indices.data(), 3, array_of(advantages, 3, 2), {});
  CHECK((result.dead_groups == std::vector<double>{0.5, 0.0}));
  CHECK(result.reward.empty() && std::isnan(result.batch_reward));
}

void test_every_group_size() {
  const ArmCodes codes(kCodes.data(), kCodes.size(), 3);
  ArmReducer reducer(3);
  const std::int64_t index = 2;
  for (std::size_t columns = 1; columns < 20; ++columns) {
    std::vector<double> values(columns);
    for (std::size_t j = 0; j < columns; ++j) values[j] = j % 2 == 0 ? 1.0 + double(j) : -double(j);
    double expected = 0;
    for (const double value : values) expected += std::fabs(value);
    const auto result = reducer.reduce(codes, &index, 1, array_of(values, 1, columns), {});
    CHECK(result.abs_advantage[0] == expected / double(columns));
  }
}

void test_refusals() {
  const ArmCodes codes(kCodes.data(), kCodes.size(), 3);
  ArmReducer reducer(3);
  const std::vector<std::int64_t> indices = {0, 1};
  const std::vector<double> good = {1, -1, 1, -1};
  const double bad_values[] = {std::numeric_limits<double>::quiet_NaN(),
                               std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity(), 1.1e30, -1.7e308};
  for (const double bad : bad_values) {
    for (std::size_t place = 0; place < 4; ++place) {
      std::vector<double> values = good;
      values[place] = bad;
      const std::string where = place < 2 ? "[0, " : "[1, ";
      CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, array_of(values, 2, 2), {}),
                   std::invalid_argument, "advantages" + where);
      CHECK_THROWS(
          reducer.reduce(codes, indices.data(), 2, array_of(good, 2, 2), array_of(values, 2, 2)),
          std::invalid_argument, "rewards" + where);
    }
  }
  // The sum of a row may be larger, and opposite values do not hide each other.
  const std::vector<double> largest(4, 1e30);
  CHECK(reducer.reduce(codes, indices.data(), 2, array_of(largest, 2, 2), {}).batch_abs_advantage ==
        1e30);
  const std::vector<double> opposite = {1e300, -1e300, 0, 0};
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, {}, array_of(opposite, 2, 2)),
               std::invalid_argument,
               "rewards[0, 0] must be finite and at most 1e30 in size, got 1e+300;");
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, {}, {}), std::invalid_argument, "neither");
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, array_of(good, 4, 1), {}),
               std::invalid_argument, "(4, 1)");
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, array_of(good, 2, 0), {}),
               std::invalid_argument, "(2, 0)");
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 2, array_of(good, 2, 2), array_of(good, 2, 1)),
               std::invalid_argument, "same shape");
  CHECK_THROWS(reducer.reduce(codes, indices.data(), 0, array_of(good, 0, 2), {}),
               std::invalid_argument, "between 1");
  for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{4}}) {
    const std::vector<std::int64_t> wrong = {0, bad};
    CHECK_THROWS(reducer.reduce(codes, wrong.data(), 2, array_of(good, 2, 2), {}),
                 std::out_of_range, "indices[1]");
  }
}

int main() {
  test_means_by_hand<float>();
  test_means_by_hand<double>();
  test_every_group_size();
  test_refusals();
}
