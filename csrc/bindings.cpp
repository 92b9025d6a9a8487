#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "sec_grpo/distinct.h"
#include "sec_grpo/elementary.h"
#include "sec_grpo/engine.h"
#include "sec_grpo/thompson.h"

namespace py = pybind11;

namespace {

using sec_grpo::Engine;
using sec_grpo::FloatType;
using sec_grpo::GroupArray;
using sec_grpo::Reduction;
using sec_grpo::State;

std::string describe(const py::array& array) {
  std::string shape = py::str(array.attr("shape"));
  return "dtype " + std::string(py::str(array.dtype())) + ", shape " + shape +
         ((array.flags() & py::array::c_style) != 0 ? "" : ", not C-contiguous");
}

// The array as it is, or a TypeError: a silent conversion would copy, and truncate floats.
template <class T>
const T* vector_data(const char* name, const char* dtype, const py::array& array) {
  if (!py::isinstance<py::array_t<T, py::array::c_style>>(array)) {
    throw py::type_error(std::string(name) + " must be a C-contiguous " + dtype + " array, got " +
                         describe(array));
  }
  if (array.ndim() != 1) {
    throw py::value_error(std::string(name) + " must have one dimension, got " + describe(array));
  }
  return static_cast<const T*>(array.data());
}

GroupArray group_array(const char* name, const py::object& object) {
  GroupArray result;
  if (object.is_none()) return result;
  if (!py::isinstance<py::array>(object)) {
    throw py::type_error(std::string(name) + " must be a float32 or float64 array or None, got " +
                         std::string(py::str(py::type::of(object))));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (py::isinstance<py::array_t<float, py::array::c_style>>(array)) {
    result.type = FloatType::kFloat32;
  } else if (py::isinstance<py::array_t<double, py::array::c_style>>(array)) {
    result.type = FloatType::kFloat64;
  } else {
    throw py::type_error(std::string(name) +
                         " must be a C-contiguous float32 or float64 array, got " +
                         describe(array));
  }
  if (array.ndim() != 2) {
    throw py::value_error(std::string(name) +
                          " must have shape (B, G), one row a prompt and one column a rollout, "
                          "got " +
                          describe(array) + "; reshape flat values with .reshape(B, G)");
  }
  result.data = array.data();
  result.rows = static_cast<std::size_t>(array.shape(0));
  result.columns = static_cast<std::size_t>(array.shape(1));
  return result;
}

// The vector as an array that owns it: nothing is copied.
template <class T, class Allocator>
py::array_t<T> give_away(std::vector<T, Allocator>&& values) {
  auto owned = std::make_unique<std::vector<T, Allocator>>(std::move(values));
  const auto size = static_cast<py::ssize_t>(owned->size());
  const T* data = owned->data();
  const py::capsule owner(
      owned.get(), [](void* pointer) { delete static_cast<std::vector<T, Allocator>*>(pointer); });
  owned.release();
  return py::array_t<T>(size, data, owner);
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::object to_array_or_none(const std::vector<double>& values) {
  if (values.empty()) return py::none();
  return to_array(values);
}

std::string_view view_of(const py::bytes& bytes) { return bytes; }

// Every method takes its arrays apart under the GIL, then works without it: the mutex of the
// engine is only ever waited for by threads that do not hold the GIL.

py::array_t<std::int64_t> draw(Engine& engine, std::size_t batch_size) {
  if (batch_size > sec_grpo::kMaxPrompts) {
    throw py::value_error("batch_size must be at most " + std::to_string(sec_grpo::kMaxPrompts) +
                          ", got " + std::to_string(batch_size));
  }
  py::array_t<std::int64_t> prompts(static_cast<py::ssize_t>(batch_size));
  std::int64_t* data = prompts.mutable_data();
  {
    const py::gil_scoped_release release;
    engine.draw(batch_size, data);
  }
  return prompts;
}

void add(Engine& engine, const py::array& codes, std::size_t num_arms, std::uint64_t labels_hash) {
  const std::int32_t* data = vector_data<std::int32_t>("codes", "int32", codes);
  const auto count = static_cast<std::size_t>(codes.size());
  const py::gil_scoped_release release;
  engine.add(data, count, num_arms, labels_hash);
}

void assign(Engine& engine, const py::array& scores, double temperature) {
  const double* data = vector_data<double>("scores", "float64", scores);
  const auto count = static_cast<std::size_t>(scores.size());
  const py::gil_scoped_release release;
  engine.assign(data, count, temperature);
}

Reduction reduce(const Engine& engine, const py::array& indices, const py::object& advantages,
                 const py::object& rewards) {
  const std::int64_t* data = vector_data<std::int64_t>("indices", "int64", indices);
  const auto count = static_cast<std::size_t>(indices.size());
  const GroupArray advantage_array = group_array("advantages", advantages);
  const GroupArray reward_array = group_array("rewards", rewards);
  const py::gil_scoped_release release;
  return engine.reduce(data, count, advantage_array, reward_array);
}

py::array_t<std::int64_t> arm_indices(const Engine& engine, const py::array& indices) {
  const std::int64_t* data = vector_data<std::int64_t>("indices", "int64", indices);
  py::array_t<std::int64_t> arms(indices.size());
  std::int64_t* result = arms.mutable_data();
  const auto count = static_cast<std::size_t>(indices.size());
  {
    const py::gil_scoped_release release;
    engine.arm_indices(data, count, result);
  }
  return arms;
}

py::dict arm_table(const Engine& engine) {
  sec_grpo::ArmTable table;
  {
    const py::gil_scoped_release release;
    table = engine.arm_table();
  }
  py::dict result;
  result["prompts"] = give_away(std::move(table.prompts));
  result["draws"] = give_away(std::move(table.draws));
  result["epochs"] = give_away(std::move(table.epochs));
  result["last_drawn_step"] = give_away(std::move(table.last_drawn_step));
  result["abs_advantage"] = give_away(std::move(table.abs_advantage));
  result["reward"] = give_away(std::move(table.reward));
  result["dead_groups"] = give_away(std::move(table.dead_groups));
  return result;
}

py::dict summary(const Engine& engine) {
  sec_grpo::Summary summary;
  {
    const py::gil_scoped_release release;
    summary = engine.summary();
  }
  py::dict result;
  result["step"] = summary.step;
  result["observations"] = summary.observations;
  result["prompts_drawn"] = summary.prompts_drawn;
  result["abs_advantage"] = summary.batch_abs_advantage;
  result["reward"] = summary.batch_reward;
  result["dead_groups"] = summary.batch_dead_groups;
  return result;
}

template <class T, std::vector<T> (Engine::*kRead)() const>
py::array_t<T> read_arms(const Engine& engine) {
  std::vector<T> values;
  {
    const py::gil_scoped_release release;
    values = (engine.*kRead)();
  }
  return give_away(std::move(values));
}

py::bytes serialize(const Engine& engine, const std::string& strategy,
                    const py::bytes& strategy_state) {
  const std::string_view state = view_of(strategy_state);
  std::string bytes;
  {
    const py::gil_scoped_release release;
    bytes = engine.serialize(strategy, state);
  }
  return bytes;
}

State parse(const Engine& engine, const py::bytes& bytes, const std::string& strategy) {
  const std::string_view view = view_of(bytes);
  const py::gil_scoped_release release;
  return engine.parse(view, strategy);
}

template <class Item>
bool distinct_as(const py::array& items, const py::int_& low, std::uint64_t span,
                 sec_grpo::Distinct* result) {
  if (!py::isinstance<py::array_t<Item, py::array::c_style>>(items)) return false;
  const auto* data = static_cast<const Item*>(items.data());
  const auto count = static_cast<std::size_t>(items.size());
  const auto first = low.cast<Item>();
  const py::gil_scoped_release release;
  *result = sec_grpo::distinct_in_range(data, count, first, span);
  return true;
}

py::tuple distinct_in_range(const py::array& items, const py::int_& low, std::uint64_t span) {
  sec_grpo::Distinct result;
  const bool known = distinct_as<std::int32_t>(items, low, span, &result) ||
                     distinct_as<std::int64_t>(items, low, span, &result) ||
                     distinct_as<std::int16_t>(items, low, span, &result) ||
                     distinct_as<std::int8_t>(items, low, span, &result) ||
                     distinct_as<std::uint8_t>(items, low, span, &result) ||
                     distinct_as<std::uint16_t>(items, low, span, &result) ||
                     distinct_as<std::uint32_t>(items, low, span, &result) ||
                     distinct_as<std::uint64_t>(items, low, span, &result);
  if (!known) {
    throw py::type_error("items must be a C-contiguous integer array, got " + describe(items));
  }
  const bool are_codes = result.codes.empty() && items.size() > 0;
  const py::array codes = are_codes ? items : py::array(give_away(std::move(result.codes)));
  return py::make_tuple(give_away(std::move(result.offsets)), codes);
}

template <double (*kFunction)(double)>
py::array_t<double> elementwise(const py::array& values) {
  const double* data = vector_data<double>("values", "float64", values);
  py::array_t<double> result(values.size());
  double* target = result.mutable_data();
  const auto count = static_cast<std::size_t>(values.size());
  {
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < count; ++i) target[i] = kFunction(data[i]);
  }
  return result;
}

void check_lengths(const py::array& first, const py::array& second) {
  if (first.size() == second.size()) return;
  throw py::value_error("the arrays must have the same length, got " + describe(first) + " and " +
                        describe(second));
}

py::array_t<double> gaussian_wins(const py::array& mean, const py::array& deviation) {
  const double* means = vector_data<double>("mean", "float64", mean);
  const double* deviations = vector_data<double>("deviation", "float64", deviation);
  check_lengths(mean, deviation);
  const auto count = static_cast<std::size_t>(mean.size());
  std::vector<double> wins;
  {
    const py::gil_scoped_release release;
    wins = sec_grpo::gaussian_wins(means, deviations, count);
  }
  return give_away(std::move(wins));
}

py::array_t<double> nearest_beta_wins(const py::array& a, const py::array& b, double target) {
  const double* successes = vector_data<double>("a", "float64", a);
  const double* failures = vector_data<double>("b", "float64", b);
  check_lengths(a, b);
  const auto count = static_cast<std::size_t>(a.size());
  std::vector<double> wins;
  {
    const py::gil_scoped_release release;
    wins = sec_grpo::nearest_beta_wins(successes, failures, count, target);
  }
  return give_away(std::move(wins));
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Native curriculum core of sec_grpo.";

  py::register_exception<sec_grpo::StateError>(m, "CurriculumStateError", PyExc_ValueError);

  m.def("distinct_in_range", &distinct_in_range, py::arg("items").noconvert(), py::arg("low"),
        py::arg("span"));
  m.def("exp", &elementwise<sec_grpo::deterministic_exp>, py::arg("values").noconvert());
  m.def("log", &elementwise<sec_grpo::deterministic_log>, py::arg("values").noconvert());
  m.def("gaussian_wins", &gaussian_wins, py::arg("mean").noconvert(),
        py::arg("deviation").noconvert());
  m.def("nearest_beta_wins", &nearest_beta_wins, py::arg("a").noconvert(), py::arg("b").noconvert(),
        py::arg("target"));

  py::class_<Reduction>(m, "Reduction")
      .def_property_readonly("arms", [](const Reduction& r) { return to_array(r.arms); })
      .def_property_readonly("groups", [](const Reduction& r) { return to_array(r.groups); })
      .def_property_readonly("abs_advantage",
                             [](const Reduction& r) { return to_array_or_none(r.abs_advantage); })
      .def_property_readonly("reward",
                             [](const Reduction& r) { return to_array_or_none(r.reward); })
      .def_property_readonly("dead_groups",
                             [](const Reduction& r) { return to_array(r.dead_groups); });

  py::class_<State>(m, "State").def_property_readonly("strategy_state", [](const State& state) {
    return py::bytes(state.strategy_state);
  });

  const auto release_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine>(m, "Engine")
      .def(py::init([](const py::array& codes, std::size_t num_arms, std::uint64_t seed,
                       std::uint64_t labels_hash) {
             const std::int32_t* data = vector_data<std::int32_t>("codes", "int32", codes);
             const auto count = static_cast<std::size_t>(codes.size());
             const py::gil_scoped_release release;
             return std::make_unique<Engine>(data, count, num_arms, seed, labels_hash);
           }),
           py::arg("codes").noconvert(), py::arg("num_arms"), py::arg("seed"),
           py::arg("labels_hash"))
      .def_property_readonly("num_prompts", py::cpp_function(&Engine::num_prompts, release_gil))
      .def_property_readonly("num_arms", py::cpp_function(&Engine::num_arms, release_gil))
      .def_property_readonly("seed", py::cpp_function(&Engine::seed, release_gil))
      .def_property_readonly("step", py::cpp_function(&Engine::step, release_gil))
      .def_property_readonly("temperature", py::cpp_function(&Engine::temperature, release_gil))
      .def("draw", &draw, py::arg("batch_size"))
      .def("add", &add, py::arg("codes").noconvert(), py::arg("num_arms"), py::arg("labels_hash"))
      .def("assign", &assign, py::arg("scores").noconvert(), py::arg("temperature") = 1.0)
      .def("reduce", &reduce, py::arg("indices").noconvert(), py::arg("advantages") = py::none(),
           py::arg("rewards") = py::none())
      .def("td_update", &Engine::td_update, py::arg("reduction"), py::arg("alpha"),
           py::arg("temperature"), py::arg("decay_undrawn"), release_gil)
      .def("record", &Engine::record, py::arg("reduction"), release_gil)
      .def("arm_indices", &arm_indices, py::arg("indices").noconvert())
      .def("weights", &read_arms<std::uint64_t, &Engine::weights>)
      .def("probabilities", &read_arms<double, &Engine::probabilities>)
      .def("scores", &read_arms<double, &Engine::scores>)
      .def("sizes", &read_arms<std::int64_t, &Engine::sizes>)
      .def("arm_table", &arm_table)
      .def("summary", &summary)
      .def("serialize", &serialize, py::arg("strategy"), py::arg("strategy_state"))
      .def("parse", &parse, py::arg("state"), py::arg("strategy"))
      .def("restore", &Engine::restore, py::arg("state"), release_gil);
}
