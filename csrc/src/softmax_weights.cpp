#include "sec_grpo/softmax_weights.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "sec_grpo/elementary.h"
#include "sec_grpo/prefetch.h"

namespace sec_grpo {
namespace {

constexpr double kLn2 = 0x1.62e42fefa39efp-1;

// The nodes of so many arms are loaded before the first is used, and fit into the first-level
// cache.
constexpr std::size_t kUpdateChunk = 64;

int scale_bits(std::size_t num_arms) {
  int log2_ceiling = 0;
  while ((std::size_t{1} << log2_ceiling) < num_arms) ++log2_ceiling;
  return std::min(40, 60 - log2_ceiling);
}

}  // namespace

SoftmaxWeights::SoftmaxWeights(std::vector<std::uint8_t> is_empty)
    : is_empty_(std::move(is_empty)), scores_(is_empty_.size(), 0.0), tree_(is_empty_.size()) {
  set_scale();
  fill_tree(largest_score());
}

void SoftmaxWeights::set_scale() {
  const int bits = scale_bits(is_empty_.size());
  scale_ = static_cast<double>(std::uint64_t{1} << bits);
  rebuild_below_ = std::uint64_t{1} << (bits - 1);
}

void SoftmaxWeights::grow(std::vector<std::uint8_t> is_empty) {
  WeightTree tree(is_empty.size());
  std::vector<double> scores = scores_;
  scores.resize(is_empty.size(), 0.0);
  is_empty_ = std::move(is_empty);
  scores_ = std::move(scores);
  tree_ = std::move(tree);
  set_scale();
  fill_tree(largest_score());
}

void SoftmaxWeights::check(const std::vector<double>& scores, double temperature) const {
  if (!(temperature > 0.0) || std::isinf(temperature)) {
    throw std::invalid_argument("temperature must be a finite number above 0, got " +
                                std::to_string(temperature));
  }
  if (scores.size() != num_arms()) {
    throw std::invalid_argument("there must be one score an arm, (" + std::to_string(num_arms()) +
                                ",), got " + std::to_string(scores.size()));
  }
  bool has_choice = false;
  for (std::size_t arm = 0; arm < scores.size(); ++arm) {
    if (std::isnan(scores[arm]) || scores[arm] == std::numeric_limits<double>::infinity()) {
      throw std::invalid_argument("the score of arm " + std::to_string(arm) +
                                  " must be a finite number, or -inf for probability 0, got " +
                                  std::to_string(scores[arm]));
    }
    has_choice = has_choice || (!is_empty(arm) && std::isfinite(scores[arm]));
  }
  if (!has_choice) {
    throw std::invalid_argument(
        "at least one arm that has prompts must have a finite score, got -inf for all of them");
  }
}

void SoftmaxWeights::assign(std::vector<double> scores, double temperature) {
  scores_ = std::move(scores);
  temperature_ = temperature;
  fill_tree(largest_score());
}

void SoftmaxWeights::prefetch(const std::int64_t* arms, std::size_t count) const {
  for (std::size_t i = 0; i < count; ++i)
    prefetch_for_write(&scores_[static_cast<std::size_t>(arms[i])]);
}

void SoftmaxWeights::update(const std::int64_t* arms, const double* scores, std::size_t count) {
  bool has_risen = false;
  for (std::size_t begin = 0; begin < count; begin += kUpdateChunk) {
    const std::size_t end = std::min(count, begin + kUpdateChunk);
    for (std::size_t i = begin; i < end; ++i) {
      const auto arm = static_cast<std::size_t>(arms[i]);
      tree_.prefetch(arm);
      scores_[arm] = scores[i];
      has_risen = has_risen || scores[i] - ref_ > temperature_ * kLn2;
    }
    if (has_risen) continue;
    for (std::size_t i = begin; i < end; ++i) {
      const auto arm = static_cast<std::size_t>(arms[i]);
      // An arm without prompts, or at -infinity, keeps weight 0.
      if (tree_.weight(arm) != 0) tree_.set(arm, weight_of(scores[i]));
    }
  }
  if (has_risen || tree_.total() < rebuild_below_) fill_tree(largest_score());
}

void SoftmaxWeights::restore(std::vector<double> scores, double temperature, double ref) {
  scores_ = std::move(scores);
  temperature_ = temperature;
  fill_tree(ref);
}

void SoftmaxWeights::fill_tree(double ref) {
  ref_ = ref;
  tree_.fill([this](std::size_t arm) {
    return is_empty(arm) || std::isinf(scores_[arm]) ? 0 : weight_of(scores_[arm]);
  });
}

std::uint64_t SoftmaxWeights::weight_of(double score) const {
  const double scaled = scale_ * deterministic_exp((score - ref_) / temperature_);
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(scaled + 0.5));
}

double SoftmaxWeights::largest_score() const {
  double largest = -std::numeric_limits<double>::infinity();
  for (std::size_t arm = 0; arm < num_arms(); ++arm) {
    if (!is_empty(arm)) largest = std::max(largest, scores_[arm]);
  }
  return largest;
}

}  // namespace sec_grpo
