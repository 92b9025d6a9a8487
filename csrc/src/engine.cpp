#include "sec_grpo/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "sec_grpo/bounded.h"

namespace sec_grpo {
namespace {

constexpr std::size_t kArmChunk = 256;

}  // namespace

Engine::Engine(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms,
               std::uint64_t seed, std::uint64_t labels_hash)
    : codes_(codes, num_prompts, num_arms),
      labels_hash_(labels_hash),
      seed_(seed),
      buffers_(codes_),
      softmax_(empty_arms()),
      reducer_(num_arms),
      last_(num_arms) {}

std::vector<std::uint8_t> Engine::empty_arms() const {
  std::vector<std::uint8_t> result(buffers_.num_arms());
  for (std::size_t arm = 0; arm < result.size(); ++arm) result[arm] = buffers_.size(arm) == 0;
  return result;
}

std::size_t Engine::num_prompts() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return codes_.num_prompts();
}

std::size_t Engine::num_arms() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return codes_.num_arms();
}

std::uint64_t Engine::seed() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return seed_;
}

std::int64_t Engine::step() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return step_;
}

double Engine::temperature() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return softmax_.temperature();
}

void Engine::draw(std::size_t batch_size, std::int64_t* prompts) {
  if (batch_size == 0 || batch_size > kMaxPrompts) {
    throw std::invalid_argument("batch_size must be between 1 and " + std::to_string(kMaxPrompts) +
                                ", got " + std::to_string(batch_size));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  const PhiloxKey key = philox_key(seed_);
  const WeightTree& tree = softmax_.tree();
  std::array<PhiloxCounter, kArmChunk> counters{};
  std::array<std::uint64_t, kArmChunk> words;
  std::array<std::uint32_t, kArmChunk> arms;
  for (std::size_t done = 0; done < batch_size; done += kArmChunk) {
    const std::size_t count = std::min(kArmChunk, batch_size - done);
    for (std::size_t i = 0; i < count; ++i) counters[i] = arm_counter(counter_ + done + i);
    first_words(counters.data(), count, key, words.data());
    for (std::size_t i = 0; i < count; ++i) {
      words[i] = bounded_from(words[i], tree.total(), PhiloxWords(counters[i], key));
    }
    tree.find_all(words.data(), count, arms.data());
    buffers_.draw(arms.data(), count, step_, key, prompts + done);
  }
  counter_ += batch_size;
  ++step_;
}

void Engine::add(const std::int32_t* codes, std::size_t count, std::size_t num_arms,
                 std::uint64_t labels_hash) {
  const std::lock_guard<std::mutex> lock(mutex_);
  codes_.check_more(codes, count, num_arms);
  // Room and copies first, so that a failed allocation leaves everything as it was.
  codes_.reserve(count, num_arms);
  HugeVector<LastObservation> last = last_;
  last.resize(num_arms);
  SoftmaxWeights softmax = softmax_;
  std::vector<std::uint8_t> is_empty = empty_arms();
  is_empty.resize(num_arms, 1);
  for (std::size_t i = 0; i < count; ++i) is_empty[static_cast<std::size_t>(codes[i])] = 0;
  softmax.grow(std::move(is_empty));
  reducer_.grow(num_arms);
  buffers_.add(codes, count, static_cast<std::uint32_t>(codes_.num_prompts()), num_arms);
  codes_.append(codes, count, num_arms);
  labels_hash_ = labels_hash;
  softmax_ = std::move(softmax);
  last_ = std::move(last);
}

void Engine::assign(const double* scores, std::size_t count, double temperature) {
  std::vector<double> copy(scores, scores + count);
  const std::lock_guard<std::mutex> lock(mutex_);
  softmax_.check(copy, temperature);
  softmax_.assign(std::move(copy), temperature);
}

Reduction Engine::reduce(const std::int64_t* indices, std::size_t count,
                         const GroupArray& advantages, const GroupArray& rewards) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return reducer_.reduce(codes_, indices, count, advantages, rewards);
}

void Engine::td_update(const Reduction& reduction, double alpha, double temperature,
                       bool decay_undrawn) {
  if (!(alpha > 0.0 && alpha <= 1.0)) {
    throw std::invalid_argument("alpha must be in (0, 1], got " + std::to_string(alpha));
  }
  if (reduction.abs_advantage.empty()) {
    throw std::invalid_argument("the update needs the advantages of the batch, got rewards only");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  check_reduction(reduction);
  const std::vector<double>& scores = softmax_.scores();
  const auto updated = [&](std::size_t arm, double reward) {
    return std::isinf(scores[arm]) ? scores[arm] : alpha * reward + (1.0 - alpha) * scores[arm];
  };
  const std::size_t count = reduction.arms.size();
  if (!decay_undrawn && temperature == softmax_.temperature()) {
    new_scores_.resize(count);
    softmax_.prefetch(reduction.arms.data(), count);
    for (std::size_t i = 0; i < count; ++i) {
      new_scores_[i] =
          updated(static_cast<std::size_t>(reduction.arms[i]), reduction.abs_advantage[i]);
    }
    softmax_.update(reduction.arms.data(), new_scores_.data(), count);
    return;
  }
  std::vector<double> all = scores;
  if (decay_undrawn) {
    for (std::size_t arm = 0; arm < all.size(); ++arm) all[arm] = updated(arm, 0.0);
  }
  for (std::size_t i = 0; i < count; ++i) {
    const auto arm = static_cast<std::size_t>(reduction.arms[i]);
    all[arm] = updated(arm, reduction.abs_advantage[i]);
  }
  softmax_.check(all, temperature);
  softmax_.assign(std::move(all), temperature);
}

void Engine::check_reduction(const Reduction& reduction) const {
  for (const std::int64_t arm : reduction.arms) {
    if (arm < 0 || static_cast<std::size_t>(arm) >= codes_.num_arms()) {
      throw std::out_of_range("the reduction holds arm " + std::to_string(arm) +
                              ", but this curriculum has " + std::to_string(codes_.num_arms()) +
                              " arms; use the reduction on the curriculum that made it");
    }
  }
}

void Engine::record(const Reduction& reduction) {
  const std::lock_guard<std::mutex> lock(mutex_);
  check_reduction(reduction);
  for (std::size_t i = 0; i < reduction.arms.size(); ++i) {
    last_[static_cast<std::size_t>(reduction.arms[i])].record(reduction, i);
  }
  batch_abs_advantage_ = reduction.batch_abs_advantage;
  batch_reward_ = reduction.batch_reward;
  batch_dead_groups_ = reduction.batch_dead_groups;
  ++observations_;
}

void Engine::arm_indices(const std::int64_t* indices, std::size_t count, std::int64_t* arms) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  codes_.visit([&](const auto* arm_of) {
    for (std::size_t i = 0; i < count; ++i) {
      if (indices[i] < 0 || static_cast<std::size_t>(indices[i]) >= codes_.num_prompts()) {
        throw std::out_of_range("indices[" + std::to_string(i) + "] must be in [0, " +
                                std::to_string(codes_.num_prompts()) + "), got " +
                                std::to_string(indices[i]));
      }
      arms[i] = arm_of[indices[i]];
    }
  });
}

std::vector<std::uint64_t> Engine::weights() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::uint64_t> result(codes_.num_arms());
  for (std::size_t arm = 0; arm < result.size(); ++arm) result[arm] = softmax_.tree().weight(arm);
  return result;
}

std::vector<double> Engine::probabilities() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const WeightTree& tree = softmax_.tree();
  const auto total = static_cast<double>(tree.total());
  std::vector<double> result(codes_.num_arms());
  for (std::size_t arm = 0; arm < result.size(); ++arm) {
    result[arm] = static_cast<double>(tree.weight(arm)) / total;
  }
  return result;
}

std::vector<double> Engine::scores() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return softmax_.scores();
}

std::vector<std::int64_t> Engine::sizes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::int64_t> result(codes_.num_arms());
  for (std::size_t arm = 0; arm < result.size(); ++arm) result[arm] = buffers_.size(arm);
  return result;
}

ArmTable Engine::arm_table() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  ArmTable table;
  for (std::size_t arm = 0; arm < codes_.num_arms(); ++arm) {
    const std::uint64_t size = buffers_.size(arm);
    const ArmPosition position = buffers_.position(arm);
    table.abs_advantage.push_back(static_cast<double>(last_[arm].abs_advantage));
    table.reward.push_back(static_cast<double>(last_[arm].reward));
    table.dead_groups.push_back(last_[arm].dead_share());
    table.prompts.push_back(static_cast<std::int64_t>(size));
    table.draws.push_back(static_cast<std::int64_t>(buffers_.draws(arm)));
    table.epochs.push_back(size == 0 ? 0.0
                                     : static_cast<double>(position.epoch) +
                                           static_cast<double>(position.cursor) /
                                               static_cast<double>(size));
    table.last_drawn_step.push_back(buffers_.last_drawn_step(arm));
  }
  return table;
}

Summary Engine::summary() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {step_, observations_, counter_, batch_abs_advantage_, batch_reward_, batch_dead_groups_};
}

std::string Engine::serialize(std::string_view strategy, std::string_view strategy_state) const {
  State state = snapshot();
  state.strategy = strategy;
  state.strategy_state = strategy_state;
  return encode_state(state);
}

State Engine::snapshot() const {
  State state;
  const std::lock_guard<std::mutex> lock(mutex_);
  state.num_prompts = codes_.num_prompts();
  state.num_arms = codes_.num_arms();
  state.codes_hash = codes_.hash();
  state.labels_hash = labels_hash_;
  state.seed = seed_;
  state.counter = counter_;
  state.step = step_;
  state.observations = observations_;
  state.temperature = softmax_.temperature();
  state.ref = softmax_.ref();
  state.batch_abs_advantage = batch_abs_advantage_;
  state.batch_reward = batch_reward_;
  state.batch_dead_groups = batch_dead_groups_;
  state.scores = softmax_.scores();
  state.last = last_;
  state.buffers = buffers_.state();
  return state;
}

State Engine::parse(std::string_view bytes, std::string_view strategy) const {
  State state = decode_state(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  check_matches(state, strategy);
  check_arms(state);
  return state;
}

void Engine::check_matches(const State& state, std::string_view strategy) const {
  if (state.num_prompts != codes_.num_prompts()) {
    throw StateError("the state belongs to another data set: it has " +
                     std::to_string(state.num_prompts) + " prompts, this curriculum " +
                     std::to_string(codes_.num_prompts()) +
                     "; build the curriculum on the first one");
  }
  if (state.num_arms != codes_.num_arms()) {
    throw StateError("the state has " + std::to_string(state.num_arms) + " arms, this curriculum " +
                     std::to_string(codes_.num_arms()) +
                     "; build the curriculum with the same categories and arms");
  }
  if (state.labels_hash != labels_hash_) {
    throw StateError(
        "the state has other arms: their labels or their order differ; build the curriculum with "
        "the same categories and arms");
  }
  if (state.codes_hash != codes_.hash()) {
    throw StateError(
        "the state belongs to another data set: the categories of the prompts, or the order of "
        "the prompts, differ; build the curriculum on the first data set");
  }
  if (state.strategy != strategy) {
    throw StateError("the state was saved with strategy " + state.strategy +
                     ", this curriculum has " + std::string(strategy) +
                     "; give the curriculum the saved strategy, or start without the state");
  }
}

void Engine::check_arms(const State& state) const {
  constexpr char kDamaged[] = "the state is damaged: ";
  if (state.step < 0 || state.observations < 0 || std::isnan(state.ref) || std::isinf(state.ref)) {
    throw StateError(std::string(kDamaged) + "a counter below 0 or a ref that is not finite");
  }
  double largest = -std::numeric_limits<double>::infinity();
  try {
    softmax_.check(state.scores, state.temperature);
    buffers_.check(state.buffers);
    for (std::size_t arm = 0; arm < codes_.num_arms(); ++arm) {
      const std::int64_t step = state.buffers.last_drawn_steps[arm];
      if (step < -1 || step >= state.step) {
        throw std::invalid_argument("arm " + std::to_string(arm) + " drawn at step " +
                                    std::to_string(step));
      }
      if (!softmax_.is_empty(arm)) largest = std::max(largest, state.scores[arm]);
    }
  } catch (const std::invalid_argument& error) {
    throw StateError(kDamaged + std::string(error.what()));
  }
  // A weight above 2^(s+1) could overflow the sum of the tree.
  if (largest - state.ref > state.temperature) {
    throw StateError(std::string(kDamaged) + "ref lies too far below the largest score");
  }
}

void Engine::restore(const State& state) {
  std::vector<double> scores = state.scores;
  HugeVector<LastObservation> last = state.last;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (scores.size() != codes_.num_arms() || state.num_prompts != codes_.num_prompts()) {
    throw StateError("the curriculum has grown since the state was parsed; parse it again");
  }
  // The last thing that can throw; all that follows only moves.
  buffers_.restore(state.buffers, philox_key(state.seed), codes_);
  softmax_.restore(std::move(scores), state.temperature, state.ref);
  seed_ = state.seed;
  counter_ = state.counter;
  step_ = state.step;
  observations_ = state.observations;
  batch_abs_advantage_ = state.batch_abs_advantage;
  batch_reward_ = state.batch_reward;
  batch_dead_groups_ = state.batch_dead_groups;
  last_ = std::move(last);
}

}  // namespace sec_grpo
