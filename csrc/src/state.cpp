#include "sec_grpo/state.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <limits>
#include <utility>

#include "sec_grpo/crc32.h"

namespace sec_grpo {
namespace {

constexpr char kMagic[8] = {'S', 'E', 'C', 'C', 'U', 'R', 'R', '\0'};
// Magic, version and total size.
constexpr std::size_t kPrefixSize = sizeof kMagic + 4 + 8;
constexpr std::size_t kCrcSize = 4;
constexpr std::size_t kBytesPerArm = 7 * 8;

std::uint64_t bits_of(double value) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double double_of(std::uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

class Writer {
 public:
  void u32(std::uint32_t value) { little_endian(value, 4); }
  void u64(std::uint64_t value) { little_endian(value, 8); }
  void i64(std::int64_t value) { u64(static_cast<std::uint64_t>(value)); }
  void f64(double value) { u64(bits_of(value)); }
  void text(std::string_view value) {
    u64(value.size());
    bytes_.append(value);
  }
  void reserve(std::size_t size) { bytes_.reserve(size); }
  void patch_u64(std::size_t position, std::uint64_t value) {
    for (std::size_t i = 0; i < 8; ++i) bytes_[position + i] = static_cast<char>(value >> (8 * i));
  }
  std::string& bytes() { return bytes_; }

 private:
  void little_endian(std::uint64_t value, int width) {
    for (int i = 0; i < width; ++i) bytes_.push_back(static_cast<char>(value >> (8 * i)));
  }

  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  std::uint32_t u32() { return static_cast<std::uint32_t>(little_endian(4)); }
  std::uint64_t u64() { return little_endian(8); }
  std::int64_t i64() { return static_cast<std::int64_t>(u64()); }
  double f64() { return double_of(u64()); }
  std::string text() { return std::string(take(u64())); }
  std::size_t left() const { return bytes_.size(); }

 private:
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size()) throw StateError("the state is damaged: a field runs past its end");
    const std::string_view result = bytes_.substr(0, static_cast<std::size_t>(size));
    bytes_.remove_prefix(static_cast<std::size_t>(size));
    return result;
  }

  std::uint64_t little_endian(std::size_t width) {
    const std::string_view bytes = take(width);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
      value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
    }
    return value;
  }

  std::string_view bytes_;
};

// The field loops of the two directions, in the order of the format.
template <class Coder, class StateRef>
void for_each_array(Coder&& coder, StateRef& state) {
  for (auto& value : state.scores) coder(value);
  for (auto& value : state.positions) coder(value.epoch);
  for (auto& value : state.positions) coder(value.cursor);
  for (auto& value : state.last_drawn_steps) coder(value);
  for (auto& value : state.abs_advantage) coder(value);
  for (auto& value : state.reward) coder(value);
  for (auto& value : state.dead_groups) coder(value);
}

struct EncodeValue {
  Writer* writer;
  void operator()(double value) const { writer->f64(value); }
  void operator()(std::int64_t value) const { writer->i64(value); }
  void operator()(std::uint64_t value) const { writer->u64(value); }
  void operator()(std::uint32_t value) const { writer->u64(value); }
};

struct DecodeValue {
  Reader* reader;
  void operator()(double& value) const { value = reader->f64(); }
  void operator()(std::int64_t& value) const { value = reader->i64(); }
  void operator()(std::uint64_t& value) const { value = reader->u64(); }
  void operator()(std::uint32_t& value) const {
    const std::uint64_t wide = reader->u64();
    if (wide > std::numeric_limits<std::uint32_t>::max()) {
      throw StateError("the state is damaged: a cursor of " + std::to_string(wide));
    }
    value = static_cast<std::uint32_t>(wide);
  }
};

// The body of a state after its prefix, magic, version, size and CRC being right.
std::string_view checked_body(std::string_view bytes) {
  constexpr char kWayOut[] = "; load another copy or an earlier checkpoint";
  if (bytes.substr(0, sizeof kMagic) !=
      std::string_view(kMagic, std::min(bytes.size(), sizeof kMagic))) {
    throw StateError("this is not the state of a curriculum: it does not begin with its mark" +
                     std::string(kWayOut));
  }
  if (bytes.size() < kPrefixSize + kCrcSize) {
    throw StateError("the state is truncated: got " + std::to_string(bytes.size()) + " bytes" +
                     kWayOut);
  }
  Reader prefix(bytes.substr(sizeof kMagic));
  const std::uint32_t version = prefix.u32();
  if (version > kStateVersion) {
    throw StateError("the state has format version " + std::to_string(version) +
                     ", newer than version " + std::to_string(kStateVersion) +
                     " of this installation; upgrade sec-grpo to load it");
  }
  if (version == 0) {
    throw StateError("the state is damaged: format version 0" + std::string(kWayOut));
  }
  const std::uint64_t size = prefix.u64();
  if (size != bytes.size()) {
    throw StateError("the state is truncated or damaged: it should have " + std::to_string(size) +
                     " bytes, got " + std::to_string(bytes.size()) + kWayOut);
  }
  const std::string_view covered = bytes.substr(0, bytes.size() - kCrcSize);
  if (Reader(bytes.substr(covered.size())).u32() != crc32(covered.data(), covered.size())) {
    throw StateError("the state is damaged: its checksum does not match" + std::string(kWayOut));
  }
  return covered.substr(kPrefixSize);
}

}  // namespace

std::string encode_state(const State& state) {
  Writer writer;
  writer.reserve(256 + state.strategy.size() + state.strategy_state.size() +
                 kBytesPerArm * state.scores.size());
  writer.bytes().append(kMagic, sizeof kMagic);
  writer.u32(kStateVersion);
  const std::size_t size_position = writer.bytes().size();
  writer.u64(0);
  writer.u64(state.seed);
  writer.u64(state.counter);
  writer.i64(state.step);
  writer.i64(state.observations);
  writer.text(state.strategy);
  writer.text(state.strategy_state);
  writer.u64(state.num_prompts);
  writer.u64(state.num_arms);
  writer.u64(state.codes_hash);
  writer.u64(state.labels_hash);
  writer.f64(state.temperature);
  writer.f64(state.ref);
  writer.f64(state.batch_abs_advantage);
  writer.f64(state.batch_reward);
  writer.f64(state.batch_dead_groups);
  for_each_array(EncodeValue{&writer}, state);
  writer.patch_u64(size_position, writer.bytes().size() + kCrcSize);
  writer.u32(crc32(writer.bytes().data(), writer.bytes().size()));
  return std::move(writer.bytes());
}

State decode_state(std::string_view bytes) {
  Reader reader(checked_body(bytes));
  State state;
  state.seed = reader.u64();
  state.counter = reader.u64();
  state.step = reader.i64();
  state.observations = reader.i64();
  state.strategy = reader.text();
  state.strategy_state = reader.text();
  state.num_prompts = reader.u64();
  state.num_arms = reader.u64();
  state.codes_hash = reader.u64();
  state.labels_hash = reader.u64();
  state.temperature = reader.f64();
  state.ref = reader.f64();
  state.batch_abs_advantage = reader.f64();
  state.batch_reward = reader.f64();
  state.batch_dead_groups = reader.f64();
  // Before anything is allocated for the arms, so that a wrong count cannot ask for memory.
  if (state.num_arms > kMaxArms || reader.left() != state.num_arms * kBytesPerArm) {
    throw StateError("the state is damaged: " + std::to_string(state.num_arms) + " arms and " +
                     std::to_string(reader.left()) + " bytes for them");
  }
  const auto num_arms = static_cast<std::size_t>(state.num_arms);
  state.scores.resize(num_arms);
  state.positions.resize(num_arms);
  state.last_drawn_steps.resize(num_arms);
  state.abs_advantage.resize(num_arms);
  state.reward.resize(num_arms);
  state.dead_groups.resize(num_arms);
  for_each_array(DecodeValue{&reader}, state);
  return state;
}

}  // namespace sec_grpo
