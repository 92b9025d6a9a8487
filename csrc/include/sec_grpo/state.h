#ifndef SEC_GRPO_STATE_H_
#define SEC_GRPO_STATE_H_

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sec_grpo/prompt_buffers.h"
#include "sec_grpo/reduction.h"

namespace sec_grpo {

// A saved state that cannot be continued from.
class StateError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline constexpr std::uint32_t kStateVersion = 1;

// All that a curriculum needs to continue bit for bit on the same data set.
struct State {
  std::uint64_t seed = 0;
  std::uint64_t counter = 0;
  std::int64_t step = 0;
  std::int64_t observations = 0;
  std::string strategy;        // name and parameters, compared on loading
  std::string strategy_state;  // opaque to the core
  std::uint64_t num_prompts = 0;
  std::uint64_t num_arms = 0;
  std::uint64_t codes_hash = 0;
  std::uint64_t labels_hash = 0;
  double temperature = 1.0;
  double ref = 0.0;
  double batch_abs_advantage = Reduction::kMissing;
  double batch_reward = Reduction::kMissing;
  double batch_dead_groups = Reduction::kMissing;
  std::vector<double> scores;
  std::vector<ArmPosition> positions;
  std::vector<std::int64_t> last_drawn_steps;
  std::vector<double> abs_advantage;
  std::vector<double> reward;
  std::vector<double> dead_groups;
};

// Little-endian, fixed width: magic, version, total size, the fields above in order, then the
// CRC-32 of all that precedes.
std::string encode_state(const State& state);

// Throws StateError, naming the reason, unless `bytes` is a whole state of this version.
State decode_state(std::string_view bytes);

}  // namespace sec_grpo

#endif  // SEC_GRPO_STATE_H_
