#include "sec_grpo/arm_codes.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace sec_grpo {
namespace {

constexpr std::uint64_t kHashStart = 0xCBF29CE484222325u;
constexpr std::uint64_t kHashFactor = 0x9E3779B97F4A7C15u;

std::uint64_t mix(std::uint64_t hash, std::uint64_t value) {
  hash = (hash ^ value) * kHashFactor;
  // A multiplication carries upwards only; the rotation brings the high bits down again.
  return (hash << 29) | (hash >> 35);
}

// Room for `size` codes of the type, doubling at least; narrower ones are taken over.
template <class Code, class Storage>
void reserve_as(Storage* storage, std::size_t size) {
  if (auto* same = std::get_if<HugeVector<Code>>(storage)) {
    if (size > same->capacity()) same->reserve(std::max(size, 2 * same->capacity()));
    return;
  }
  HugeVector<Code> wider;
  wider.reserve(size);
  std::visit(
      [&](const auto& narrow) {
        for (const auto code : narrow) wider.push_back(static_cast<Code>(code));
      },
      *storage);
  *storage = std::move(wider);
}

}  // namespace

ArmCodes::ArmCodes(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms)
    : num_arms_(num_arms), lane_hashes_{} {
  lane_hashes_.fill(kHashStart);
  if (num_prompts == 0) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxPrompts) +
                                " prompts, got 0");
  }
  check_more(codes, num_prompts, num_arms);
  append(codes, num_prompts, num_arms);
}

std::uint64_t ArmCodes::hash() const {
  std::uint64_t result = kHashStart;
  for (const std::uint64_t lane : lane_hashes_) result = mix(result, lane);
  return mix(result, num_prompts_);
}

void ArmCodes::check_more(const std::int32_t* codes, std::size_t count,
                          std::size_t num_arms) const {
  if (count > kMaxPrompts - num_prompts_) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxPrompts) +
                                " prompts, got " + std::to_string(num_prompts_ + count));
  }
  if (num_arms == 0 || num_arms > kMaxArms || num_arms < num_arms_) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxArms) +
                                " arms, and never fewer than before, got " +
                                std::to_string(num_arms) + "; merge categories into fewer arms");
  }
  // Branch-free, so that the compiler makes vectors of it; the search is for the message.
  std::uint32_t largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto code = static_cast<std::uint32_t>(codes[i]);
    largest = code > largest ? code : largest;
  }
  if (largest < num_arms) return;
  for (std::size_t i = 0; i < count; ++i) {
    if (codes[i] < 0 || static_cast<std::size_t>(codes[i]) >= num_arms) {
      throw std::out_of_range("codes[" + std::to_string(i) + "] must be in [0, " +
                              std::to_string(num_arms) + "), got " + std::to_string(codes[i]));
    }
  }
}

void ArmCodes::reserve(std::size_t count, std::size_t num_arms) {
  const std::size_t size = num_prompts_ + count;
  if (num_arms <= 0x100) {
    reserve_as<std::uint8_t>(&codes_, size);
  } else if (num_arms <= 0x10000) {
    reserve_as<std::uint16_t>(&codes_, size);
  } else {
    reserve_as<std::uint32_t>(&codes_, size);
  }
}

void ArmCodes::append(const std::int32_t* codes, std::size_t count, std::size_t num_arms) {
  reserve(count, num_arms);
  std::visit(
      [&](auto& stored) {
        using Code = typename std::decay_t<decltype(stored)>::value_type;
        stored.resize(num_prompts_ + count);
        Code* target = stored.data() + num_prompts_;
        std::array<std::uint64_t, kLanes> hashes = lane_hashes_;
        const auto take = [&](std::size_t i, std::size_t lane) {
          target[i] = static_cast<Code>(codes[i]);
          hashes[lane] = mix(hashes[lane], static_cast<std::uint32_t>(codes[i]));
        };
        std::size_t i = 0;
        for (; i < count && (num_prompts_ + i) % kLanes != 0; ++i) {
          take(i, (num_prompts_ + i) % kLanes);
        }
        for (; i + kLanes <= count; i += kLanes) {
          for (std::size_t lane = 0; lane < kLanes; ++lane) take(i + lane, lane);
        }
        for (std::size_t lane = 0; i < count; ++i, ++lane) take(i, lane);
        lane_hashes_ = hashes;
      },
      codes_);
  num_prompts_ += count;
  num_arms_ = num_arms;
}

}  // namespace sec_grpo
