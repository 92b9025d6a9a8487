#ifndef SEC_GRPO_ENGINE_H_
#define SEC_GRPO_ENGINE_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "sec_grpo/arm_codes.h"
#include "sec_grpo/prompt_buffers.h"
#include "sec_grpo/reduction.h"
#include "sec_grpo/softmax_weights.h"
#include "sec_grpo/state.h"

namespace sec_grpo {

// What is shown of every arm, one value an arm.
struct ArmTable {
  std::vector<std::int64_t> prompts;
  std::vector<std::int64_t> draws;
  std::vector<double> epochs;
  std::vector<std::int64_t> last_drawn_step;
  std::vector<double> abs_advantage;
  std::vector<double> reward;
  std::vector<double> dead_groups;
};

// What is shown of the whole curriculum, read at one moment.
struct Summary {
  std::int64_t step;
  std::int64_t observations;
  std::uint64_t prompts_drawn;
  double batch_abs_advantage;
  double batch_reward;
  double batch_dead_groups;
};

// A curriculum over a data set that may grow: chooses arms by integer softmax weights, prompts
// inside an arm without replacement, and learns scores. Every public method takes the mutex, checks
// all of its input, and changes nothing when it throws.
class Engine {
 public:
  // `labels_hash` stands for the labels of the arms; a state with another one is refused.
  Engine(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms,
         std::uint64_t seed, std::uint64_t labels_hash);

  std::size_t num_prompts() const;
  std::size_t num_arms() const;
  std::uint64_t seed() const;
  std::int64_t step() const;
  double temperature() const;

  // Draws `batch_size` prompts: an arm for each slot i.i.d. by weight, then a prompt of the arm.
  void draw(std::size_t batch_size, std::int64_t* prompts);

  // Appends prompts in arms codes[0..count) of `num_arms` in all, at least as many as now; new arms
  // have score 0.
  void add(const std::int32_t* codes, std::size_t count, std::size_t num_arms,
           std::uint64_t labels_hash);

  // Sets all scores: p(c) proportional to exp(score(c) / temperature), 0 for -infinity.
  void assign(const double* scores, std::size_t count, double temperature);

  Reduction reduce(const std::int64_t* indices, std::size_t count, const GroupArray& advantages,
                   const GroupArray& rewards) const;

  // TD(0) on the mean |A| of the reduced arms: Q <- alpha r + (1 - alpha) Q. The others keep
  // their score, or with `decay_undrawn` are updated with r = 0. An arm at -infinity stays there.
  void td_update(const Reduction& reduction, double alpha, double temperature, bool decay_undrawn);

  // Keeps a reduction as the last observation of its arms.
  void record(const Reduction& reduction);

  void arm_indices(const std::int64_t* indices, std::size_t count, std::int64_t* arms) const;
  std::vector<std::uint64_t> weights() const;
  // weights() / their sum: what the next draw samples from.
  std::vector<double> probabilities() const;
  std::vector<double> scores() const;
  // Prompts of each arm.
  std::vector<std::int64_t> sizes() const;
  ArmTable arm_table() const;
  Summary summary() const;

  std::string serialize(std::string_view strategy, std::string_view strategy_state) const;

  // Decodes a state and checks that it belongs to this data set and strategy; throws StateError.
  State parse(std::string_view bytes, std::string_view strategy) const;

  // Continues from a state that `parse` gave.
  void restore(const State& state);

 private:
  // All but the strategy, at one moment.
  State snapshot() const;

  // The mutex is held by the callers of these.
  std::vector<std::uint8_t> empty_arms() const;
  void check_matches(const State& state, std::string_view strategy) const;
  void check_arms(const State& state) const;
  void check_reduction(const Reduction& reduction) const;

  mutable std::mutex mutex_;
  ArmCodes codes_;
  std::uint64_t labels_hash_;
  std::uint64_t seed_;
  std::uint64_t counter_ = 0;
  std::int64_t step_ = 0;
  std::int64_t observations_ = 0;
  PromptBuffers buffers_;
  SoftmaxWeights softmax_;
  mutable ArmReducer reducer_;
  double batch_abs_advantage_ = Reduction::kMissing;
  double batch_reward_ = Reduction::kMissing;
  double batch_dead_groups_ = Reduction::kMissing;
  HugeVector<LastObservation> last_;
  std::vector<double> new_scores_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_ENGINE_H_
