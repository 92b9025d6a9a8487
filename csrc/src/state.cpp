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

int width_of(std::uint64_t largest) {
  int width = 1;
  while (width < 8 && (largest >> (8 * width)) != 0) ++width;
  return width;
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
  // The width, then value_of(0), ... value_of(count - 1) in as many bytes each.
  template <class ValueOf>
  void column(std::size_t count, const ValueOf& value_of) {
    std::uint64_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) largest = std::max(largest, value_of(i));
    const int width = width_of(largest);
    little_endian(static_cast<std::uint64_t>(width), 1);
    const std::size_t begin = bytes_.size();
    bytes_.resize(begin + count * static_cast<std::size_t>(width));
    char* place = bytes_.data() + begin;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint64_t value = value_of(i);
      for (int byte = 0; byte < width; ++byte) *place++ = static_cast<char>(value >> (8 * byte));
    }
  }
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

  // A column of `count` values below `limit`. They are there before room is made for them, so a
  // wrong count cannot ask for memory.
  std::vector<std::uint64_t> column(std::uint64_t count, std::uint64_t limit) {
    const std::uint64_t width = little_endian(1);
    if (width < 1 || width > 8 || count > left() / width) {
      throw StateError("the state is damaged: a column of " + std::to_string(count) +
                       " values runs past its end");
    }
    std::vector<std::uint64_t> values(static_cast<std::size_t>(count));
    const std::string_view bytes = take(count * width);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint64_t value = decoded(bytes.data() + i * width, width);
      if (value > limit) {
        throw StateError("the state is damaged: a value of " + std::to_string(value) +
                         ", which must be at most " + std::to_string(limit));
      }
      values[i] = value;
    }
    return values;
  }

 private:
  std::string_view take(std::uint64_t size) {
    if (size > bytes_.size()) throw StateError("the state is damaged: a field runs past its end");
    const std::string_view result = bytes_.substr(0, static_cast<std::size_t>(size));
    bytes_.remove_prefix(static_cast<std::size_t>(size));
    return result;
  }

  std::uint64_t little_endian(std::size_t width) { return decoded(take(width).data(), width); }

  static std::uint64_t decoded(const char* bytes, std::uint64_t width) {
    std::uint64_t value = 0;
    for (std::uint64_t i = 0; i < width; ++i) {
      value |= std::uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
    }
    return value;
  }

  std::string_view bytes_;
};

constexpr std::uint64_t kAny = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kAny32 = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kAny63 = std::numeric_limits<std::int64_t>::max();

std::uint64_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float float_of(std::uint64_t bits) {
  const auto narrow = static_cast<std::uint32_t>(bits);
  float value;
  std::memcpy(&value, &narrow, sizeof value);
  return value;
}

void write_arms(const State& state, Writer* writer) {
  const std::size_t count = state.scores.size();
  const BufferState& buffers = state.buffers;
  const auto& last = state.last;
  writer->column(count, [&](std::size_t i) { return bits_of(state.scores[i]); });
  writer->column(count, [&](std::size_t i) { return buffers.positions[i].epoch; });
  writer->column(count, [&](std::size_t i) { return std::uint64_t{buffers.positions[i].cursor}; });
  // From 0, which stands for an arm that was never drawn.
  writer->column(count, [&](std::size_t i) {
    return static_cast<std::uint64_t>(buffers.last_drawn_steps[i] + 1);
  });
  writer->column(count, [&](std::size_t i) { return bits_of(last[i].abs_advantage); });
  writer->column(count, [&](std::size_t i) { return bits_of(last[i].reward); });
  writer->column(count, [&](std::size_t i) { return std::uint64_t{last[i].dead_groups}; });
}

void read_arms(Reader* reader, State* state) {
  const std::uint64_t count = state->num_arms;
  const auto scores = reader->column(count, kAny);
  const auto epochs = reader->column(count, kAny);
  const auto cursors = reader->column(count, kAny32);
  const auto steps = reader->column(count, kAny63);
  const auto abs_advantage = reader->column(count, kAny32);
  const auto reward = reader->column(count, kAny32);
  const auto dead_groups = reader->column(count, LastObservation::kNoShare);
  BufferState& buffers = state->buffers;
  state->last.resize(scores.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    state->scores.push_back(double_of(scores[i]));
    buffers.positions.push_back({epochs[i], static_cast<std::uint32_t>(cursors[i])});
    buffers.last_drawn_steps.push_back(static_cast<std::int64_t>(steps[i]) - 1);
    state->last[i].abs_advantage = float_of(abs_advantage[i]);
    state->last[i].reward = float_of(reward[i]);
    state->last[i].dead_groups = static_cast<std::uint16_t>(dead_groups[i]);
  }
}

void write_growth(const BufferState& buffers, Writer* writer) {
  const auto& growths = buffers.growths;
  writer->u64(growths.size());
  writer->column(growths.size(), [&](std::size_t i) { return std::uint64_t{growths[i].arm}; });
  writer->column(growths.size(), [&](std::size_t i) { return std::uint64_t{growths[i].size}; });
  writer->column(growths.size(), [&](std::size_t i) { return growths[i].epoch; });
  writer->column(growths.size(), [&](std::size_t i) { return std::uint64_t{growths[i].cursor}; });
  const auto& offsets = buffers.offsets;
  writer->u64(offsets.size());
  writer->column(offsets.size(), [&](std::size_t i) { return std::uint64_t{offsets[i].arm}; });
  // Never above 0: an arm that grew has drawn less than its epochs times its size.
  writer->column(offsets.size(),
                 [&](std::size_t i) { return static_cast<std::uint64_t>(-offsets[i].offset); });
}

void read_growth(Reader* reader, BufferState* buffers) {
  const std::uint64_t num_growths = reader->u64();
  const auto arms = reader->column(num_growths, kAny32);
  const auto sizes = reader->column(num_growths, kAny32);
  const auto epochs = reader->column(num_growths, kAny);
  const auto cursors = reader->column(num_growths, kAny32);
  for (std::size_t i = 0; i < arms.size(); ++i) {
    buffers->growths.push_back({static_cast<std::uint32_t>(arms[i]),
                                static_cast<std::uint32_t>(sizes[i]), epochs[i],
                                static_cast<std::uint32_t>(cursors[i])});
  }
  const std::uint64_t num_offsets = reader->u64();
  const auto offset_arms = reader->column(num_offsets, kAny32);
  const auto offsets = reader->column(num_offsets, kAny63);
  for (std::size_t i = 0; i < offset_arms.size(); ++i) {
    buffers->offsets.push_back(
        {static_cast<std::uint32_t>(offset_arms[i]), -static_cast<std::int64_t>(offsets[i])});
  }
}

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
  if (version < kStateVersion) {
    throw StateError("the state has format version " + std::to_string(version) +
                     " of a version before the first release, which is no longer read; start "
                     "without it");
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

void LastObservation::record(const Reduction& reduction, std::size_t i) {
  if (!reduction.abs_advantage.empty()) {
    abs_advantage = static_cast<float>(reduction.abs_advantage[i]);
  }
  if (!reduction.reward.empty()) reward = static_cast<float>(reduction.reward[i]);
  dead_groups = static_cast<std::uint16_t>(reduction.dead_groups[i] * (kNoShare - 1) + 0.5);
}

double LastObservation::dead_share() const {
  if (dead_groups == kNoShare) return Reduction::kMissing;
  return static_cast<double>(dead_groups) / (kNoShare - 1);
}

std::string encode_state(const State& state) {
  Writer writer;
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
  write_arms(state, &writer);
  write_growth(state.buffers, &writer);
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
  read_arms(&reader, &state);
  read_growth(&reader, &state.buffers);
  if (reader.left() != 0) {
    throw StateError("the state is damaged: " + std::to_string(reader.left()) +
                     " bytes after its end");
  }
  return state;
}

}  // namespace sec_grpo
