#ifndef SEC_GRPO_SOFTMAX_WEIGHTS_H_
#define SEC_GRPO_SOFTMAX_WEIGHTS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sec_grpo/weight_tree.h"

namespace sec_grpo {

// Integer weights w(c) = round(2^s exp((score(c) - ref) / temperature)) in a sum tree.
//
// An arm without prompts, or with score -infinity, weighs exactly 0; any other at least 1.
// s = min(40, 60 - ceil(log2 K)) keeps the total below 2^62. `ref` is the largest score at the
// last rebuild; all weights are rebuilt when a score rises above ref + temperature ln 2, and
// when the total falls below 2^(s-1), that is when the maximum has fallen and the weights would
// lose their resolution. The weights are a pure function of (scores, temperature, ref).
class SoftmaxWeights {
 public:
  // is_empty[c] != 0 for an arm without prompts. At least one arm has prompts.
  explicit SoftmaxWeights(std::vector<std::uint8_t> is_empty);

  std::size_t num_arms() const { return is_empty_.size(); }
  const std::vector<double>& scores() const { return scores_; }
  double temperature() const { return temperature_; }
  double ref() const { return ref_; }
  bool is_empty(std::size_t arm) const { return is_empty_[arm] != 0; }
  const WeightTree& tree() const { return tree_; }

  // Throws std::invalid_argument unless the scores are numbers below +infinity, one of an arm
  // with prompts is finite, and the temperature is finite and above 0.
  void check(const std::vector<double>& scores, double temperature) const;

  // Replaces all scores (checked by the caller through `check`).
  void assign(std::vector<double> scores, double temperature);

  // Starts loading what update() reads of arms[0..count).
  void prefetch(const std::int64_t* arms, std::size_t count) const;

  // Replaces the finite scores of arms[0..count) by finite ones.
  void update(const std::int64_t* arms, const double* scores, std::size_t count);

  // Takes more arms, with score 0, and the arms that have prompts by now. Nothing changes when it
  // throws (std::bad_alloc).
  void grow(std::vector<std::uint8_t> is_empty);

  // Puts back checked scores with the ref that they had.
  void restore(std::vector<double> scores, double temperature, double ref);

 private:
  // That of an arm with prompts and a finite score.
  std::uint64_t weight_of(double score) const;
  double largest_score() const;
  void fill_tree(double ref);

  void set_scale();

  std::vector<std::uint8_t> is_empty_;
  std::vector<double> scores_;
  double temperature_ = 1.0;
  double ref_ = 0.0;
  double scale_ = 0.0;
  std::uint64_t rebuild_below_ = 0;
  WeightTree tree_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_SOFTMAX_WEIGHTS_H_
