#include "sec_grpo/arm_codes.h"

#include <stdexcept>
#include <string>
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

// `target` with `count` codes more; the vector is made anew where it must be wider.
template <class Code, class Storage>
void append_as(Storage* storage, const std::int32_t* codes, std::size_t count, std::size_t old) {
  auto* same = std::get_if<std::vector<Code>>(storage);
  std::vector<Code> wider;
  std::vector<Code>* target = same;
  if (same == nullptr) {
    wider.reserve(old + count);
    std::visit(
        [&](const auto& narrow) {
          for (const auto code : narrow) wider.push_back(static_cast<Code>(code));
        },
        *storage);
    target = &wider;
  }
  target->resize(old + count);
  for (std::size_t i = 0; i < count; ++i) (*target)[old + i] = static_cast<Code>(codes[i]);
  if (same == nullptr) *storage = std::move(wider);
}

}  // namespace

ArmCodes::ArmCodes(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms)
    : num_arms_(num_arms), running_hash_(kHashStart) {
  if (num_prompts == 0) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxPrompts) +
                                " prompts, got 0");
  }
  check_more(codes, num_prompts, num_arms);
  append(codes, num_prompts, num_arms);
}

std::uint64_t ArmCodes::hash() const { return mix(running_hash_, num_prompts_); }

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

void ArmCodes::append(const std::int32_t* codes, std::size_t count, std::size_t num_arms) {
  if (num_arms <= 0x100) {
    append_as<std::uint8_t>(&codes_, codes, count, num_prompts_);
  } else if (num_arms <= 0x10000) {
    append_as<std::uint16_t>(&codes_, codes, count, num_prompts_);
  } else {
    append_as<std::uint32_t>(&codes_, codes, count, num_prompts_);
  }
  for (std::size_t i = 0; i < count; ++i) {
    running_hash_ = mix(running_hash_, static_cast<std::uint32_t>(codes[i]));
  }
  num_prompts_ += count;
  num_arms_ = num_arms;
}

}  // namespace sec_grpo
