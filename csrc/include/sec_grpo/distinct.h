#ifndef SEC_GRPO_DISTINCT_H_
#define SEC_GRPO_DISTINCT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "sec_grpo/huge_vector.h"

namespace sec_grpo {

// The distinct integers of a sequence, less its smallest, in ascending order; and for each element
// the number of its integer among them. There are no codes where the elements are these numbers
// themselves: 32-bit integers from 0 on without a gap.
struct Distinct {
  std::vector<std::int64_t> offsets;
  HugeVector<std::int32_t> codes;
};

// Of items[0..count), all of them from `low` to low + span - 1. Time and memory are proportional to
// count + span. Throws std::invalid_argument for an item outside, and when there are more than 2^31
// different ones.
template <class Item>
Distinct distinct_in_range(const Item* items, std::size_t count, Item low, std::uint64_t span) {
  // Unsigned subtraction is right for both signs, and puts an item below `low` far above `span`.
  const auto offset_of = [=](Item item) {
    return static_cast<std::uint64_t>(item) - static_cast<std::uint64_t>(low);
  };
  std::uint64_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, offset_of(items[i]));
  if (count > 0 && largest >= span) {
    throw std::invalid_argument("items must lie in a range of " + std::to_string(span) +
                                " integers, got one " + std::to_string(largest) + " above its low");
  }
  std::vector<std::int32_t> place(static_cast<std::size_t>(span));
  for (std::size_t i = 0; i < count; ++i) place[static_cast<std::size_t>(offset_of(items[i]))] = 1;
  Distinct result;
  for (std::size_t offset = 0; offset < place.size(); ++offset) {
    if (place[offset] == 0) continue;
    if (result.offsets.size() > 0x7FFFFFFFu) {
      throw std::invalid_argument("there must be at most 2^31 distinct items");
    }
    place[offset] = static_cast<std::int32_t>(result.offsets.size());
    result.offsets.push_back(static_cast<std::int64_t>(offset));
  }
  if constexpr (std::is_same_v<Item, std::int32_t>) {
    if (low == 0 && result.offsets.size() == place.size()) return result;
  }
  result.codes.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    result.codes[i] = place[static_cast<std::size_t>(offset_of(items[i]))];
  }
  return result;
}

}  // namespace sec_grpo

#endif  // SEC_GRPO_DISTINCT_H_
