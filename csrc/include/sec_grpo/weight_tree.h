#ifndef SEC_GRPO_WEIGHT_TREE_H_
#define SEC_GRPO_WEIGHT_TREE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sec_grpo/huge_vector.h"

namespace sec_grpo {

// A sum tree with 16 children a node over 64-bit integer weights: exact, so neither the order
// nor the number of updates leaves a trace.
class WeightTree {
 public:
  static constexpr std::size_t kFanout = 16;

  explicit WeightTree(std::size_t num_leaves);

  std::size_t num_leaves() const { return num_leaves_; }
  std::uint64_t total() const { return total_; }
  std::uint64_t weight(std::size_t leaf) const;

  void set(std::size_t leaf, std::uint64_t weight);

  // Starts loading what set(leaf, ...) touches first.
  void prefetch(std::size_t leaf) const;

  // Sets the weight of every leaf to weight_of(leaf).
  template <class WeightOf>
  void fill(WeightOf&& weight_of) {
    for (std::size_t leaf = 0; leaf < num_leaves_; ++leaf) nodes_[leaf] = weight_of(leaf);
    pad_level(0, num_leaves_);
    rebuild();
  }

  // The leaf whose interval of the running sum holds `target`, which is below total(). A leaf of
  // weight 0 has no interval.
  std::size_t find(std::uint64_t target) const;

  // leaves[i] = find(targets[i]), level by level, so that the memory accesses of one target need
  // not wait for those of another; the targets are overwritten.
  void find_all(std::uint64_t* targets, std::size_t count, std::uint32_t* leaves) const;
  void find_all_portable(std::uint64_t* targets, std::size_t count, std::uint32_t* leaves) const;

 private:
  // Turns level 0 from weights into sums, and makes the levels above.
  void rebuild();
  using SearchLevel = void (*)(const std::uint64_t* nodes, const std::uint64_t* below,
                               std::uint64_t* targets, std::size_t count, std::uint32_t* leaves);
  void find_levels(SearchLevel search, std::uint64_t* targets, std::size_t count,
                   std::uint32_t* leaves) const;
  // Zeroes the places of a level from `size` on.
  void pad_level(std::size_t level, std::size_t size);

  std::size_t num_leaves_;
  std::uint64_t total_ = 0;
  // Level 0 (leaves) first, offsets_ saying where each level begins. A node is 16 places, each
  // with the sum of the weights of its children up to and with that one; a level is padded to
  // whole nodes with children of weight 0.
  std::vector<std::size_t> offsets_;
  HugeVector<std::uint64_t> nodes_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_WEIGHT_TREE_H_
