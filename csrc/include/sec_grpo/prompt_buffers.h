#ifndef SEC_GRPO_PROMPT_BUFFERS_H_
#define SEC_GRPO_PROMPT_BUFFERS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sec_grpo/arm_codes.h"
#include "sec_grpo/huge_vector.h"
#include "sec_grpo/philox.h"

namespace sec_grpo {

// Where one arm stands in its shuffled prompts. `cursor` prompts of `epoch` are drawn; it is
// below the size of the arm, and both are 0 for an arm without prompts.
struct ArmPosition {
  std::uint64_t epoch = 0;
  std::uint32_t cursor = 0;
};

// An arm had `size` prompts until it stood at (epoch, cursor), and more from there on.
struct Growth {
  std::uint32_t arm = 0;
  std::uint32_t size = 0;
  std::uint64_t epoch = 0;
  std::uint32_t cursor = 0;
};

// What the positions alone do not say of an arm that grew: draws = epoch * size + cursor + offset.
struct DrawsOffset {
  std::uint32_t arm = 0;
  std::int64_t offset = 0;
};

// All that restores a PromptBuffers over the same prompts.
struct BufferState {
  std::vector<ArmPosition> positions;
  std::vector<std::int64_t> last_drawn_steps;
  // By arm, and of one arm in the order in which they came.
  std::vector<Growth> growths;
  std::vector<DrawsOffset> offsets;
};

// Prompts drawn uniformly without replacement inside each arm, an exhausted arm starting its
// next epoch on its own.
//
// Keyed incremental Fisher-Yates: step i of epoch e of arm c exchanges place i of the arm with
// place j = i + bounded(n - i) drawn from Philox(seed; c, e, i). An epoch goes on from the order
// that the last one left, which is as uniform as starting anew; every kWindow-th one starts from
// the ascending order again, so the positions alone restore an arm by replaying kWindow epochs
// at most. Prompts added to an arm join its current epoch: those not drawn yet and the new ones
// are equally likely next.
class PromptBuffers {
 public:
  static constexpr std::uint64_t kWindow = 64;

  explicit PromptBuffers(const ArmCodes& codes);

  std::size_t num_arms() const { return segments_.size(); }
  std::uint32_t size(std::size_t arm) const { return segments_[arm].size; }
  ArmPosition position(std::size_t arm) const;
  std::uint64_t draws(std::size_t arm) const;
  std::int64_t last_drawn_step(std::size_t arm) const { return segments_[arm].last_drawn_step; }

  // Draws one prompt from each of arms[0..count), none of them empty, into prompts[0..count).
  void draw(const std::uint32_t* arms, std::size_t count, std::int64_t step, PhiloxKey key,
            std::int64_t* prompts);

  // Adds prompts first_prompt .. first_prompt + count - 1, in arms codes[0..count) of `num_arms`
  // in all. Nothing changes when it throws (std::bad_alloc).
  void add(const std::int32_t* codes, std::size_t count, std::uint32_t first_prompt,
           std::size_t num_arms);

  BufferState state() const;

  // Throws std::invalid_argument unless `state` is one that these prompts can be in.
  void check(const BufferState& state) const;

  // Goes to a checked state by replaying the window of each arm; `codes` are those of all prompts.
  // Nothing changes when it throws (std::bad_alloc).
  void restore(const BufferState& state, PhiloxKey key, const ArmCodes& codes);

 private:
  struct Segment {
    std::uint32_t begin = 0;
    std::uint32_t size = 0;
    std::uint32_t capacity = 0;
    std::uint32_t cursor = 0;
    std::uint64_t epoch = 0;
    std::int64_t last_drawn_step = -1;
  };
  static_assert(sizeof(Segment) == 32, "two to a cache line");

  // One step of a shuffle: place `from` is exchanged with place `to` (at first: how many there
  // are to choose from). At the start of a window the `size` places are put in order before.
  struct Exchange {
    std::uint32_t begin;
    std::uint32_t from;
    std::uint32_t to;
    std::uint32_t sort_size;
  };

  // Writes the prompts of every arm in ascending order.
  static void fill(const ArmCodes& codes, const HugeVector<Segment>& segments,
                   std::uint32_t* slots);
  static Exchange advance(std::uint32_t arm, Segment* segment, PhiloxCounter* counter);
  static std::uint32_t apply(const Exchange& exchange, std::uint32_t* slots);
  void load_segments(const std::uint32_t* arms, std::size_t count) const;
  void plan(const std::uint32_t* arms, std::size_t count, std::int64_t step, PhiloxKey key,
            Exchange* exchanges);
  bool is_current(const Growth& growth) const;
  void forget_old_growths(std::size_t count);
  void check_position(std::size_t arm, const ArmPosition& position) const;
  std::int64_t offset(std::uint32_t arm) const;

  HugeVector<Segment> segments_;
  // The prompts, arm by arm, in segments that may lie apart once arms have grown.
  HugeVector<std::uint32_t> slots_;
  // In the order in which they came; those of windows that are over may still be among them.
  std::vector<Growth> growths_;
  std::vector<DrawsOffset> offsets_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_PROMPT_BUFFERS_H_
