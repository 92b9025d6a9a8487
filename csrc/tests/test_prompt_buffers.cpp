#include <algorithm>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "sec_grpo/prompt_buffers.h"

using sec_grpo::ArmCodes;
using sec_grpo::ArmPosition;
using sec_grpo::BufferState;
using sec_grpo::Growth;
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

// Restored at every cursor, before, at and after the start of a window, the rest of the draws is
// the same, over the ends of epochs and windows too.
void test_restore_at_every_position() {
  const std::vector<std::int32_t> codes = {1, 0, 1, 1, 0, 1, 1, 1};
  const ArmCodes arm_codes(codes.data(), codes.size(), 2);
  PromptBuffers reference(arm_codes);
  constexpr std::size_t kWindowDraws = 6 * PromptBuffers::kWindow;
  const auto all = draw_from(&reference, 1, 3 * kWindowDraws);
  for (std::size_t start : {std::size_t{0}, kWindowDraws - 12, 2 * kWindowDraws - 12}) {
    for (std::size_t drawn = start; drawn < start + 24; ++drawn) {
      PromptBuffers buffers(arm_codes);
      draw_from(&buffers, 1, 59);  // old places must not show through
      BufferState state;
      state.positions = {ArmPosition{},
                         ArmPosition{drawn / 6, static_cast<std::uint32_t>(drawn % 6)}};
      state.last_drawn_steps = {-1, 7};
      buffers.check(state);
      buffers.restore(state, kKey, arm_codes);
      CHECK(buffers.last_drawn_step(0) == -1 && buffers.last_drawn_step(1) == 7);
      CHECK(buffers.draws(1) == drawn);
      const auto rest = draw_from(&buffers, 1, all.size() - drawn);
      CHECK(std::equal(rest.begin(), rest.end(), all.begin() + static_cast<std::ptrdiff_t>(drawn)));
    }
  }
}

// A window starts from the ascending order whatever was drawn before it: with one arm of three,
// the first epoch of the second window is what it is for these counters, not what is left over.
void test_windows_start_in_order() {
  const std::vector<std::int32_t> codes = {0, 0, 0, 0, 0};
  const ArmCodes arm_codes(codes.data(), codes.size(), 1);
  PromptBuffers drawn(arm_codes);
  draw_from(&drawn, 0, 5 * PromptBuffers::kWindow);
  PromptBuffers restored(arm_codes);
  BufferState state;
  state.positions = {ArmPosition{PromptBuffers::kWindow, 0}};
  state.last_drawn_steps = {0};
  restored.restore(state, kKey, arm_codes);
  CHECK(draw_from(&drawn, 0, 300) == draw_from(&restored, 0, 300));
}

void test_states_are_checked() {
  const std::vector<std::int32_t> codes = {0, 0};
  const ArmCodes arm_codes(codes.data(), codes.size(), 2);
  const PromptBuffers buffers(arm_codes);
  const auto refuse = [&](ArmPosition first, ArmPosition second, std::vector<Growth> growths,
                          const char* text) {
    BufferState state;
    state.positions = {first, second};
    state.last_drawn_steps = {-1, -1};
    state.growths = std::move(growths);
    CHECK_THROWS(buffers.check(state), std::invalid_argument, text);
  };
  refuse({3, 2}, {}, {}, "cursor 2");
  refuse({3, 1}, {1, 0}, {}, "of 0 prompts");
  refuse({sec_grpo::kEpochLimit, 0}, {}, {}, "epoch");
  refuse({3, 1}, {}, {{0, 2, 1, 0}}, "grown from 2");          // to no more than that
  refuse({3, 1}, {}, {{0, 1, 4, 0}}, "epoch 4");               // in the future
  refuse({3, 0}, {}, {{0, 1, 3, 1}}, "cursor 1");              // at a place it never had
  refuse({3, 1}, {}, {{5, 1, 1, 0}}, "arm 5");                 // no such arm
  refuse({70, 1}, {}, {{0, 1, 63, 0}}, "epoch 63");            // before the window
  refuse({3, 1}, {}, {{0, 1, 2, 0}, {0, 1, 2, 0}}, "from 1");  // twice from the same
}

// Prompts added in the middle of an epoch: it goes on over the prompts left and the new ones, the
// other arms notice nothing, and a state restores it at every place.
void test_growth() {
  const std::vector<std::int32_t> first = {0, 1, 0, 1, 0, 1, 1, 1, 2};
  const std::vector<std::int32_t> second = {1, 3, 1, 0, 3, 1};
  const std::vector<std::int32_t> third = {1, 1, 1, 1, 1, 1, 1};
  std::vector<std::int32_t> all = first;
  all.insert(all.end(), second.begin(), second.end());
  const ArmCodes before(first.data(), first.size(), 3);
  const ArmCodes codes(all.data(), all.size(), 4);
  all.insert(all.end(), third.begin(), third.end());
  const ArmCodes whole(all.data(), all.size(), 4);

  PromptBuffers untouched(before);
  const auto quiet = draw_from(&untouched, 2, 20);
  PromptBuffers grown(before);
  auto epoch = draw_from(&grown, 1, 5 * 3 + 2);  // two of the fourth epoch
  epoch.erase(epoch.begin(), epoch.begin() + 15);
  CHECK(draw_from(&grown, 2, 7) == std::vector<std::int64_t>(quiet.begin(), quiet.begin() + 7));
  grown.add(second.data(), second.size(), 9, 4);
  CHECK(grown.size(1) == 8 && grown.size(3) == 2 && grown.draws(1) == 17);
  const auto rest = draw_from(&grown, 1, 6);
  epoch.insert(epoch.end(), rest.begin(), rest.end());
  std::sort(epoch.begin(), epoch.end());
  CHECK((epoch == std::vector<std::int64_t>{1, 3, 5, 6, 7, 9, 11, 14}));
  CHECK(grown.draws(1) == 23);
  const auto on = draw_from(&grown, 2, 13);
  CHECK(on == std::vector<std::int64_t>(quiet.begin() + 7, quiet.end()));
  auto fresh = draw_from(&grown, 3, 2);
  std::sort(fresh.begin(), fresh.end());
  CHECK((fresh == std::vector<std::int64_t>{10, 13}));

  for (int steps = 0; steps < 1200; ++steps) {
    if (steps == 37) grown.add(third.data(), third.size(), 15, 4);
    const ArmCodes& now = steps < 37 ? codes : whole;
    if (steps % 7 == 0 || steps > 1190) {
      const BufferState state = grown.state();
      PromptBuffers restored(now);
      restored.check(state);
      restored.restore(state, kKey, now);
      PromptBuffers copy(now);
      copy.restore(grown.state(), kKey, now);
      CHECK(restored.draws(1) == grown.draws(1) && restored.draws(0) == grown.draws(0));
      for (std::uint32_t arm = 0; arm < 4; ++arm) {
        CHECK(draw_from(&restored, arm, 40) == draw_from(&copy, arm, 40));
      }
    }
    const std::vector<std::int64_t> one = draw_from(&grown, 1, 1);
    if (steps == 1100) {
      // Windows later nothing of the growth needs to be remembered but the count of the draws.
      for (const Growth& growth : grown.state().growths) CHECK(growth.arm != 1);
      CHECK(grown.draws(1) == 23 + 1101);
    }
    if (steps % 50 == 0) {
      PromptBuffers restored(now);
      restored.restore(grown.state(), kKey, now);
      for (std::uint32_t arm = 0; arm < 4; ++arm) {
        const BufferState state = grown.state();
        CHECK(draw_from(&restored, arm, 25) == draw_from(&grown, arm, 25));
        grown.restore(state, kKey, now);
      }
    }
  }
}

// Of six prompts two are drawn, then three come: each of the seven left is next equally often.
// 6 degrees of freedom: above 37.3 with probability 1.5e-6.
void test_growth_is_uniform() {
  const std::vector<std::int32_t> codes(6, 0);
  const std::vector<std::int32_t> more(3, 0);
  const ArmCodes arm_codes(codes.data(), codes.size(), 1);
  std::vector<int> counts(9);
  constexpr int kRuns = 14000;
  for (std::uint32_t run = 0; run < kRuns; ++run) {
    PromptBuffers buffers(arm_codes);
    const std::vector<std::uint32_t> arms(2, 0);
    std::vector<std::int64_t> prompts(2);
    const PhiloxKey key{run, 77};
    buffers.draw(arms.data(), 2, 0, key, prompts.data());
    buffers.add(more.data(), more.size(), 6, 1);
    std::int64_t next;
    buffers.draw(arms.data(), 1, 1, key, &next);
    // Named by its rank among those left, or 4 to 6 when it is new.
    std::int64_t rank = next;
    for (const std::int64_t gone : prompts) rank -= gone < next ? 1 : 0;
    ++counts[static_cast<std::size_t>(rank)];
  }
  double chi_square = 0;
  for (std::size_t rank = 0; rank < 7; ++rank) {
    chi_square += (counts[rank] - kRuns / 7.0) * (counts[rank] - kRuns / 7.0) / (kRuns / 7.0);
  }
  CHECK(counts[7] == 0 && counts[8] == 0);
  CHECK(chi_square < 37.3);
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
  test_windows_start_in_order();
  test_states_are_checked();
  test_growth();
  test_growth_is_uniform();
  test_codes_of_every_width();
}
