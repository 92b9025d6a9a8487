#include "sec_grpo/prompt_buffers.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <utility>

#include "sec_grpo/bounded.h"
#include "sec_grpo/prefetch.h"

namespace sec_grpo {
namespace {

constexpr std::uint32_t kFlagBit = 0x80000000u;
// The scratch of a chunk stays on the stack and in the first-level cache.
constexpr std::size_t kDrawChunk = 256;

// The index in `slot`, or `own` when the slot was last written in another epoch.
std::uint32_t read_slot(std::uint32_t slot, std::uint32_t own, std::uint32_t flag) {
  return (slot & kFlagBit) == flag ? slot & ~kFlagBit : own;
}

}  // namespace

PromptBuffers::PromptBuffers(const ArmCodes& codes)
    : segments_(codes.num_arms()), slots_(codes.num_prompts()) {
  const std::size_t num_prompts = codes.num_prompts();
  for (Segment& segment : segments_) segment.flag_offset = 1;
  codes.visit([&](const auto* arm_of) {
    bool is_sorted = true;
    for (std::size_t i = 0; i < num_prompts; ++i) {
      ++segments_[arm_of[i]].size;
      is_sorted = is_sorted && (i == 0 || arm_of[i - 1] <= arm_of[i]);
    }
    std::vector<std::uint32_t> next(segments_.size());
    std::uint32_t begin = 0;
    for (std::size_t arm = 0; arm < segments_.size(); ++arm) {
      segments_[arm].begin = next[arm] = begin;
      begin += segments_[arm].size;
    }
    if (is_sorted) return;
    order_ = ZeroedArray<std::uint32_t>(num_prompts);
    for (std::size_t i = 0; i < num_prompts; ++i) {
      order_[next[arm_of[i]]++] = static_cast<std::uint32_t>(i);
    }
  });
}

ArmPosition PromptBuffers::position(std::size_t arm) const {
  return {segments_[arm].epoch, segments_[arm].cursor};
}

void PromptBuffers::prefetch(std::uint32_t arm) const { prefetch_for_write(&segments_[arm]); }

PromptBuffers::Exchange PromptBuffers::advance(std::uint32_t arm, Segment* segment,
                                               PhiloxCounter* counter) {
  const std::uint32_t from = segment->cursor;
  const auto parity = static_cast<std::uint32_t>((segment->epoch + segment->flag_offset) & 1u);
  *counter = prompt_counter(arm, segment->epoch, from);
  if (++segment->cursor == segment->size) {
    segment->cursor = 0;
    ++segment->epoch;
  }
  return {segment->begin, from, segment->size - from, parity != 0 ? kFlagBit : 0u};
}

std::uint32_t PromptBuffers::apply(const Exchange& exchange, std::uint32_t* slots) {
  std::uint32_t* segment = slots + exchange.begin;
  const std::uint32_t first = read_slot(segment[exchange.from], exchange.from, exchange.flag);
  const std::uint32_t drawn = read_slot(segment[exchange.to], exchange.to, exchange.flag);
  segment[exchange.to] = first | exchange.flag;
  // Never read again in this epoch, but at its end every slot must carry its parity.
  segment[exchange.from] = drawn | exchange.flag;
  return drawn;
}

void PromptBuffers::draw(const std::uint32_t* arms, std::size_t count, std::int64_t step,
                         PhiloxKey key, std::int64_t* prompts) {
  for (std::size_t i = 0; i < count; i += kDrawChunk) {
    draw_chunk(arms + i, std::min(kDrawChunk, count - i), step, key, prompts + i);
  }
}

// Each phase touches the memory that the phase before it asked for, so the cache misses of a
// batch overlap instead of following one another.
void PromptBuffers::draw_chunk(const std::uint32_t* arms, std::size_t count, std::int64_t step,
                               PhiloxKey key, std::int64_t* prompts) {
  std::array<Exchange, kDrawChunk> exchanges;
  std::array<PhiloxCounter, kDrawChunk> counters{};
  std::array<std::uint64_t, kDrawChunk> words;
  for (std::size_t i = 0; i < count; ++i) {
    Segment& segment = segments_[arms[i]];
    segment.last_drawn_step = step;
    exchanges[i] = advance(arms[i], &segment, &counters[i]);
    prefetch_for_write(&slots_[exchanges[i].begin + exchanges[i].from]);
  }
  first_words(counters.data(), count, key, words.data());
  for (std::size_t i = 0; i < count; ++i) {
    Exchange& exchange = exchanges[i];
    exchange.to = exchange.from + static_cast<std::uint32_t>(bounded_from(
                                      words[i], exchange.to, PhiloxWords(counters[i], key)));
    prefetch_for_write(&slots_[exchange.begin + exchange.to]);
  }
  const bool is_sorted = order_.size() == 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t row = exchanges[i].begin + apply(exchanges[i], slots_.data());
    prompts[i] = row;
    if (!is_sorted) prefetch_for_read(&order_[row]);
  }
  if (is_sorted) return;
  for (std::size_t i = 0; i < count; ++i) prompts[i] = order_[static_cast<std::size_t>(prompts[i])];
}

void PromptBuffers::check_position(std::size_t arm, const ArmPosition& position) const {
  const std::uint32_t size = segments_[arm].size;
  const bool fits = size == 0 ? position.cursor == 0 && position.epoch == 0
                              : position.cursor < size && position.epoch < kEpochLimit;
  if (fits) return;
  throw std::invalid_argument("arm " + std::to_string(arm) + " of " + std::to_string(size) +
                              " prompts cannot be at epoch " + std::to_string(position.epoch) +
                              ", cursor " + std::to_string(position.cursor));
}

void PromptBuffers::restore(const std::vector<ArmPosition>& positions,
                            const std::vector<std::int64_t>& last_drawn_steps, PhiloxKey key) {
  std::vector<Segment> segments = segments_;
  ZeroedArray<std::uint32_t> slots(slots_.size());
  for (std::size_t arm = 0; arm < segments.size(); ++arm) {
    Segment& segment = segments[arm];
    segment.epoch = positions[arm].epoch;
    segment.cursor = 0;
    segment.last_drawn_step = last_drawn_steps[arm];
    // The new slots are zeros, so the restored epoch must write the flag 1.
    segment.flag_offset = static_cast<std::uint32_t>((segment.epoch & 1u) ^ 1u);
    for (std::uint32_t i = 0; i < positions[arm].cursor; ++i) {
      PhiloxCounter counter;
      Exchange exchange = advance(static_cast<std::uint32_t>(arm), &segment, &counter);
      exchange.to = i + static_cast<std::uint32_t>(bounded(exchange.to, PhiloxWords(counter, key)));
      apply(exchange, slots.data());
    }
  }
  segments_ = std::move(segments);
  slots_ = std::move(slots);
}

}  // namespace sec_grpo
