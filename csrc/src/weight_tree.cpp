#include "sec_grpo/weight_tree.h"

namespace sec_grpo {

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

void WeightTree::set(std::size_t leaf, std::uint64_t weight) {
  // Unsigned wrap-around makes one addition serve for both signs of the change.
  const std::uint64_t change = weight - nodes_[leaf];
  std::size_t index = leaf;
  for (const std::size_t offset : offsets_) {
    nodes_[offset + index] += change;
    index /= kFanout;
  }
  total_ += change;
}

void WeightTree::rebuild() {
  for (std::size_t level = 0; level < offsets_.size(); ++level) {
    const bool is_top = level + 1 == offsets_.size();
    const std::size_t end = is_top ? nodes_.size() : offsets_[level + 1];
    const std::size_t num_nodes = (end - offsets_[level]) / kFanout;
    for (std::size_t node = 0; node < num_nodes; ++node) {
      const std::uint64_t* children = &nodes_[offsets_[level] + node * kFanout];
      std::uint64_t sum = 0;
      for (std::size_t child = 0; child < kFanout; ++child) sum += children[child];
      (is_top ? total_ : nodes_[offsets_[level + 1] + node]) = sum;
    }
  }
}

std::size_t WeightTree::find(std::uint64_t target) const {
  std::size_t index = 0;
  for (std::size_t level = offsets_.size(); level-- > 0;) {
    index *= kFanout;
    const std::uint64_t* children = &nodes_[offsets_[level]];
    for (; target >= children[index]; ++index) target -= children[index];
  }
  return index;
}

}  // namespace sec_grpo
