#include "sec_grpo/weight_tree.h"

#include "sec_grpo/prefetch.h"

namespace sec_grpo {
namespace {

// The child of a node whose interval holds *target, which becomes relative to it. All sums are
// compared: a search that stops at the right one stops at random, and the mispredicted branch
// costs more than the rest of the node.
std::size_t descend(const std::uint64_t* node, std::uint64_t* target) {
  std::size_t child = 0;
  // The last sum is that of the node, which the target is below.
  for (std::size_t i = 0; i + 1 < WeightTree::kFanout; ++i) child += *target >= node[i] ? 1 : 0;
  *target -= child == 0 ? 0 : node[child - 1];
  return child;
}

}  // namespace

WeightTree::WeightTree(std::size_t num_leaves) : num_leaves_(num_leaves) {
  std::size_t level_size = num_leaves;
  std::size_t end = 0;
  do {
    const std::size_t num_nodes = (level_size + kFanout - 1) / kFanout;
    offsets_.push_back(end);
    end += num_nodes * kFanout;
    level_size = num_nodes;
  } while (level_size > 1);
  nodes_.assign(end, 0);
}

std::uint64_t WeightTree::weight(std::size_t leaf) const {
  return leaf % kFanout == 0 ? nodes_[leaf] : nodes_[leaf] - nodes_[leaf - 1];
}

void WeightTree::set(std::size_t leaf, std::uint64_t weight) {
  // Unsigned wrap-around makes one addition serve for both signs of the change.
  const std::uint64_t change = weight - this->weight(leaf);
  std::size_t index = leaf;
  for (const std::size_t offset : offsets_) {
    std::uint64_t* node = &nodes_[offset + index / kFanout * kFanout];
    for (std::size_t child = index % kFanout; child < kFanout; ++child) node[child] += change;
    index /= kFanout;
  }
  total_ += change;
}

void WeightTree::rebuild() {
  for (std::size_t level = 0; level < offsets_.size(); ++level) {
    const bool is_top = level + 1 == offsets_.size();
    const std::size_t end = is_top ? nodes_.size() : offsets_[level + 1];
    const std::size_t num_nodes = (end - offsets_[level]) / kFanout;
    for (std::size_t index = 0; index < num_nodes; ++index) {
      std::uint64_t* node = &nodes_[offsets_[level] + index * kFanout];
      for (std::size_t child = 1; child < kFanout; ++child) node[child] += node[child - 1];
      (is_top ? total_ : nodes_[offsets_[level + 1] + index]) = node[kFanout - 1];
    }
    // The places after the last node of this level are padding of the level above.
    if (!is_top) pad_level(level + 1, num_nodes);
  }
}

void WeightTree::pad_level(std::size_t level, std::size_t size) {
  const std::size_t end = level + 1 == offsets_.size() ? nodes_.size() : offsets_[level + 1];
  for (std::size_t i = offsets_[level] + size; i < end; ++i) nodes_[i] = 0;
}

std::size_t WeightTree::find(std::uint64_t target) const {
  std::size_t index = 0;
  for (std::size_t level = offsets_.size(); level-- > 0;) {
    index = index * kFanout + descend(&nodes_[offsets_[level] + index * kFanout], &target);
  }
  return index;
}

void WeightTree::find_all(std::uint64_t* targets, std::size_t count, std::uint32_t* leaves) const {
  for (std::size_t i = 0; i < count; ++i) leaves[i] = 0;
  for (std::size_t level = offsets_.size(); level-- > 0;) {
    const std::uint64_t* nodes = &nodes_[offsets_[level]];
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t index = std::size_t{leaves[i]} * kFanout;
      leaves[i] = static_cast<std::uint32_t>(index + descend(nodes + index, &targets[i]));
      if (level > 0) {
        prefetch_for_read(&nodes_[offsets_[level - 1] + std::size_t{leaves[i]} * kFanout]);
        prefetch_for_read(&nodes_[offsets_[level - 1] + std::size_t{leaves[i]} * kFanout + 8]);
      }
    }
  }
}

}  // namespace sec_grpo
