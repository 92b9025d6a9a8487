#ifndef SEC_GRPO_PROMPT_BUFFERS_H_
#define SEC_GRPO_PROMPT_BUFFERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sec_grpo/arm_codes.h"
#include "sec_grpo/philox.h"
#include "sec_grpo/zeroed_array.h"

namespace sec_grpo {

// Where one arm stands in its shuffled prompts. `cursor` prompts of `epoch` are drawn; it is
// below the size of the arm, and both are 0 for an arm without prompts.
struct ArmPosition {
  std::uint64_t epoch = 0;
  std::uint32_t cursor = 0;
};

// Prompts drawn uniformly without replacement inside each arm, an exhausted arm starting its
// next epoch on its own.
//
// Keyed incremental Fisher-Yates: step i of epoch e of arm c exchanges slot i with slot
// j = i + bounded(n - i) drawn from Philox(seed; c, e, i), so the positions alone restore the
// shuffles. The top bit of a slot carries the parity of the epoch that wrote it; a mismatch
// means the slot still holds its own index, so neither the first epoch nor the next ones are
// ever initialised.
class PromptBuffers {
 public:
  explicit PromptBuffers(const ArmCodes& codes);

  std::size_t num_arms() const { return segments_.size(); }
  std::uint32_t size(std::size_t arm) const { return segments_[arm].size; }
  ArmPosition position(std::size_t arm) const;
  std::int64_t last_drawn_step(std::size_t arm) const { return segments_[arm].last_drawn_step; }

  // Starts loading the record of an arm that the next draw uses.
  void prefetch(std::uint32_t arm) const;

  // Draws one prompt from each of arms[0..count), none of them empty, into prompts[0..count).
  void draw(const std::uint32_t* arms, std::size_t count, std::int64_t step, PhiloxKey key,
            std::int64_t* prompts);

  // Throws std::invalid_argument unless `position` is one that `arm` can be in.
  void check_position(std::size_t arm, const ArmPosition& position) const;

  // Goes to the given (checked) positions by replaying the current epoch of each arm. Nothing
  // changes when it throws (std::bad_alloc).
  void restore(const std::vector<ArmPosition>& positions,
               const std::vector<std::int64_t>& last_drawn_steps, PhiloxKey key);

 private:
  struct Segment {
    std::uint32_t begin = 0;
    std::uint32_t size = 0;
    std::uint32_t cursor = 0;
    // Makes the parity flag of the epoch at construction or restoration differ from zeroed slots.
    std::uint32_t flag_offset = 0;
    std::uint64_t epoch = 0;
    std::int64_t last_drawn_step = -1;
  };

  // One step of a shuffle: slot `from` is exchanged with slot `to` (at first: how many there are
  // to choose from), both written with the parity flag of the epoch.
  struct Exchange {
    std::uint32_t begin;
    std::uint32_t from;
    std::uint32_t to;
    std::uint32_t flag;
  };

  static Exchange advance(std::uint32_t arm, Segment* segment, PhiloxCounter* counter);
  static std::uint32_t apply(const Exchange& exchange, std::uint32_t* slots);
  void draw_chunk(const std::uint32_t* arms, std::size_t count, std::int64_t step, PhiloxKey key,
                  std::int64_t* prompts);

  std::vector<Segment> segments_;
  // The prompts sorted by arm; empty when they already stand in that order.
  ZeroedArray<std::uint32_t> order_;
  ZeroedArray<std::uint32_t> slots_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_PROMPT_BUFFERS_H_
