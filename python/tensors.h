#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "glimpse/base/check.h"
#include "glimpse/eval/grid.h"

namespace glimpse {

/// A tensor, without a copy, or what torch.as_tensor makes of arrays and lists; a TypeError names `what`.
inline at::Tensor tensor_of(const pybind11::object& from, const char* what) {
  namespace py = pybind11;
  try {
    if (!THPVariable_Check(from.ptr()))
      return py::module_::import("torch").attr("as_tensor")(from).cast<at::Tensor>();
    return from.cast<at::Tensor>().detach();
  } catch (const std::exception& error) {
    throw py::type_error(concat(what, ": expected a tensor: ", error.what()));
  }
}

inline void rows_are(const at::Tensor& tensor, int64_t count, const char* what) {
  check(tensor.dim() >= 1 && tensor.size(0) == count, what, ": the shape ", tensor.sizes(), " has not ",
        count, " rows");
}

/// A fraction in (0, 1] or a number of tokens above 1.
inline Budget budget_of(const pybind11::object& keep) {
  const auto text = pybind11::str(keep).cast<std::string>();
  const auto budget = parse_budget(text);
  check(budget.has_value(), "keep: expected a fraction in (0, 1] or a number of tokens above 1, got ", text);
  return *budget;
}

}  // namespace glimpse
