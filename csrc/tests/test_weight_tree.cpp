#include <cstdint>
#include <numeric>
#include <vector>

#include "check.h"
#include "sec_grpo/bounded.h"
#include "sec_grpo/philox.h"
#include "sec_grpo/weight_tree.h"

using sec_grpo::bounded;
using sec_grpo::WeightTree;

// A plain vector of weights, updated and searched the slow way, says what the tree must say.
void test_against_a_scan(std::size_t num_leaves) {
  WeightTree tree(num_leaves);
  std::vector<std::uint64_t> weights(num_leaves);
  sec_grpo::PhiloxWords words({0, 0, 0, 0}, {5, static_cast<std::uint32_t>(num_leaves)});
  for (int round = 0; round < 200; ++round) {
    if (round % 50 == 49) {
      for (std::uint64_t& weight : weights) weight = words() >> 40;
      tree.fill([&](std::size_t leaf) { return weights[leaf]; });
    } else {
      const std::size_t leaf = bounded(num_leaves, words);
      weights[leaf] = round % 3 == 0 ? 0 : words() >> (24 + round % 40);
      tree.set(leaf, weights[leaf]);
    }
    const std::uint64_t total = std::accumulate(weights.begin(), weights.end(), std::uint64_t{0});
    CHECK(tree.total() == total);
    for (std::size_t leaf = 0; leaf < num_leaves; leaf += 1 + num_leaves / 64) {
      CHECK(tree.weight(leaf) == weights[leaf]);
    }
    if (total == 0) continue;
    // Both ends of the interval of a random leaf, and a random target.
    for (const std::uint64_t target : {std::uint64_t{0}, total - 1, bounded(total, words)}) {
      const std::size_t found = tree.find(target);
      std::uint64_t targets[] = {target, total - 1 - target};
      std::uint32_t leaves[2];
      tree.find_all(targets, 2, leaves);
      CHECK(leaves[0] == found && leaves[1] == tree.find(total - 1 - target));
      std::uint64_t again[] = {target, total - 1 - target};
      std::uint32_t portable[2];
      tree.find_all_portable(again, 2, portable);
      CHECK(portable[0] == leaves[0] && portable[1] == leaves[1]);
      CHECK(found < num_leaves && weights[found] > 0);
      const std::uint64_t before = std::accumulate(
          weights.begin(), weights.begin() + static_cast<std::ptrdiff_t>(found), std::uint64_t{0});
      CHECK(before <= target && target < before + weights[found]);
    }
  }
}

int main() {
  for (const std::size_t num_leaves : {1u, 2u, 15u, 16u, 17u, 255u, 256u, 257u, 4096u, 5000u}) {
    test_against_a_scan(num_leaves);
  }
}
