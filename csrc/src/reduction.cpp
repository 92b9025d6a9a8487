#include "sec_grpo/reduction.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "sec_grpo/prefetch.h"

namespace sec_grpo {
namespace {

std::string shape_of(const GroupArray& array) {
  return "(" + std::to_string(array.rows) + ", " + std::to_string(array.columns) + ")";
}

void check_shape(const char* name, const GroupArray& array, std::size_t count) {
  if (!array) return;
  if (array.rows != count || array.columns == 0) {
    throw std::invalid_argument(std::string(name) +
                                " must have shape (B, G) with B = " + std::to_string(count) +
                                ", the number of indices, and G >= 1, got " + shape_of(array));
  }
}

// Four running sums: the order of the additions is fixed by the source, and a row is not one
// long chain of dependent additions.
template <class Value>
double sum_of(const Value& value, std::size_t columns) {
  double lanes[4] = {0.0, 0.0, 0.0, 0.0};
  std::size_t j = 0;
  for (; j + 4 <= columns; j += 4) {
    for (std::size_t lane = 0; lane < 4; ++lane) lanes[lane] += value(j + lane);
  }
  for (std::size_t lane = 0; j < columns; ++j, ++lane) lanes[lane] += value(j);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

template <class T>
double magnitude_of(const T* values, std::size_t columns) {
  return sum_of([=](std::size_t j) { return std::fabs(static_cast<double>(values[j])); }, columns);
}

// `magnitude` is the sum of the absolute values of the row.
template <class T>
void check_row(const char* name, double magnitude, std::size_t row, const T* values,
               std::size_t columns) {
  if (magnitude <= kLargestValue) return;  // NaN is not
  for (std::size_t j = 0; j < columns; ++j) {
    const auto value = static_cast<double>(values[j]);
    if (std::fabs(value) <= kLargestValue) continue;
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    throw std::invalid_argument(std::string(name) + "[" + std::to_string(row) + ", " +
                                std::to_string(j) + "] must be finite and at most 1e30 in size, " +
                                "got " + text + "; nothing of the batch was used");
  }
}

template <class Row, class T>
void summarise_advantages(const T* values, std::size_t rows, std::size_t columns,
                          std::vector<Row>* result) {
  for (std::size_t i = 0; i < rows; ++i, values += columns) {
    const double sum = magnitude_of(values, columns);
    check_row("advantages", sum, i, values, columns);
    (*result)[i] = {sum, sum == 0.0};
  }
}

template <class Row, class T>
void summarise_rewards(const T* values, std::size_t rows, std::size_t columns,
                       std::vector<Row>* result) {
  for (std::size_t i = 0; i < rows; ++i, values += columns) {
    check_row("rewards", magnitude_of(values, columns), i, values, columns);
    const double sum =
        sum_of([=](std::size_t j) { return static_cast<double>(values[j]); }, columns);
    bool is_dead = true;
    for (std::size_t j = 1; j < columns; ++j) is_dead = is_dead && values[j] == values[0];
    (*result)[i] = {sum, is_dead};
  }
}

// Adds one value a row into its arm, then divides by the number of groups times `columns`.
template <class Rows, class Value>
double mean_by_arm(const Rows& rows, const Value& value,
                   const std::vector<std::int32_t>& slot_of_row, std::size_t count,
                   std::size_t columns, const std::vector<std::int64_t>& groups,
                   std::vector<double>* result) {
  result->assign(groups.size(), 0.0);
  double total = 0.0;
  for (std::size_t i = 0; i < count; ++i) {
    const double row_value = value(rows[i]);
    (*result)[static_cast<std::size_t>(slot_of_row[i])] += row_value;
    total += row_value;
  }
  for (std::size_t slot = 0; slot < groups.size(); ++slot) {
    (*result)[slot] /= static_cast<double>(groups[slot]) * static_cast<double>(columns);
  }
  return total / (static_cast<double>(count) * static_cast<double>(columns));
}

}  // namespace

void ArmReducer::group_rows(const ArmCodes& codes, const std::int64_t* indices, std::size_t count,
                            Reduction* result) {
  slot_of_row_.resize(count);
  result->arms.reserve(std::min(count, codes.num_arms()));
  result->groups.reserve(std::min(count, codes.num_arms()));
  arm_of_row_.resize(count);
  codes.visit([&](const auto* arm_of) {
    for (std::size_t i = 0; i < count; ++i) {
      arm_of_row_[i] = arm_of[indices[i]];
      prefetch_for_write(&slot_of_arm_[arm_of_row_[i]]);
    }
  });
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t arm = arm_of_row_[i];
    std::int32_t slot = slot_of_arm_[arm];
    if (slot < 0) {
      slot = slot_of_arm_[arm] = static_cast<std::int32_t>(result->arms.size());
      result->arms.push_back(static_cast<std::int64_t>(arm));
      result->groups.push_back(0);
    }
    ++result->groups[static_cast<std::size_t>(slot)];
    slot_of_row_[i] = slot;
  }
  for (const std::int64_t arm : result->arms) slot_of_arm_[static_cast<std::size_t>(arm)] = -1;
}

Reduction ArmReducer::reduce(const ArmCodes& codes, const std::int64_t* indices, std::size_t count,
                             const GroupArray& advantages, const GroupArray& rewards) {
  if (count == 0 || count > kMaxPrompts) {
    throw std::invalid_argument("a batch must hold between 1 and " + std::to_string(kMaxPrompts) +
                                " indices, got " + std::to_string(count));
  }
  if (!advantages && !rewards) {
    throw std::invalid_argument("give advantages, rewards or both; got neither");
  }
  check_shape("advantages", advantages, count);
  check_shape("rewards", rewards, count);
  if (advantages && rewards && advantages.columns != rewards.columns) {
    throw std::invalid_argument("advantages and rewards must have the same shape, got " +
                                shape_of(advantages) + " and " + shape_of(rewards));
  }
  codes.visit([&](const auto* arm_of) {
    for (std::size_t i = 0; i < count; ++i) {
      if (indices[i] < 0 || static_cast<std::size_t>(indices[i]) >= codes.num_prompts()) {
        throw std::out_of_range("indices[" + std::to_string(i) + "] must be in [0, " +
                                std::to_string(codes.num_prompts()) + "), got " +
                                std::to_string(indices[i]) + "; nothing of the batch was used");
      }
      prefetch_for_read(arm_of + indices[i]);
    }
  });
  if (advantages) {
    advantage_rows_.resize(count);
    if (advantages.type == FloatType::kFloat32) {
      summarise_advantages(static_cast<const float*>(advantages.data), count, advantages.columns,
                           &advantage_rows_);
    } else {
      summarise_advantages(static_cast<const double*>(advantages.data), count, advantages.columns,
                           &advantage_rows_);
    }
  }
  if (rewards) {
    reward_rows_.resize(count);
    if (rewards.type == FloatType::kFloat32) {
      summarise_rewards(static_cast<const float*>(rewards.data), count, rewards.columns,
                        &reward_rows_);
    } else {
      summarise_rewards(static_cast<const double*>(rewards.data), count, rewards.columns,
                        &reward_rows_);
    }
  }

  Reduction result;
  group_rows(codes, indices, count, &result);
  const auto sum = [](const Row& row) { return row.sum; };
  const auto dead = [](const Row& row) { return row.is_dead ? 1.0 : 0.0; };
  if (advantages) {
    result.batch_abs_advantage =
        mean_by_arm(advantage_rows_, sum, slot_of_row_, count, advantages.columns, result.groups,
                    &result.abs_advantage);
  }
  if (rewards) {
    result.batch_reward = mean_by_arm(reward_rows_, sum, slot_of_row_, count, rewards.columns,
                                      result.groups, &result.reward);
  }
  result.batch_dead_groups =
      mean_by_arm(rewards ? reward_rows_ : advantage_rows_, dead, slot_of_row_, count, 1,
                  result.groups, &result.dead_groups);
  return result;
}

}  // namespace sec_grpo
