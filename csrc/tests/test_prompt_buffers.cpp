#include <algorithm>
#include <cstdint>
#include <set>
#include <vector>

#include "check.h"
#include "sec_grpo/prompt_buffers.h"

using sec_grpo::ArmCodes;
using sec_grpo::ArmPosition;
using sec_grpo::PhiloxKey;
using sec_grpo::PromptBuffers;

constexpr PhiloxKey kKey{11, 22};

std::vector<std::int64_t> draw_from(PromptBuffers* buffers, std::uint32_t arm, std::size_t count) {
  const std::vector<std::uint32_t> arms(count, arm);
  std::vector<std::int64_t> prompts(count);
  buffers->draw(arms.data(), count, 0, kKey, prompts.data());
  return prompts;
}

// Six epochs of an interleaved data set: each one a permutation of the arm, all different, and
// the same whether drawn in one batch or in many.
void test_epochs_are_permutations(const std::vector<std::int32_t>& codes) {
  const ArmCodes arm_codes(codes.data(), codes.size(), 4);
  PromptBuffers whole(arm_codes);
  PromptBuffers pieces(arm_codes);
  for (std::uint32_t arm = 0; arm < 4; ++arm) {
    std::vector<std::int64_t> members;
    for (std::size_t i = 0; i < codes.size(); ++i) {
      if (codes[i] == static_cast<std::int32_t>(arm)) {
        members.push_back(static_cast<std::int64_t>(i));
      }
    }
    CHECK(whole.size(arm) == members.size());
    if (members.empty()) continue;
    const auto prompts = draw_from(&whole, arm, 6 * members.size());
    std::set<std::vector<std::int64_t>> epochs;
    for (std::size_t epoch = 0; epoch < 6; ++epoch) {
      const auto begin = prompts.begin() + static_cast<std::ptrdiff_t>(epoch * members.size());
      std::vector<std::int64_t> order(begin, begin + static_cast<std::ptrdiff_t>(members.size()));
      epochs.insert(order);
      std::sort(order.begin(), order.end());
      CHECK(order == members);
    }
    CHECK(members.size() < 20 || epochs.size() == 6);
    CHECK(whole.position(arm).epoch == 6 && whole.position(arm).cursor == 0);
    for (std::size_t i = 0; i < prompts.size();) {
      const std::size_t count = std::min<std::size_t>(1 + i % 5, prompts.size() - i);
      for (const std::int64_t prompt : draw_from(&pieces, arm, count)) {
        CHECK(prompt == prompts[i++]);
      }
    }
  }
}

// All orders of a three-prompt arm over 60,000 epochs: chi-square with 5 degrees of freedom is
// above 36.5 with probability 8e-7.
void test_orders_are_uniform() {
  const std::vector<std::int32_t> codes = {0, 0, 0};
  const ArmCodes arm_codes(codes.data(), codes.size(), 1);
  PromptBuffers buffers(arm_codes);
  constexpr int kEpochs = 60000;
  std::vector<int> counts(27);
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    const auto order = draw_from(&buffers, 0, 3);
    ++counts[static_cast<std::size_t>(9 * order[0] + 3 * order[1] + order[2])];
  }
  double chi_square = 0;
  int orders = 0;
  for (const int count : counts) {
    if (count == 0) continue;
    ++orders;
    chi_square += (count - kEpochs / 6.0) * (count - kEpochs / 6.0) / (kEpochs / 6.0);
  }
  CHECK(orders == 6);
  CHECK(chi_square < 36.5);
}

// Restored at every cursor of an even and an odd epoch, the rest of the draws is the same, over
// the end of the epoch and the next ones too.
void test_restore_at_every_position() {
  const std::vector<std::int32_t> codes = {1, 0, 1, 1, 0, 1, 1, 1};
  const ArmCodes arm_codes(codes.data(), codes.size(), 2);
  PromptBuffers reference(arm_codes);
  const auto all = draw_from(&reference, 1, 60);
  for (std::size_t drawn = 0; drawn < 24; ++drawn) {
    PromptBuffers buffers(arm_codes);
    draw_from(&buffers, 1, 59);  // old slots must not show through
    buffers.restore({ArmPosition{}, ArmPosition{drawn / 6, static_cast<std::uint32_t>(drawn % 6)}},
                    {-1, 7}, kKey);
    CHECK(buffers.last_drawn_step(0) == -1 && buffers.last_drawn_step(1) == 7);
    const auto rest = draw_from(&buffers, 1, 60 - drawn);
    CHECK(std::equal(rest.begin(), rest.end(), all.begin() + static_cast<std::ptrdiff_t>(drawn)));
  }
}

void test_positions_are_checked() {
  const std::vector<std::int32_t> codes = {0, 0};
  const ArmCodes arm_codes(codes.data(), codes.size(), 2);
  const PromptBuffers buffers(arm_codes);
  buffers.check_position(0, {3, 1});
  CHECK_THROWS(buffers.check_position(0, {3, 2}), std::invalid_argument, "cursor 2");
  CHECK_THROWS(buffers.check_position(1, {1, 0}), std::invalid_argument, "of 0 prompts");
  CHECK_THROWS(buffers.check_position(0, {sec_grpo::kEpochLimit, 0}), std::invalid_argument,
               "epoch");
}

void test_codes_of_every_width() {
  for (const std::size_t num_arms : {3u, 256u, 257u, 65536u, 65537u}) {
    const auto last = static_cast<std::int32_t>(num_arms - 1);
    const std::vector<std::int32_t> codes = {last, 0, last, 1};
    const ArmCodes arm_codes(codes.data(), codes.size(), num_arms);
    arm_codes.visit([&](const auto* stored) {
      for (std::size_t i = 0; i < codes.size(); ++i) {
        CHECK(static_cast<std::int32_t>(stored[i]) == codes[i]);
      }
      CHECK(sizeof(*stored) == (num_arms <= 256 ? 1 : num_arms <= 65536 ? 2 : 4));
    });
  }
  const std::vector<std::int32_t> codes = {0, 2, 1, -1};
  CHECK(ArmCodes(codes.data(), 3, 3).hash() == ArmCodes(codes.data(), 3, 70000).hash());
  CHECK_THROWS(ArmCodes(codes.data(), 3, 2), std::out_of_range, "codes[1]");
  CHECK_THROWS(ArmCodes(codes.data(), 4, 3), std::out_of_range, "codes[3]");
  CHECK_THROWS(ArmCodes(codes.data(), 0, 3), std::invalid_argument, "prompts");
  CHECK_THROWS(ArmCodes(codes.data(), 3, 0), std::invalid_argument, "arms");
}

int main() {
  std::vector<std::int32_t> codes;
  for (int i = 0; i < 100; ++i) codes.push_back(i % 7 == 0 ? 3 : i % 2);
  test_epochs_are_permutations(codes);
  std::sort(codes.begin(), codes.end());
  test_epochs_are_permutations(codes);
  test_orders_are_uniform();
  test_restore_at_every_position();
  test_positions_are_checked();
  test_codes_of_every_width();
}
