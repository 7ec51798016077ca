// ddsm_ext._native.digest.
#include "ddsm/digest.h"

#include <pybind11/pybind11.h>

#include "native.h"

namespace py = pybind11;

void bind_digest(py::module_& m) {
  m.def(
      "digest",
      [](uintptr_t data, int64_t bytes) {
        py::gil_scoped_release released;
        return ddsm::digest(reinterpret_cast<const void*>(data), bytes);
      },
      py::arg("data"), py::arg("bytes"),
      "A number that differs for other content of `bytes` at the address `data`, which must be "
      "readable: nothing here can check that.");
}
