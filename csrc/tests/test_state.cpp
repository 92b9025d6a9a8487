#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "sec_grpo/crc32.h"
#include "sec_grpo/engine.h"
#include "sec_grpo/state.h"

using sec_grpo::Engine;
using sec_grpo::State;
using sec_grpo::StateError;

const std::vector<std::int32_t> kCodes = {0, 1, 0, 2, 0, 1, 1, 0, 2, 0, 0};

void advance(Engine* engine, int steps) {
  std::vector<std::int64_t> prompts(8);
  for (int step = 0; step < steps; ++step) {
    engine->draw(prompts.size(), prompts.data());
    std::vector<float> advantages;
    for (const std::int64_t prompt : prompts) {
      advantages.push_back(static_cast<float>(prompt % 5) * 0.3f);
    }
    const sec_grpo::GroupArray array{advantages.data(), sec_grpo::FloatType::kFloat32, 8, 1};
    const auto reduction = engine->reduce(prompts.data(), 8, array, array);
    engine->td_update(reduction, 0.3, 0.05, false);
    engine->record(reduction);
  }
}

// Recomputes the size and the checksum, so that the checks behind them are reached.
std::string resealed(std::string bytes) {
  for (std::size_t i = 0; i < 8; ++i) bytes[12 + i] = static_cast<char>(bytes.size() >> (8 * i));
  const std::uint32_t crc = sec_grpo::crc32(bytes.data(), bytes.size() - 4);
  for (std::size_t i = 0; i < 4; ++i) {
    bytes[bytes.size() - 4 + i] = static_cast<char>(crc >> (8 * i));
  }
  return bytes;
}

void test_round_trip() {
  for (const int steps : {0, 1, 2, 7, 20}) {
    Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
    advance(&engine, steps);
    const std::string bytes = engine.serialize("sec {}", "memory");
    Engine other(kCodes.data(), kCodes.size(), 4, 1, 5);
    advance(&other, 3);
    const State state = other.parse(bytes, "sec {}");
    CHECK(state.strategy_state == "memory");
    other.restore(state);
    CHECK(other.seed() == 99);
    CHECK(other.serialize("sec {}", "memory") == bytes);
    advance(&engine, 10);
    advance(&other, 10);
    CHECK(other.serialize("sec {}", "memory") == engine.serialize("sec {}", "memory"));
  }
}

void test_every_truncation_and_flip_is_refused() {
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
  advance(&engine, 5);
  const std::string bytes = engine.serialize("sec {}", "memory");
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CHECK_THROWS(engine.parse(bytes.substr(0, size), "sec {}"), StateError, "; load another copy");
  }
  CHECK_THROWS(engine.parse(bytes + '\0', "sec {}"), StateError, "truncated or damaged");
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      CHECK_THROWS(engine.parse(flipped, "sec {}"), StateError, "state");
    }
  }
  CHECK(engine.serialize("sec {}", "memory") == bytes);
}

// With the checksum made right again nothing may crash, and what is accepted must restore.
void test_resealed_damage_is_survived() {
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
  advance(&engine, 5);
  const std::string bytes = engine.serialize("sec {}", "memory");
  int refused = 0;
  for (std::size_t i = 20; i + 4 < bytes.size(); ++i) {
    for (const int mask : {0x01, 0x80, 0xFF}) {
      std::string flipped = bytes;
      flipped[i] = static_cast<char>(flipped[i] ^ mask);
      Engine other(kCodes.data(), kCodes.size(), 4, 1, 5);
      try {
        State state = other.parse(resealed(flipped), "sec {}");
        // A count of epochs or steps that is only improbable is not damage; but replays are
        // bounded by the sizes of the arms, so restoring stays cheap.
        other.restore(state);
        std::vector<std::int64_t> prompts(64);
        other.draw(prompts.size(), prompts.data());
        for (const std::int64_t prompt : prompts) {
          CHECK(prompt >= 0 && prompt < static_cast<std::int64_t>(kCodes.size()));
        }
      } catch (const StateError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 200);
  for (std::size_t size = 24; size < bytes.size(); ++size) {
    CHECK_THROWS(engine.parse(resealed(bytes.substr(0, size)), "sec {}"), StateError, "damaged");
  }
}

void test_others_are_refused() {
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
  const std::string bytes = engine.serialize("sec {}", "");
  CHECK_THROWS(engine.parse(bytes, "random {}"), StateError, "strategy sec {}");
  CHECK_THROWS(Engine(kCodes.data(), 10, 4, 99, 5).parse(bytes, "sec {}"), StateError,
               "11 prompts");
  CHECK_THROWS(Engine(kCodes.data(), 11, 3, 99, 5).parse(bytes, "sec {}"), StateError, "4 arms");
  CHECK_THROWS(Engine(kCodes.data(), 11, 4, 99, 6).parse(bytes, "sec {}"), StateError, "labels");
  auto codes = kCodes;
  std::swap(codes[0], codes[1]);
  CHECK_THROWS(Engine(codes.data(), 11, 4, 99, 5).parse(bytes, "sec {}"), StateError,
               "order of the prompts");
  std::string newer = bytes;
  newer[8] = 4;
  CHECK_THROWS(engine.parse(newer, "sec {}"), StateError, "upgrade");
  newer[8] = 2;
  CHECK_THROWS(engine.parse(newer, "sec {}"), StateError, "before the first release");
  newer[8] = 0;
  CHECK_THROWS(engine.parse(newer, "sec {}"), StateError, "version 0");
  CHECK_THROWS(engine.parse("{\"a\": 1}, a text", "sec {}"), StateError, "not the state");
}

// Fields that pass the checksum but that no curriculum can be in.
void test_impossible_fields() {
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
  advance(&engine, 5);
  const State good = engine.parse(engine.serialize("s", ""), "s");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto refuse = [&](const char* text, auto change) {
    State state = good;
    change(&state);
    CHECK_THROWS(engine.parse(sec_grpo::encode_state(state), "s"), StateError, text);
  };
  refuse("cursor 6", [](State* state) { state->buffers.positions[0].cursor = 6; });
  refuse("of 0 prompts", [](State* state) { state->buffers.positions[3].epoch = 1; });
  refuse("drawn at step", [](State* state) { state->buffers.last_drawn_steps[1] = 5; });
  refuse("temperature", [](State* state) { state->temperature = 0.0; });
  refuse("score of arm 2", [&](State* state) { state->scores[2] = nan; });
  refuse("ref", [&](State* state) { state->ref = nan; });
  refuse("ref", [&](State* state) { state->ref = -10.0; });
  refuse("below 0", [](State* state) { state->step = -1; });
}

// Growth between the steps: the state restores on an engine built with all prompts.
void test_growth() {
  const std::vector<std::int32_t> more = {2, 4, 0, 4, 1};
  std::vector<std::int32_t> all = kCodes;
  all.insert(all.end(), more.begin(), more.end());
  Engine engine(kCodes.data(), kCodes.size(), 4, 99, 5);
  advance(&engine, 9);
  const auto scores = engine.scores();
  CHECK_THROWS(engine.add(more.data(), more.size(), 4, 6), std::out_of_range, "codes[1]");
  CHECK_THROWS(engine.add(more.data(), more.size(), 3, 6), std::invalid_argument, "fewer");
  CHECK(engine.num_prompts() == 11 && engine.scores() == scores);
  engine.add(more.data(), more.size(), 5, 6);
  CHECK(engine.num_prompts() == 16 && engine.num_arms() == 5);
  CHECK(engine.scores() == (std::vector<double>{scores[0], scores[1], scores[2], 0.0, 0.0}));
  CHECK(engine.probabilities()[4] > 0.0 && engine.probabilities()[3] == 0.0);
  advance(&engine, 6);
  const std::string bytes = engine.serialize("s", "");
  Engine built(all.data(), all.size(), 5, 1, 6);
  built.restore(built.parse(bytes, "s"));
  CHECK(built.serialize("s", "") == bytes);
  const auto table = engine.arm_table();
  CHECK(built.arm_table().draws == table.draws);
  std::int64_t draws = 0;
  for (const std::int64_t count : table.draws) draws += count;
  CHECK(draws == 15 * 8);
  advance(&engine, 40);
  advance(&built, 40);
  CHECK(built.serialize("s", "") == engine.serialize("s", ""));
  CHECK_THROWS(Engine(kCodes.data(), kCodes.size(), 4, 1, 5).parse(bytes, "s"), StateError,
               "16 prompts");
}

// 24 bytes an arm with up to 2^16 steps and prompts an arm.
void test_size() {
  std::vector<std::int32_t> codes;
  for (std::int32_t i = 0; i < 40000; ++i) codes.push_back(i % 4000);
  const auto size_of = [&](std::size_t num_arms) {
    std::vector<std::int32_t> some;
    for (const std::int32_t code : codes) some.push_back(code % static_cast<int>(num_arms));
    Engine engine(some.data(), some.size(), num_arms, 1, 0);
    advance(&engine, 300);
    return engine.serialize("s", "").size();
  };
  CHECK(size_of(4000) - size_of(2000) <= 24 * 2000);
}

int main() {
  test_round_trip();
  test_growth();
  test_size();
  test_every_truncation_and_flip_is_refused();
  test_resealed_damage_is_survived();
  test_others_are_refused();
  test_impossible_fields();
}
