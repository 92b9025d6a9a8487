#ifndef SEC_GRPO_REDUCTION_H_
#define SEC_GRPO_REDUCTION_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "sec_grpo/arm_codes.h"

namespace sec_grpo {

enum class FloatType { kNone, kFloat32, kFloat64 };

// A (B, G) row-major array of rollouts: one row a prompt, one column a rollout of its group.
struct GroupArray {
  const void* data = nullptr;
  FloatType type = FloatType::kNone;
  std::size_t rows = 0;
  std::size_t columns = 0;

  explicit operator bool() const { return type != FloatType::kNone; }
};

// Advantages and rewards of a larger size are refused: none is meant, and sums, squares and float32
// copies of smaller ones stay finite in every strategy.
inline constexpr double kLargestValue = 1e30;

// What a batch says about each arm that occurs in it, in order of first occurrence.
struct Reduction {
  static constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

  std::vector<std::int64_t> arms;
  std::vector<std::int64_t> groups;
  // Means over all rollouts of all groups of the arm; empty when the array was not given.
  std::vector<double> abs_advantage;
  std::vector<double> reward;
  // Share of the groups of the arm that teach nothing: equal rewards, or without rewards all
  // advantages zero.
  std::vector<double> dead_groups;

  // The same over the whole batch.
  double batch_abs_advantage = kMissing;
  double batch_reward = kMissing;
  double batch_dead_groups = kMissing;
};

// Reduces a batch per arm. Keeps its scratch between calls, so it is not for two threads at once.
class ArmReducer {
 public:
  explicit ArmReducer(std::size_t num_arms) : slot_of_arm_(num_arms, -1) {}

  void grow(std::size_t num_arms) { slot_of_arm_.resize(num_arms, -1); }

  // Throws std::invalid_argument for shapes that do not fit, a value that is not finite or
  // above kLargestValue in size, or neither array; std::out_of_range for an index that is not a
  // prompt.
  Reduction reduce(const ArmCodes& codes, const std::int64_t* indices, std::size_t count,
                   const GroupArray& advantages, const GroupArray& rewards);

 private:
  struct Row {
    double sum;
    bool is_dead;
  };

  void group_rows(const ArmCodes& codes, const std::int64_t* indices, std::size_t count,
                  Reduction* result);

  // Position of an arm in the result being built; -1 between calls.
  std::vector<std::int32_t> slot_of_arm_;
  std::vector<std::uint32_t> arm_of_row_;
  std::vector<std::int32_t> slot_of_row_;
  std::vector<Row> advantage_rows_;
  std::vector<Row> reward_rows_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_REDUCTION_H_
