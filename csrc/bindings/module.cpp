// pybind11 module ddsm_ext._native: what is stateful and not an op (build and CPU information).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <string>
#include <vector>

#include "ddsm/isa.h"
#include "build_info.h"
#include "native.h"

namespace py = pybind11;

namespace {

constexpr ddsm::Isa kIsas[] = {ddsm::Isa::kPortable, ddsm::Isa::kAvx2, ddsm::Isa::kAvx512,
                              ddsm::Isa::kAvx512Bf16};

py::dict build_info() {
  py::dict info;
  for (const BuildFact* fact = kBuildInfo; fact->name != nullptr; ++fact) {
    info[fact->name] = fact->value;
  }
  return info;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (ddsm::Isa isa : kIsas) {
    if (ddsm::isa_available(isa)) names.emplace_back(ddsm::isa_name(isa));
  }
  return names;
}

void set_isa(const std::string& name) {
  for (ddsm::Isa isa : kIsas) {
    if (name == ddsm::isa_name(isa)) {
      if (!ddsm::set_isa(isa)) {
        throw py::value_error("set_isa: this build or CPU has no " + name);
      }
      return;
    }
  }
  throw py::value_error("set_isa: isa is '" + name +
                        "'; need portable, avx2, avx512 or avx512_bf16");
}

// A hint: where the system has no huge pages to give, the memory stays as it is.
void advise_huge_pages(uintptr_t address, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
#else
  (void)address;
  (void)bytes;
#endif
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build and CPU information of the compiled library; step plans.";
  bind_step_plan(m);
  bind_conv2d_choice(m);
  bind_digest(m);
  m.def("build_info", &build_info, "What this library was built from and for.");
  m.def("active_isa", [] { return std::string(ddsm::isa_name(ddsm::active_isa())); },
        "Name of the instruction set that the CPU kernels use.");
  m.def("available_isas", &available_isas, "Instruction sets that this build and CPU both have.");
  m.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"),
        "Ask for huge pages where memory that starts on one is not touched yet. Unsafe: the "
        "address is trusted.");
  m.def("set_isa", &set_isa, py::arg("isa"),
        "Force an instruction set for the whole process (for tests and comparisons).");
}
