#ifndef SEC_GRPO_WEIGHT_TREE_H_
#define SEC_GRPO_WEIGHT_TREE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace sec_grpo {

// A sum tree with 16 children a node over 64-bit integer weights: exact, so neither the order
// nor the number of updates leaves a trace.
class WeightTree {
 public:
  static constexpr std::size_t kFanout = 16;

  explicit WeightTree(std::size_t num_leaves);

  std::size_t num_leaves() const { return num_leaves_; }
  std::uint64_t total() const { return total_; }
  std::uint64_t weight(std::size_t leaf) const { return nodes_[leaf]; }

  void set(std::size_t leaf, std::uint64_t weight);

  // The leaves, to be written before `rebuild`.
  std::uint64_t* leaves() { return nodes_.data(); }
  void rebuild();

  // The leaf whose interval of the running sum holds `target`, which is below total(). A leaf of
  // weight 0 has no interval.
  std::size_t find(std::uint64_t target) const;

 private:
  std::size_t num_leaves_;
  std::uint64_t total_ = 0;
  // Level 0 (leaves) first; each level padded with zeros to whole nodes; offsets_ says where
  // each begins.
  std::vector<std::size_t> offsets_;
  std::vector<std::uint64_t> nodes_;
};

}  // namespace sec_grpo

#endif  // SEC_GRPO_WEIGHT_TREE_H_
