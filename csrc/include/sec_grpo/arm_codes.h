#ifndef SEC_GRPO_ARM_CODES_H_
#define SEC_GRPO_ARM_CODES_H_

#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

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

  // Appends checked codes. Nothing changes when it throws (std::bad_alloc).
  void append(const std::int32_t* codes, std::size_t count, std::size_t num_arms);

  // Calls visit(pointer) with a pointer to the codes in their stored type.
  template <class Visit>
  decltype(auto) visit(Visit&& visit) const {
    return std::visit([&](const auto& codes) -> decltype(auto) { return visit(codes.data()); },
                      codes_);
  }

 private:
  using Storage = std::variant<std::vector<std::uint8_t>, std::vector<std::uint16_t>,
                               std::vector<std::uint32_t>>;

  std::size_t num_prompts_ = 0;
  std::size_t num_arms_;
  std::uint64_t running_hash_;
  Storage codes_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_ARM_CODES_H_
