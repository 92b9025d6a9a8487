#include <pybind11/pybind11.h>

PYBIND11_MODULE(_core, m) { m.doc() = "Native curriculum core of sec_grpo."; }
