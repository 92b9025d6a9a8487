#include "sec_grpo/prompt_buffers.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "sec_grpo/bounded.h"
#include "sec_grpo/prefetch.h"

namespace sec_grpo {
namespace {

// What is loaded ahead for three chunks stays in the first-level cache.
constexpr std::size_t kDrawChunk = 64;
constexpr std::size_t kFillAhead = 32;
// Places that a segment gets when it first moves, at least.
constexpr std::uint32_t kLeastCapacity = 4;

std::uint64_t window_start(std::uint64_t epoch) { return epoch - epoch % PromptBuffers::kWindow; }

bool by_arm(const Growth& a, const Growth& b) { return a.arm < b.arm; }

}  // namespace

PromptBuffers::PromptBuffers(const ArmCodes& codes)
    : segments_(codes.num_arms()), slots_(codes.num_prompts()) {
  // Counted apart: the records of the arms are too wide to keep in the cache.
  std::vector<std::uint32_t> sizes(segments_.size());
  codes.visit([&](const auto* arm_of) {
    for (std::size_t i = 0; i < codes.num_prompts(); ++i) ++sizes[arm_of[i]];
  });
  std::uint32_t begin = 0;
  for (std::size_t arm = 0; arm < segments_.size(); ++arm) {
    segments_[arm].begin = begin;
    segments_[arm].size = segments_[arm].capacity = sizes[arm];
    begin += sizes[arm];
  }
  fill(codes, segments_, slots_.data());
}

void PromptBuffers::fill(const ArmCodes& codes, const HugeVector<Segment>& segments,
                         std::uint32_t* slots) {
  std::vector<std::uint32_t> next(segments.size());
  for (std::size_t arm = 0; arm < segments.size(); ++arm) next[arm] = segments[arm].begin;
  const std::size_t count = codes.num_prompts();
  codes.visit([&](const auto* arm_of) {
    for (std::size_t i = 0; i < count; ++i) {
      // Near where the place will be by then; with many arms every place is a cache miss.
      if (i + kFillAhead < count) prefetch_for_write(slots + next[arm_of[i + kFillAhead]]);
      slots[next[arm_of[i]]++] = static_cast<std::uint32_t>(i);
    }
  });
}

ArmPosition PromptBuffers::position(std::size_t arm) const {
  return {segments_[arm].epoch, segments_[arm].cursor};
}

std::uint64_t PromptBuffers::draws(std::size_t arm) const {
  const Segment& segment = segments_[arm];
  const std::uint64_t whole = segment.epoch * segment.size + segment.cursor;
  return whole + static_cast<std::uint64_t>(offset(static_cast<std::uint32_t>(arm)));
}

std::int64_t PromptBuffers::offset(std::uint32_t arm) const {
  const auto found =
      std::lower_bound(offsets_.begin(), offsets_.end(), arm,
                       [](const DrawsOffset& a, std::uint32_t b) { return a.arm < b; });
  return found != offsets_.end() && found->arm == arm ? found->offset : 0;
}

PromptBuffers::Exchange PromptBuffers::advance(std::uint32_t arm, Segment* segment,
                                               PhiloxCounter* counter) {
  const std::uint32_t from = segment->cursor;
  const bool starts_window = from == 0 && segment->epoch % kWindow == 0 && segment->epoch != 0;
  *counter = prompt_counter(arm, segment->epoch, from);
  if (++segment->cursor == segment->size) {
    segment->cursor = 0;
    ++segment->epoch;
  }
  return {segment->begin, from, segment->size - from, starts_window ? segment->size : 0};
}

std::uint32_t PromptBuffers::apply(const Exchange& exchange, std::uint32_t* slots) {
  std::uint32_t* segment = slots + exchange.begin;
  if (exchange.sort_size != 0) std::sort(segment, segment + exchange.sort_size);
  const std::uint32_t drawn = segment[exchange.to];
  segment[exchange.to] = segment[exchange.from];
  segment[exchange.from] = drawn;
  return drawn;
}

void PromptBuffers::load_segments(const std::uint32_t* arms, std::size_t count) const {
  for (std::size_t i = 0; i < count; ++i) prefetch_for_write(&segments_[arms[i]]);
}

// Moves the cursors on, finds which places are exchanged, and starts loading them.
void PromptBuffers::plan(const std::uint32_t* arms, std::size_t count, std::int64_t step,
                         PhiloxKey key, Exchange* exchanges) {
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
}

// Three chunks are under way at a time: the segments of one are loaded while the exchanges of the
// one before are planned and those of the one before that are made, so that no cache miss is waited
// for. Cursors move, and places are exchanged, in the order of the arms all the same.
void PromptBuffers::draw(const std::uint32_t* arms, std::size_t count, std::int64_t step,
                         PhiloxKey key, std::int64_t* prompts) {
  std::array<std::array<Exchange, kDrawChunk>, 2> exchanges;
  const auto size_at = [=](std::size_t begin) { return std::min(kDrawChunk, count - begin); };
  load_segments(arms, size_at(0));
  std::size_t planned = 0;
  for (std::size_t begin = 0, turn = 0; begin < count || planned > 0; turn ^= 1) {
    const std::size_t size = begin < count ? size_at(begin) : 0;
    if (size > 0) {
      const std::size_t next = begin + size;
      if (next < count) load_segments(arms + next, size_at(next));
      plan(arms + begin, size, step, key, exchanges[turn].data());
    }
    for (std::size_t i = 0; i < planned; ++i) {
      prompts[begin - planned + i] = apply(exchanges[turn ^ 1][i], slots_.data());
    }
    planned = size;
    begin += size;
  }
}

void PromptBuffers::add(const std::int32_t* codes, std::size_t count, std::uint32_t first_prompt,
                        std::size_t num_arms) {
  HugeVector<Segment> segments = segments_;
  segments.resize(num_arms);
  std::vector<std::uint32_t> more(num_arms);
  for (std::size_t i = 0; i < count; ++i) ++more[static_cast<std::size_t>(codes[i])];
  std::vector<Growth> growths;
  std::vector<DrawsOffset> offsets;
  std::size_t end = slots_.size();
  std::vector<std::uint32_t> next(num_arms);
  for (std::uint32_t arm = 0; arm < num_arms; ++arm) {
    Segment& segment = segments[arm];
    const std::int64_t old_offset = arm < segments_.size() ? offset(arm) : 0;
    const std::int64_t moved = static_cast<std::int64_t>(segment.epoch) * more[arm];
    if (old_offset != moved) offsets.push_back({arm, old_offset - moved});
    next[arm] = segment.begin + segment.size;
    if (more[arm] == 0) continue;
    if (segment.size != 0) growths.push_back({arm, segment.size, segment.epoch, segment.cursor});
    const std::uint32_t size = segment.size + more[arm];
    if (size > segment.capacity) {
      const std::uint32_t capacity = std::max({size, 2 * segment.size, kLeastCapacity});
      segment.begin = static_cast<std::uint32_t>(end);
      next[arm] = segment.begin + segment.size;
      segment.capacity = capacity;
      end += capacity;
    }
    segment.size = size;
  }
  if (end > 0xFFFFFFFFu) {
    throw std::invalid_argument("the arms have grown past 2^32 places; build a new curriculum");
  }
  forget_old_growths(growths.size());
  slots_.resize(end);  // the last thing that can throw
  for (std::size_t arm = 0; arm < segments_.size(); ++arm) {
    const Segment& old = segments_[arm];
    if (segments[arm].begin != old.begin && old.size != 0) {
      std::memcpy(&slots_[segments[arm].begin], &slots_[old.begin],
                  old.size * sizeof(std::uint32_t));
    }
  }
  for (std::size_t i = 0; i < count; ++i) {
    slots_[next[static_cast<std::size_t>(codes[i])]++] =
        first_prompt + static_cast<std::uint32_t>(i);
  }
  segments_ = std::move(segments);
  growths_.insert(growths_.end(), growths.begin(), growths.end());
  offsets_ = std::move(offsets);
}

bool PromptBuffers::is_current(const Growth& growth) const {
  return growth.epoch >= window_start(segments_[growth.arm].epoch);
}

// Makes room for `count` growths more, by dropping those of older windows where there is none.
void PromptBuffers::forget_old_growths(std::size_t count) {
  if (growths_.size() + count <= growths_.capacity()) return;
  const auto end =
      std::stable_partition(growths_.begin(), growths_.end(),
                            [this](const Growth& growth) { return is_current(growth); });
  growths_.erase(end, growths_.end());
  growths_.reserve(std::max(growths_.size() + count, 2 * growths_.size()));
}

BufferState PromptBuffers::state() const {
  BufferState state;
  for (std::size_t arm = 0; arm < num_arms(); ++arm) {
    state.positions.push_back(position(arm));
    state.last_drawn_steps.push_back(last_drawn_step(arm));
  }
  for (const Growth& growth : growths_) {
    if (is_current(growth)) state.growths.push_back(growth);
  }
  std::stable_sort(state.growths.begin(), state.growths.end(), by_arm);
  state.offsets = offsets_;
  return state;
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

void PromptBuffers::check(const BufferState& state) const {
  for (std::size_t arm = 0; arm < num_arms(); ++arm) check_position(arm, state.positions[arm]);
  const Growth* last = nullptr;
  for (const Growth& growth : state.growths) {
    bool fits = growth.arm < num_arms() && growth.size > 0;
    if (fits) {
      const ArmPosition& now = state.positions[growth.arm];
      const bool follows = last != nullptr && last->arm == growth.arm;
      const std::uint32_t least = follows ? last->size + 1 : 1;
      fits = growth.size >= least && growth.size < size(growth.arm) &&
             growth.cursor < growth.size && growth.epoch >= window_start(now.epoch) &&
             (growth.epoch < now.epoch ||
              (growth.epoch == now.epoch && growth.cursor <= now.cursor)) &&
             (last == nullptr || last->arm <= growth.arm) &&
             (!follows || last->epoch < growth.epoch ||
              (last->epoch == growth.epoch && last->cursor <= growth.cursor));
    }
    if (!fits) {
      throw std::invalid_argument("arm " + std::to_string(growth.arm) + " cannot have grown from " +
                                  std::to_string(growth.size) + " prompts at epoch " +
                                  std::to_string(growth.epoch) + ", cursor " +
                                  std::to_string(growth.cursor));
    }
    last = &growth;
  }
  std::int64_t previous = -1;
  for (const DrawsOffset& offset : state.offsets) {
    if (offset.arm >= num_arms() || static_cast<std::int64_t>(offset.arm) <= previous) {
      throw std::invalid_argument("the draws of arm " + std::to_string(offset.arm) +
                                  " are out of order");
    }
    previous = offset.arm;
  }
}

void PromptBuffers::restore(const BufferState& state, PhiloxKey key, const ArmCodes& codes) {
  HugeVector<Segment> segments = segments_;
  HugeVector<std::uint32_t> slots(slots_.size());
  std::vector<Growth> growths = state.growths;
  std::vector<DrawsOffset> offsets = state.offsets;
  fill(codes, segments, slots.data());
  auto growth = growths.begin();
  for (std::uint32_t arm = 0; arm < segments.size(); ++arm) {
    Segment& segment = segments[arm];
    const ArmPosition& target = state.positions[arm];
    const std::uint32_t whole = segment.size;
    segment.epoch = window_start(target.epoch);
    segment.cursor = 0;
    segment.last_drawn_step = state.last_drawn_steps[arm];
    while (true) {
      // The size that the arm had at this point of its window.
      segment.size = growth != growths.end() && growth->arm == arm ? growth->size : whole;
      while (segment.size != whole &&
             (segment.epoch > growth->epoch ||
              (segment.epoch == growth->epoch && segment.cursor >= growth->cursor))) {
        ++growth;
        segment.size = growth != growths.end() && growth->arm == arm ? growth->size : whole;
      }
      if (segment.epoch == target.epoch && segment.cursor == target.cursor) break;
      PhiloxCounter counter;
      Exchange exchange = advance(arm, &segment, &counter);
      exchange.sort_size = 0;
      exchange.to = exchange.from +
                    static_cast<std::uint32_t>(bounded(exchange.to, PhiloxWords(counter, key)));
      apply(exchange, slots.data());
    }
  }
  segments_ = std::move(segments);
  slots_ = std::move(slots);
  growths_ = std::move(growths);
  offsets_ = std::move(offsets);
}

}  // namespace sec_grpo
