#ifndef SEC_GRPO_ARM_CODES_H_
#define SEC_GRPO_ARM_CODES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>

#include "sec_grpo/huge_vector.h"

namespace sec_grpo {

inline constexpr std::size_t kMaxPrompts = (std::size_t{1} << 31) - 1;
inline constexpr std::size_t kMaxArms = std::size_t{1} << 24;

// The arm of each prompt, in one, two or four bytes a prompt according to the number of arms.
class ArmCodes {
 public:
  // Throws std::invalid_argument when there is no prompt or no arm, or too many of either, and
  // std::out_of_range for a code outside [0, num_arms).
  ArmCodes(const std::int32_t* codes, std::size_t num_prompts, std::size_t num_arms);

  std::size_t num_prompts() const { return num_prompts_; }
  std::size_t num_arms() const { return num_arms_; }

  // A fingerprint of the codes in their order, the same for every storage width, and whether they
  // came at once or in parts.
  std::uint64_t hash() const;

  // Throws what the constructor throws for codes that could not follow, with `num_arms` arms in
  // all, at least as many as now.
  void check_more(const std::int32_t* codes, std::size_t count, std::size_t num_arms) const;

  // Makes room for `count` codes more, with `num_arms` arms in all. Nothing that can be seen
  // changes, also when it throws (std::bad_alloc).
  void reserve(std::size_t count, std::size_t num_arms);

  // Appends checked codes. Throws nothing when room was made for them.
  void append(const std::int32_t* codes, std::size_t count, std::size_t num_arms);

  // Calls visit(pointer) with a pointer to the codes in their stored type.
  template <class Visit>
  decltype(auto) visit(Visit&& visit) const {
    return std::visit([&](const auto& codes) -> decltype(auto) { return visit(codes.data()); },
                      codes_);
  }

 private:
  using Storage =
      std::variant<HugeVector<std::uint8_t>, HugeVector<std::uint16_t>, HugeVector<std::uint32_t>>;
  static constexpr std::size_t kLanes = 4;

  std::size_t num_prompts_ = 0;
  std::size_t num_arms_;
  // Prompt i goes into lane i % kLanes: one hash alone would wait for its multiplications.
  std::array<std::uint64_t, kLanes> lane_hashes_;
  Storage codes_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_ARM_CODES_H_
