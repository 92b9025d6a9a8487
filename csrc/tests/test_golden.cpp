#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "sec_grpo/crc32.h"
#include "sec_grpo/engine.h"

using sec_grpo::Engine;

// The stream that every compiler, standard library and processor must give. The same run is
// checked from Python in tests/core/test_golden.py; a change of these numbers breaks the
// resumption of saved runs and needs a new state version.
int main() {
  std::vector<std::int32_t> codes(1000);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    codes[i] = static_cast<std::int32_t>((i * i) % 7);
  }
  Engine engine(codes.data(), codes.size(), 7, 2026, 0);
  std::string drawn;
  std::vector<std::int64_t> first;
  for (int step = 0; step < 50; ++step) {
    std::vector<std::int64_t> prompts(64);
    engine.draw(prompts.size(), prompts.data());
    if (step == 0) first.assign(prompts.begin(), prompts.begin() + 8);
    std::vector<float> advantages;
    for (const std::int64_t prompt : prompts) {
      drawn.push_back(static_cast<char>(prompt));
      drawn.push_back(static_cast<char>(prompt >> 8));
      for (int j = 0; j < 8; ++j) {
        advantages.push_back(static_cast<float>((prompt * 31 + step * 17 + j) % 64 - 32) / 32.0f);
      }
    }
    const sec_grpo::GroupArray array{advantages.data(), sec_grpo::FloatType::kFloat32, 64, 8};
    engine.td_update(engine.reduce(prompts.data(), 64, array, {}), 0.5, 0.2, step % 10 == 9);
  }
  std::string weights;
  for (const std::uint64_t weight : engine.weights()) {
    for (int i = 0; i < 8; ++i) weights.push_back(static_cast<char>(weight >> (8 * i)));
  }
  for (const std::int64_t prompt : first) std::printf("%lld ", static_cast<long long>(prompt));
  // Without its own checksum, with which the CRC of every state is the same.
  std::string state = engine.serialize("golden", "");
  state.resize(state.size() - 4);
  std::printf("%#x %#x %#x\n", sec_grpo::crc32(drawn.data(), drawn.size()),
              sec_grpo::crc32(weights.data(), weights.size()),
              sec_grpo::crc32(state.data(), state.size()));
  CHECK((first == std::vector<std::int64_t>{697, 993, 963, 936, 119, 924, 75, 114}));
  CHECK(sec_grpo::crc32(drawn.data(), drawn.size()) == 0x5b2b5c26u);
  CHECK(sec_grpo::crc32(weights.data(), weights.size()) == 0x6b32c390u);
  CHECK(sec_grpo::crc32(state.data(), state.size()) == 0x438c0f16u);
}
