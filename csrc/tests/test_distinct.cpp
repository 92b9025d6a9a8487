#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "sec_grpo/distinct.h"

using sec_grpo::distinct_in_range;

template <class Item>
void test_by_hand(Item low) {
  const std::vector<Item> items = {Item(low + 7), low, Item(low + 2), Item(low + 7), Item(low + 2)};
  const auto found = distinct_in_range(items.data(), items.size(), low, 9);
  CHECK((found.offsets == std::vector<std::int64_t>{0, 2, 7}));
  const std::vector<std::int32_t> codes(found.codes.begin(), found.codes.end());
  CHECK((codes == std::vector<std::int32_t>{2, 0, 1, 2, 1}));
}

void test_ends_of_the_types() {
  test_by_hand<std::int8_t>(std::numeric_limits<std::int8_t>::min());
  test_by_hand<std::int8_t>(-3);
  test_by_hand<std::uint8_t>(240);
  test_by_hand<std::int64_t>(std::numeric_limits<std::int64_t>::min());
  test_by_hand<std::int64_t>(std::numeric_limits<std::int64_t>::max() - 7);
  test_by_hand<std::uint64_t>(std::numeric_limits<std::uint64_t>::max() - 7);
}

void test_outside() {
  const std::int32_t items[] = {5, 9, 4};
  CHECK_THROWS(distinct_in_range(items, 3, 5, 5), std::invalid_argument, "range of 5");
  CHECK_THROWS(distinct_in_range(items, 2, 5, 4), std::invalid_argument, "4 above its low");
  CHECK(distinct_in_range(items, 2, 5, 5).offsets.size() == 2);
  CHECK(distinct_in_range(items, 0, 5, 5).codes.empty());
}

void test_numbers_already() {
  const std::int32_t items[] = {2, 0, 1, 2};
  const auto found = distinct_in_range(items, 4, 0, 3);
  CHECK((found.offsets == std::vector<std::int64_t>{0, 1, 2}));
  CHECK(found.codes.empty());
  CHECK(distinct_in_range(items, 4, 0, 4).codes.size() == 4);
  const std::int32_t others[] = {2, 1, 2};
  const auto shifted = distinct_in_range(others, 3, 1, 2).codes;
  CHECK(shifted.size() == 3 && shifted[0] == 1 && shifted[1] == 0 && shifted[2] == 1);
  const std::int64_t wide[] = {1, 0};
  CHECK(distinct_in_range(wide, 2, std::int64_t{0}, 2).codes.size() == 2);
}

int main() {
  test_numbers_already();
  test_ends_of_the_types();
  test_outside();
}
