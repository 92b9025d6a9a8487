#ifndef SEC_GRPO_STATE_H_
#define SEC_GRPO_STATE_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sec_grpo/huge_vector.h"
#include "sec_grpo/prompt_buffers.h"
#include "sec_grpo/reduction.h"

namespace sec_grpo {

// A saved state that cannot be continued from.
class StateError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

inline constexpr std::uint32_t kStateVersion = 3;

// What is shown of an arm's last observation, as narrow as it is saved.
struct LastObservation {
  static constexpr std::uint16_t kNoShare = 0xFFFFu;

  float abs_advantage = std::numeric_limits<float>::quiet_NaN();
  float reward = std::numeric_limits<float>::quiet_NaN();
  // Share times 65534, rounded; kNoShare before the first.
  std::uint16_t dead_groups = kNoShare;

  // Takes over what the reduction says of its i-th arm.
  void record(const Reduction& reduction, std::size_t i);
  double dead_share() const;
};

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
  BufferState buffers;
  HugeVector<LastObservation> last;
};

// Little-endian: magic, version, total size, the fields above in order, then the CRC-32 of all
// that precedes. What is kept of every arm goes column by column, each in the fewest bytes, from
// one to eight, that hold its largest value: 8 for a score, 10 for the last observation, and
// mostly 4 to 6 for the place in its prompts and the step of its last draw.
std::string encode_state(const State& state);

// Throws StateError, naming the reason, unless `bytes` is a whole state of this version.
State decode_state(std::string_view bytes);

}  // namespace sec_grpo

#endif  // SEC_GRPO_STATE_H_
