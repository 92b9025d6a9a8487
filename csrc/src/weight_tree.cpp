#include "sec_grpo/weight_tree.h"

#include "sec_grpo/cpu.h"
#include "sec_grpo/prefetch.h"

#ifdef SEC_GRPO_AVX2
#include <immintrin.h>
#endif

namespace sec_grpo {
namespace {

inline void prefetch_node(const std::uint64_t* node) {
  prefetch_for_read(node);
  prefetch_for_read(node + WeightTree::kFanout / 2);
}

// kFrom[16 - first + i] keeps place i of a node from `first` on: additions to the last places of a
// node are made to all, since a loop of unforeseeable length costs more than the rest of them.
constexpr std::uint64_t kAll = ~std::uint64_t{0};
constexpr std::uint64_t kFrom[2 * WeightTree::kFanout] = {
    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
    kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll, kAll};

#ifdef SEC_GRPO_AVX2
SEC_GRPO_AVX2 void add_from_avx2(std::uint64_t* node, std::size_t first, std::uint64_t change) {
  const std::uint64_t* mask = kFrom + WeightTree::kFanout - first;
  const __m256i changes = _mm256_set1_epi64x(static_cast<long long>(change));
  for (std::size_t i = 0; i < WeightTree::kFanout; i += 4) {
    auto* place = reinterpret_cast<__m256i*>(node + i);
    const __m256i kept = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(mask + i));
    _mm256_store_si256(place,
                       _mm256_add_epi64(_mm256_load_si256(place), _mm256_and_si256(kept, changes)));
  }
}
#endif

// Adds to the places of a node from `first` on.
inline void add_from(std::uint64_t* node, std::size_t first, std::uint64_t change) {
#ifdef SEC_GRPO_AVX2
  if (has_avx2()) return add_from_avx2(node, first, change);
#endif
  const std::uint64_t* mask = kFrom + WeightTree::kFanout - first;
  for (std::size_t i = 0; i < WeightTree::kFanout; ++i) node[i] += change & mask[i];
}

// *target relative to the interval of a child. No branch, for it would be foreseen half the time.
inline std::size_t enter(const std::uint64_t* node, std::size_t child, std::uint64_t* target) {
  const std::uint64_t is_later = child != 0 ? 1 : 0;
  *target -= node[child - is_later] & (std::uint64_t{0} - is_later);
  return child;
}

// The child of a node whose interval holds *target, which becomes relative to it. All sums are
// compared: a search that stops at the right one stops at random, and the mispredicted branch
// costs more than the rest of the node.
inline std::size_t descend(const std::uint64_t* node, std::uint64_t* target) {
  std::size_t child = 0;
  // The last sum is that of the node, which the target is below.
  for (std::size_t i = 0; i + 1 < WeightTree::kFanout; ++i) child += *target >= node[i] ? 1 : 0;
  return enter(node, child, target);
}

// Takes the targets one level down, from places leaves[0..count) of the nodes, and starts loading
// the nodes of the level below where there is one.
void search_level(const std::uint64_t* nodes, const std::uint64_t* below, std::uint64_t* targets,
                  std::size_t count, std::uint32_t* leaves) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t index = std::size_t{leaves[i]} * WeightTree::kFanout;
    leaves[i] = static_cast<std::uint32_t>(index + descend(nodes + index, &targets[i]));
    if (below != nullptr) prefetch_node(below + std::size_t{leaves[i]} * WeightTree::kFanout);
  }
}

#ifdef SEC_GRPO_AVX2
// Sums lie below 2^63, so that the signed comparison is right.
SEC_GRPO_AVX2 inline __m256i above(const std::uint64_t* sums, __m256i target) {
  return _mm256_cmpgt_epi64(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums)), target);
}

SEC_GRPO_AVX2 inline std::size_t descend_avx2(const std::uint64_t* node, std::uint64_t* target) {
  const __m256i sought = _mm256_set1_epi64x(static_cast<long long>(*target));
  // Narrowed from 64 bits a child to 16, in an order that does not matter to their count.
  const __m256i low = _mm256_packs_epi32(above(node, sought), above(node + 4, sought));
  const __m256i high = _mm256_packs_epi32(above(node + 8, sought), above(node + 12, sought));
  const auto bits = static_cast<unsigned>(_mm256_movemask_epi8(_mm256_packs_epi16(low, high)));
  const auto num_above = static_cast<std::size_t>(_mm_popcnt_u32(bits)) / 2;
  return enter(node, WeightTree::kFanout - num_above, target);
}

SEC_GRPO_AVX2 void search_level_avx2(const std::uint64_t* nodes, const std::uint64_t* below,
                                     std::uint64_t* targets, std::size_t count,
                                     std::uint32_t* leaves) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t index = std::size_t{leaves[i]} * WeightTree::kFanout;
    leaves[i] = static_cast<std::uint32_t>(index + descend_avx2(nodes + index, &targets[i]));
    if (below != nullptr) prefetch_node(below + std::size_t{leaves[i]} * WeightTree::kFanout);
  }
}
#endif

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

void WeightTree::prefetch(std::size_t leaf) const { prefetch_node(&nodes_[leaf - leaf % kFanout]); }

void WeightTree::set(std::size_t leaf, std::uint64_t weight) {
  // Unsigned wrap-around makes one addition serve for both signs of the change.
  const std::uint64_t change = weight - this->weight(leaf);
  total_ += change;
  std::size_t index = leaf;
  for (const std::size_t offset : offsets_) {
    std::uint64_t* node = &nodes_[offset + index - index % kFanout];
    add_from(node, index % kFanout, change);
    index /= kFanout;
  }
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
#ifdef SEC_GRPO_AVX2
  if (has_avx2()) return find_levels(search_level_avx2, targets, count, leaves);
#endif
  find_all_portable(targets, count, leaves);
}

void WeightTree::find_all_portable(std::uint64_t* targets, std::size_t count,
                                   std::uint32_t* leaves) const {
  find_levels(search_level, targets, count, leaves);
}

void WeightTree::find_levels(SearchLevel search, std::uint64_t* targets, std::size_t count,
                             std::uint32_t* leaves) const {
  for (std::size_t i = 0; i < count; ++i) leaves[i] = 0;
  for (std::size_t level = offsets_.size(); level-- > 0;) {
    const std::uint64_t* below = level > 0 ? &nodes_[offsets_[level - 1]] : nullptr;
    search(&nodes_[offsets_[level]], below, targets, count, leaves);
  }
}

}  // namespace sec_grpo
