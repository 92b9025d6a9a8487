#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "sec_grpo/engine.h"

using sec_grpo::Engine;

// Threads that draw, observe, read and restore at once: for ThreadSanitizer, and every epoch
// must still be a permutation.
void test_all_methods_at_once() {
  constexpr std::size_t kPrompts = 1000, kBatch = 50, kThreads = 4, kRounds = 100;
  std::vector<std::int32_t> codes(kPrompts);
  for (std::size_t i = 0; i < kPrompts; ++i) codes[i] = static_cast<std::int32_t>(i % 5);
  Engine engine(codes.data(), kPrompts, 5, 1, 0);
  std::vector<std::vector<std::int64_t>> drawn(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::vector<std::int64_t> prompts(kBatch);
      const std::vector<float> advantages(kBatch * 4, 0.5f + 0.1f * static_cast<float>(thread));
      const sec_grpo::GroupArray array{advantages.data(), sec_grpo::FloatType::kFloat32, kBatch, 4};
      const std::vector<double> scores(5, 0.0);
      for (std::size_t round = 0; round < kRounds; ++round) {
        engine.draw(kBatch, prompts.data());
        drawn[thread].insert(drawn[thread].end(), prompts.begin(), prompts.end());
        const auto reduction = engine.reduce(prompts.data(), kBatch, array, {});
        engine.td_update(reduction, 0.5, 0.3, thread == 0);
        engine.record(reduction);
        if (round % 10 == 0) {
          engine.assign(scores.data(), scores.size(), 1.0);
          double sum = 0;
          for (const double p : engine.probabilities()) sum += p;
          CHECK(sum > 0.999999 && sum < 1.000001);
          engine.parse(engine.serialize("s", ""), "s");
          engine.arm_table();
          engine.summary();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(engine.step() == static_cast<std::int64_t>(kThreads * kRounds));
  std::vector<std::int64_t> counts(kPrompts);
  for (const auto& prompts : drawn) {
    for (const std::int64_t prompt : prompts) ++counts[static_cast<std::size_t>(prompt)];
  }
  for (std::size_t arm = 0; arm < 5; ++arm) {
    std::int64_t fewest = counts[arm], most = counts[arm];
    for (std::size_t i = arm; i < kPrompts; i += 5) {
      fewest = std::min(fewest, counts[i]);
      most = std::max(most, counts[i]);
    }
    CHECK(most - fewest <= 1);
  }
}

// A state taken while others draw is one moment of the engine: restoring it works.
void test_restore_while_drawing() {
  const std::vector<std::int32_t> codes = {0, 0, 0, 1, 1, 1, 1};
  Engine engine(codes.data(), codes.size(), 2, 1, 0);
  std::thread drawer([&] {
    std::vector<std::int64_t> prompts(10);
    for (int i = 0; i < 300; ++i) engine.draw(prompts.size(), prompts.data());
  });
  for (int i = 0; i < 300; ++i) engine.restore(engine.parse(engine.serialize("s", ""), "s"));
  drawer.join();
  engine.parse(engine.serialize("s", ""), "s");
}

// Prompts and arms come in one thread while others draw, learn and save.
void test_growth_while_drawing() {
  const std::vector<std::int32_t> codes = {0, 0, 0, 1, 1, 1, 1};
  Engine engine(codes.data(), codes.size(), 2, 1, 0);
  std::thread grower([&] {
    for (std::int32_t i = 0; i < 200; ++i) {
      const std::int32_t more[] = {i % 2, 2 + i / 50};
      engine.add(more, 2, static_cast<std::size_t>(3 + i / 50), 0);
    }
  });
  std::vector<std::thread> drawers;
  for (int thread = 0; thread < 2; ++thread) {
    drawers.emplace_back([&] {
      std::vector<std::int64_t> prompts(10), arms(10);
      for (int i = 0; i < 300; ++i) {
        engine.draw(prompts.size(), prompts.data());
        engine.arm_indices(prompts.data(), prompts.size(), arms.data());
        const std::vector<float> ones(prompts.size(), 1.0f);
        const sec_grpo::GroupArray array{ones.data(), sec_grpo::FloatType::kFloat32, 10, 1};
        engine.td_update(engine.reduce(prompts.data(), 10, array, {}), 0.5, 1.0, false);
        engine.serialize("s", "");
      }
    });
  }
  grower.join();
  for (std::thread& drawer : drawers) drawer.join();
  CHECK(engine.num_prompts() == 407 && engine.num_arms() == 6);
  std::int64_t draws = 0;
  for (const std::int64_t count : engine.arm_table().draws) draws += count;
  CHECK(draws == 2 * 300 * 10);
}

int main() {
  test_growth_while_drawing();
  test_all_methods_at_once();
  test_restore_while_drawing();
}
