#include "sec_grpo/arm_codes.h"

#include <stdexcept>
#include <string>

namespace sec_grpo {
namespace {

template <class Code>
std::vector<Code> narrow(const std::int32_t* codes, std::size_t count) {
  std::vector<Code> result(count);
  for (std::size_t i = 0; i < count; ++i) result[i] = static_cast<Code>(codes[i]);
  return result;
}

std::uint64_t hash_codes(const std::int32_t* codes, std::size_t count) {
  std::uint64_t hash = 0xCBF29CE484222325u ^ count;
  for (std::size_t i = 0; i < count; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(codes[i])) * 0x9E3779B97F4A7C15u;
    // A multiplication carries upwards only; the rotation brings the high bits down again.
    hash = (hash << 29) | (hash >> 35);
  }
  return hash;
}

}  // namespace

ArmCodes::ArmCodes(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms)
    : num_prompts_(num_prompts), num_arms_(num_arms) {
  if (num_prompts == 0 || num_prompts > kMaxPrompts) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxPrompts) +
                                " prompts, got " + std::to_string(num_prompts));
  }
  if (num_arms == 0 || num_arms > kMaxArms) {
    throw std::invalid_argument("a curriculum needs between 1 and " + std::to_string(kMaxArms) +
                                " arms, got " + std::to_string(num_arms) +
                                "; merge categories into fewer arms");
  }
  for (std::size_t i = 0; i < num_prompts; ++i) {
    if (codes[i] < 0 || static_cast<std::size_t>(codes[i]) >= num_arms) {
      throw std::out_of_range("codes[" + std::to_string(i) + "] must be in [0, " +
                              std::to_string(num_arms) + "), got " + std::to_string(codes[i]));
    }
  }
  hash_ = hash_codes(codes, num_prompts);
  if (num_arms <= 0x100) {
    codes_ = narrow<std::uint8_t>(codes, num_prompts);
  } else if (num_arms <= 0x10000) {
    codes_ = narrow<std::uint16_t>(codes, num_prompts);
  } else {
    codes_ = narrow<std::uint32_t>(codes, num_prompts);
  }
}

}  // namespace sec_grpo
