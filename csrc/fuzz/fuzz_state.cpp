// Fuzz target of the state parser: whatever the bytes, `parse` refuses them with a StateError, or
// the engine restores them and draws on. The size and the checksum of the input are made right
// first, since no mutation gets past them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <string>
#include <vector>

#include "sec_grpo/crc32.h"
#include "sec_grpo/engine.h"

namespace {

using sec_grpo::Engine;
using sec_grpo::State;
using sec_grpo::StateError;

constexpr std::size_t kPrefix = 20;  // mark, version and size

const std::vector<std::int32_t> kCodes = {0, 1, 0, 2, 0, 1, 1, 0, 2, 0, 0};
const std::vector<std::int32_t> kMore = {2, 0, 4, 1};

Engine make_engine() {
  std::vector<std::int32_t> codes = kCodes;
  codes.insert(codes.end(), kMore.begin(), kMore.end());
  return Engine(codes.data(), codes.size(), 5, 3, 5);
}

void put(std::string* bytes, std::size_t position, std::uint64_t value, std::size_t width) {
  for (std::size_t i = 0; i < width; ++i) {
    (*bytes)[position + i] = static_cast<char>(value >> (8 * i));
  }
}

std::string resealed(std::string bytes) {
  if (bytes.size() < kPrefix + 4) return bytes;
  put(&bytes, 12, bytes.size(), 8);
  put(&bytes, bytes.size() - 4, sec_grpo::crc32(bytes.data(), bytes.size() - 4), 4);
  return bytes;
}

void require(bool condition) {
  if (!condition) std::abort();
}

// A restored engine draws prompts that exist and saves a state that it accepts itself.
void use(Engine* engine) {
  std::vector<std::int64_t> prompts(64);
  engine->draw(prompts.size(), prompts.data());
  for (const std::int64_t prompt : prompts) {
    require(prompt >= 0 && prompt < static_cast<std::int64_t>(engine->num_prompts()));
  }
  const auto p = engine->probabilities();
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  require(total > 0.999999 && total < 1.000001);
  engine->arm_table();
}

void run(const std::string& bytes) {
  Engine engine = make_engine();
  State state;
  try {
    state = engine.parse(bytes, "s");
  } catch (const StateError&) {
    return;
  }
  engine.restore(state);
  const std::string saved = engine.serialize("s", state.strategy_state);
  Engine again = make_engine();
  again.restore(again.parse(saved, "s"));
  require(again.serialize("s", state.strategy_state) == saved);
  use(&engine);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  run(resealed(std::string(reinterpret_cast<const char*>(data), size)));
  return 0;
}

#ifndef SEC_GRPO_LIBFUZZER

// Without libFuzzer: states of real runs, mutated by a fixed stream of numbers.
namespace {

class Numbers {
 public:
  std::uint64_t operator()(std::uint64_t range) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % range;
  }

 private:
  std::uint64_t state_ = 12345;
};

std::vector<std::string> real_states() {
  std::vector<std::string> states;
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 4);
  std::vector<std::int64_t> prompts(8);
  for (int step = 0; step < 60; ++step) {
    if (step == 20) engine.add(kMore.data(), kMore.size(), 5, 5);
    engine.draw(prompts.size(), prompts.data());
    std::vector<float> advantages;
    for (const std::int64_t prompt : prompts) {
      advantages.push_back(static_cast<float>(prompt % 5) * 0.3f);
    }
    const sec_grpo::GroupArray array{advantages.data(), sec_grpo::FloatType::kFloat32, 8, 1};
    const auto reduction = engine.reduce(prompts.data(), 8, array, array);
    engine.td_update(reduction, 0.3, 0.05, false);
    engine.record(reduction);
    if (step > 20 && step % 13 == 0) states.push_back(engine.serialize("s", "memory"));
  }
  return states;
}

std::string mutated(std::string bytes, Numbers* numbers) {
  for (std::uint64_t i = 0, count = 1 + (*numbers)(4); i < count && bytes.size() > kPrefix; ++i) {
    const std::size_t at = kPrefix + (*numbers)(bytes.size() - kPrefix);
    switch ((*numbers)(5)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << (*numbers)(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>((*numbers)(2) == 0 ? 0xFF : 0x00);
        break;
      case 2:
        bytes.erase(at, 1 + (*numbers)(8));
        break;
      case 3:
        bytes.insert(at, 1 + (*numbers)(8), static_cast<char>((*numbers)(256)));
        break;
      default:
        bytes[at] = static_cast<char>((*numbers)(9));  // the width of a column
    }
  }
  return bytes;
}

}  // namespace

// fuzz_state_driver [runs [folder]]: with a folder, the states go there, a corpus for libFuzzer.
int main(int argc, char** argv) {
  const long runs = argc > 1 ? std::atol(argv[1]) : 20000;
  const std::vector<std::string> states = real_states();
  for (std::size_t i = 0; i < states.size(); ++i) {
    Engine engine = make_engine();
    engine.restore(engine.parse(states[i], "s"));  // what is mutated is accepted
    if (argc <= 2) continue;
    std::ofstream file(std::string(argv[2]) + "/state" + std::to_string(i), std::ios::binary);
    file.write(states[i].data(), static_cast<std::streamsize>(states[i].size()));
  }
  Numbers numbers;
  for (long i = 0; i < runs; ++i) {
    run(resealed(mutated(states[numbers(states.size())], &numbers)));
  }
}

#endif
