// ddsm_ext._native: the choice of a convolution's algorithm, and the sizes that follow from it.
#include "ddsm/conv2d_choice.h"

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "ddsm/sizes.h"
#include "native.h"

namespace py = pybind11;

namespace {

using namespace ddsm;
using py::arg;

py::dict costs_dict() {
  const Conv2dCosts costs = conv2d_costs();
  py::dict result;
  result["macs_per_ns"] = costs.macs_per_ns;
  result["winograd_macs_per_ns"] = costs.winograd_macs_per_ns;
  result["input_floats_per_ns"] = costs.input_floats_per_ns;
  result["output_floats_per_ns"] = costs.output_floats_per_ns;
  result["panel_bytes_per_ns"] = costs.panel_bytes_per_ns;
  result["frequency_ns"] = costs.frequency_ns;
  result["rearranged_per_ns"] = costs.rearranged_per_ns;
  result["bf16_macs_per_ns"] = costs.bf16_macs_per_ns;
  result["segment_ns"] = costs.segment_ns;
  result["small_panel_bytes_per_ns"] = costs.small_panel_bytes_per_ns;
  result["direct_ns"] = costs.direct_ns;
  return result;
}

void check_problem(std::initializer_list<int64_t> sizes) {
  if (checked_product(sizes) < 0) {
    throw py::value_error("Conv2dProblem: a size is negative or too large; need a product of at "
                          "most " + std::to_string(kMostElements));
  }
}

}  // namespace

void bind_conv2d_choice(py::module_& m) {
  m.def("conv2d_costs", &costs_dict, "The constants of the algorithm choice for this CPU.");
  m.def("conv2d_has", [](int32_t algo) { return conv2d_has(static_cast<Conv2dAlgo>(algo)); },
        "Whether the instruction set in use computes with the algorithm.");
  py::class_<Conv2dProblem>(m, "Conv2dProblem", "A convolution as the choice of algorithm sees it.")
      .def(py::init([](int64_t images, int64_t out_height, int64_t out_width, int64_t c_in,
                       int64_t c_out, int64_t kernel, int64_t stride, int64_t scale,
                       bool bf16, int64_t rearranged, bool grad_weight, bool eager) {
             check_problem({images, out_height, out_width});
             check_problem({kernel, kernel, c_in});
             check_problem({c_out, stride, scale});
             check_problem({rearranged});
             return Conv2dProblem{images, out_height, out_width, c_in,       c_out,       kernel,
                                  stride, scale,      bf16,      rearranged, grad_weight, eager};
           }),
           py::kw_only(), arg("images"), arg("out_height"), arg("out_width"), arg("c_in"),
           arg("c_out"), arg("kernel"), arg("stride"), arg("scale"), arg("bf16"),
           arg("rearranged") = 0, arg("grad_weight") = false, arg("eager") = false);
  m.def("conv2d_cost_ns", [](const Conv2dProblem& problem, int32_t algo) {
    return conv2d_cost_ns(problem, static_cast<Conv2dAlgo>(algo), conv2d_costs(), conv2d_grain());
  });
  m.def("conv2d_choose", [](const Conv2dProblem& problem) {
    return static_cast<int32_t>(conv2d_choose(problem, conv2d_costs(), conv2d_grain()));
  });
  m.def("conv2d_panel_floats", [](int64_t c_out_max, int64_t c_in_max, int64_t kernel,
                                  int32_t algo, bool upsample, bool transposed, bool glu) {
    const int64_t floats =
        algo < 0 || algo > 3 ? -1
                             : conv2d_panel_floats(kernel, c_out_max, c_in_max,
                                                   static_cast<Conv2dAlgo>(algo),
                                                   upsample ? 2 : 1, transposed, glu);
    if (floats < 0) {
      throw py::value_error("conv2d_panel_floats: no panels of algo " + std::to_string(algo) +
                            " for a weight [" + std::to_string(c_out_max) + ", " +
                            std::to_string(c_in_max) + ", " + std::to_string(kernel) + ", " +
                            std::to_string(kernel) + "]");
    }
    return floats;
  }, arg("c_out_max"), arg("c_in_max"), arg("kernel"), arg("algo"), arg("upsample"),
        arg("transposed"), arg("glu") = false);
  m.def("conv2d_moment_pixels", [](const Conv2dShape& shape, int32_t algo) {
    return conv2d_moment_pixels(shape, static_cast<Conv2dAlgo>(algo));
  });
}
