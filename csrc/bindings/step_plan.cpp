// ddsm_ext._native.StepPlan: lists of kernel calls, given as dicts of integers. Pointers are the
// integers of Tensor.data_ptr(); ddsm_ext/runner/program.py, the one caller, keeps their tensors.
#include "ddsm/step_plan.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <utility>
#include <vector>

#include "ddsm/conv2d_choice.h"
#include "step_plan.h"

namespace py = pybind11;

namespace {

using namespace ddsm;

// A field of a call's dict; a name that is missing is a bug of the caller's.
struct Fields {
  const py::dict& values;

  template <class T = int64_t>
  T get(const char* name) const {
    return values[name].cast<T>();
  }
  template <class T = void>
  T* pointer(const char* name) const {
    return reinterpret_cast<T*>(get<uintptr_t>(name));
  }
  DType dtype(const char* name) const { return static_cast<DType>(get<int32_t>(name)); }
};

Conv2dShape shape_of(const Fields& f) {
  return {f.get("images"),    f.get("height"), f.get("width"),   f.get("out_height"),
          f.get("out_width"), f.get("stride"), f.get("padding"), f.get("scale")};
}

Conv2dImage image_of(const Conv2dShape& shape, const void* data, int64_t pixel_stride,
                     int64_t channels, int64_t weight_offset) {
  return {data,     shape.height * shape.width * pixel_stride, shape.width * pixel_stride,
          pixel_stride, channels, weight_offset};
}

void add_conv2d(StepPlan& plan, const py::dict& values) {
  const Fields f{values};
  Conv2dForwardArgs args{};
  args.shape = shape_of(f);
  args.x = image_of(args.shape, f.pointer("x"), f.get("x_stride"), f.get("c_in"), 0);
  if (f.pointer("x2")) {
    // Where the sources were joined, the second begins x2_shift bytes behind the first.
    args.x2 = image_of(args.shape, f.pointer<char>("x2") + f.get("x2_shift"),
                       f.get("x2_stride"), f.get("c_in2"), f.get("c_in2_offset"));
  }
  args.weight.dtype = f.dtype("weight_dtype");
  args.weight.kernel = f.get<int32_t>("kernel");
  args.algo = static_cast<Conv2dAlgo>(f.get<int32_t>("algo"));
  args.panels = {f.pointer("panels"), f.get("c_out_max"), f.get("c_in_max")};
  args.bias = f.pointer("bias");
  args.norm = f.pointer<float>("norm");
  args.norm_silu = f.get<bool>("norm_silu");
  args.image_bias = f.pointer<float>("image_bias");
  args.residual = f.pointer("residual");
  args.y = f.pointer("y");
  args.y_dtype = f.dtype("dtype");
  args.c_out = f.get("c_out");
  args.parts = f.get("parts");
  args.moments = f.pointer<double>("moments");
  plan.add(args);
}

void add_linear(StepPlan& plan, const py::dict& values) {
  const Fields f{values};
  LinearForwardArgs args{};
  args.x = f.pointer("x");
  args.rows = f.get("rows");
  args.c_in = args.x_row_stride = f.get("c_in");
  args.weight = {f.pointer("weight"), f.dtype("weight_dtype"), f.get("weight_stride"), 1};
  args.bias = f.pointer("bias");
  args.y = f.pointer("y");
  args.y_dtype = DType::kFloat32;
  args.c_out = f.get("c_out");
  plan.add(args);
}

void add_norm_merge(StepPlan& plan, const py::dict& values) {
  const Fields f{values};
  NormMergeArgs args{};
  args.images = f.get("images");
  args.pixels = f.get("pixels");
  args.sources[0] = {f.get("c"), 0, {f.pointer<double>("moments"), f.get("block_pixels")}};
  args.source_count = 1;
  if (f.pointer("moments2")) {
    args.sources[1] = {f.get("c2"), f.get("c2_offset"),
                       {f.pointer<double>("moments2"), f.get("block_pixels2")}};
    args.source_count = 2;
  }
  args.groups = f.get("groups");
  args.eps = f.get<double>("eps");
  args.weight = f.pointer("weight");
  args.bias = f.pointer("bias");
  args.param_dtype = f.dtype("param_dtype");
  args.norm = f.pointer<float>("norm");
  plan.add(args);
}

void add_norm_apply(StepPlan& plan, const py::dict& values) {
  const Fields f{values};
  NormApplyArgs args{};
  args.x[0] = f.pointer("x");
  args.x[1] = f.pointer("x2");
  args.dtype = f.dtype("dtype");
  args.images = f.get("images");
  args.pixels = f.get("pixels");
  args.channels[0] = f.get("c");
  args.channels[1] = f.get("c2");
  args.norm = f.pointer<float>("norm");
  args.silu = f.get<bool>("silu");
  args.y = f.pointer("y");
  args.y_dtype = f.dtype("y_dtype");
  plan.add(args);
}

AttentionArgs attention_args(const Fields& f) {
  AttentionArgs args{};
  args.dtype = f.dtype("dtype");
  args.n = f.get("images");
  args.heads = f.get("heads");
  args.t_q = args.t_k = f.get("tokens");
  args.d = f.get("head_channels");
  args.scale = f.get<double>("scale");
  args.slots = f.get("slots");
  return args;
}

void add_attention(StepPlan& plan, const py::dict& values) {
  const Fields f{values};
  AttentionArgs args = attention_args(f);
  const int64_t c = args.heads * args.d, row = 3 * c, element = f.get("element_bytes");
  char* qkv = f.pointer<char>("qkv");  // [images, tokens, (q, k, v), heads, head_channels]
  args.q = {qkv, args.t_q * row, args.d, row};
  args.k = {qkv + c * element, args.t_q * row, args.d, row};
  args.v = {qkv + 2 * c * element, args.t_q * row, args.d, row};
  args.out = {f.pointer("y"), args.t_q * c, args.d, c};
  args.lse = f.pointer("lse");
  args.scratch = f.pointer("scratch");
  plan.add(args);
}

void run(const StepPlan& plan, int64_t begin, int64_t end) {
  py::gil_scoped_release released;
  if (!plan.run(begin, end)) throw std::bad_alloc();
}

// What tells one content of a tensor's memory from another: so many words spread over it, mixed.
uint64_t sample_bits(uintptr_t data, int64_t bytes, int64_t samples) {
  const int64_t words = bytes / 4;
  const int64_t step = words > samples ? words / samples : 1;
  const char* from = reinterpret_cast<const char*>(data);  // 16-bit tensors may begin in a word
  uint64_t mixed = 0x9e3779b97f4a7c15;
  for (int64_t i = 0; i < samples && i * step < words; ++i) {
    uint32_t word;
    std::memcpy(&word, from + 4 * i * step, 4);
    mixed = (mixed ^ word) * 0x100000001b3;
  }
  return mixed;
}

// Samples of a weight that is about to be used by one op.
constexpr int64_t kWeightSamples = 32;

// Several tensors' memory, sampled in one call before every step. Each sample is a cache miss, so
// of each tensor only a few: of the CIFAR-10 U-Net 3 cost 0.03 ms after a step, 32 up to 0.2 ms.
class Watched {
 public:
  explicit Watched(std::vector<std::pair<uintptr_t, int64_t>> memory)
      : memory_(std::move(memory)) {}

  uint64_t bits() const {
    uint64_t mixed = 0;
    for (const auto& [data, bytes] : memory_) {
      mixed = (mixed ^ sample_bits(data, bytes, kSamples)) * 0x100000001b3;
    }
    return mixed;
  }

 private:
  static constexpr int64_t kSamples = 3;
  std::vector<std::pair<uintptr_t, int64_t>> memory_;
};

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
  return result;
}

}  // namespace

void bind_step_plan(py::module_& m) {
  py::class_<StepPlan>(m, "StepPlan", "A list of kernel calls on buffers laid out beforehand.")
      .def(py::init<>())
      .def("__len__", &StepPlan::size)
      .def("add_conv2d", &add_conv2d)
      .def("add_linear", &add_linear)
      .def("add_norm_merge", &add_norm_merge)
      .def("add_norm_apply", &add_norm_apply)
      .def("add_attention", &add_attention)
      .def("run", [](const StepPlan& plan) { run(plan, 0, plan.size()); })
      .def("run", &run, "Make the calls [begin, end).");
  m.def("attention_scratch_bytes", [](const py::dict& values) {
    return attention_forward_scratch_bytes(attention_args(Fields{values}));
  });
  m.def("conv2d_moment_pixels", [](const py::dict& values, int32_t algo) {
    return conv2d_moment_pixels(shape_of(Fields{values}), static_cast<Conv2dAlgo>(algo));
  });
  m.def("conv2d_costs", &costs_dict, "The constants of the algorithm choice for this CPU.");
  m.def("conv2d_has", [](int32_t algo) { return conv2d_has(static_cast<Conv2dAlgo>(algo)); },
        "Whether the instruction set in use computes with the algorithm.");
  py::class_<Conv2dProblem>(m, "Conv2dProblem", "A convolution as the choice of algorithm sees it.")
      .def(py::init([](int64_t images, int64_t out_height, int64_t out_width, int64_t c_in,
                       int64_t c_out, int64_t kernel, int64_t stride, int64_t scale,
                       bool bf16, int64_t rearranged, bool grad_weight) {
        return Conv2dProblem{images, out_height, out_width, c_in,       c_out,      kernel,
                             stride, scale,      bf16,      rearranged, grad_weight};
      }));
  m.def("conv2d_cost_ns", [](const Conv2dProblem& problem, int32_t algo) {
    return conv2d_cost_ns(problem, static_cast<Conv2dAlgo>(algo), conv2d_costs(), conv2d_grain());
  });
  m.def("conv2d_choose", [](const Conv2dProblem& problem) {
    return static_cast<int32_t>(conv2d_choose(problem, conv2d_costs(), conv2d_grain()));
  });
  m.def("conv2d_panel_floats", [](int64_t c_out_max, int64_t c_in_max, int64_t kernel,
                                  int32_t algo, bool upsample, bool transposed) {
    return conv2d_panel_floats(kernel, c_out_max, c_in_max, static_cast<Conv2dAlgo>(algo),
                               upsample ? 2 : 1, transposed);
  });
  m.def("sample_bits", [](uintptr_t data, int64_t bytes) {
    return sample_bits(data, bytes, kWeightSamples);
  });
  py::class_<Watched>(m, "Watched", "Memory whose content is watched: [(pointer, bytes)].")
      .def(py::init<std::vector<std::pair<uintptr_t, int64_t>>>())
      .def("bits", &Watched::bits, "A number that differs, in all likelihood, for other content.");
}
