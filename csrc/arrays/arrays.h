// How a family puts its functions into the pybind11 module `warpup.arrays`. Its <family>_arrays.cpp says
//
//   WARPUP_ARRAYS(m) { m.def("divergence", "What it computes.", &divergence, "student"_a, ..., "value"_w, ...); }
//
// and nothing else needs to know of it. Entries are those of <op>_check.h; outputs, and scratch, are arrays that the
// caller gives: "name"_w.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "arrays/dlpack.h"

namespace warpup {

namespace py = pybind11;
using namespace pybind11::literals;  // "name"_a

// "name"_w: an array that the function writes, which may not be read-only. pybind11's word for it is that the argument
// allows no conversion, which the type_caster of View hears.
inline py::arg operator""_w(const char* name, size_t) { return py::arg(name).noconvert(); }

class __attribute__((visibility("hidden"))) Arrays {
 public:
  explicit Arrays(py::module_& module) : module_(module) {}

  // Entries touch no Python object: other threads may run meanwhile. The docstring begins with the signature in the
  // form in which CPython's own builtins have it, so that `inspect.signature` and editors can read it.
  template <class Entry, class... Arguments>
  void def(const char* name, const char* doc, Entry entry, const Arguments&... arguments) {
    std::string signature;
    const auto add = [&signature](const std::string& part) { signature += (signature.empty() ? "" : ", ") + part; };
    (add(text(arguments)), ...);
    py::options options;
    options.disable_function_signatures();
    const std::string full = std::string(name) + "(" + signature + ")\n--\n\n" + doc;
    module_.def(name, entry, full.c_str(), py::call_guard<py::gil_scoped_release>(), arguments...);
  }

  py::module_& module() { return module_; }

 private:
  static std::string text(const py::arg& argument) { return argument.name; }
  static std::string text(const py::arg_v& argument) {
    std::string value = py::repr(argument.value).cast<std::string>();
    if (value == "inf") value = "math.inf";  // which `inspect` can read
    return std::string(argument.name) + "=" + value;
  }
  static std::string text(const py::kw_only&) { return "*"; }

  py::module_& module_;
};

struct ArraysRegistration {
  using Register = void (*)(Arrays&);
  explicit ArraysRegistration(Register function);  // called when the module is imported
};

}  // namespace warpup

#define WARPUP_ARRAYS(m)                                                        \
  static void register_arrays(warpup::Arrays& m);                               \
  static const warpup::ArraysRegistration arrays_registration{register_arrays}; \
  static void register_arrays(warpup::Arrays& m)
