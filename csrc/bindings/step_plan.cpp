// ddsm_ext._native.StepPlan and the Args structs of its calls, made with one keyword a field. A
// pointer is the integer of Tensor.data_ptr(), 0 for null; ddsm_ext/runtime/program.py, the one
// caller, keeps their tensors.
#include "ddsm/step_plan.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <string>
#include <utility>
#include <vector>

#include "native.h"

namespace py = pybind11;

namespace {

using namespace ddsm;
using py::arg;
using Pointer = uintptr_t;
using Dtype = int32_t;  // the number of a DType

template <class T = void>
T* pointer(Pointer address) {
  return reinterpret_cast<T*>(address);
}

DType dtype_of(Dtype number) { return static_cast<DType>(number); }

// One or two sources into the array of an Args struct.
template <class Source>
int64_t fill_sources(const char* args, const std::vector<Source>& from, Source (&to)[2]) {
  if (from.empty() || from.size() > 2) {
    throw py::value_error(std::string(args) + ": has " + std::to_string(from.size()) +
                          " sources; need 1 or 2");
  }
  for (size_t i = 0; i < from.size(); ++i) to[i] = from[i];
  return static_cast<int64_t>(from.size());
}

void bind_conv2d(py::module_& m) {
  py::class_<Conv2dShape>(m, "Conv2dShape")
      .def(py::init([](int64_t images, int64_t height, int64_t width, int64_t out_height,
                       int64_t out_width, int64_t stride, int64_t padding, int64_t scale,
                       int64_t padding_end) {
             return Conv2dShape{images, height, width, out_height, out_width, stride, padding,
                                scale,  padding_end};
           }),
           py::kw_only(), arg("images"), arg("height"), arg("width"), arg("out_height"),
           arg("out_width"), arg("stride"), arg("padding"), arg("scale"), arg("padding_end"));
  py::class_<Conv2dImage>(m, "Conv2dImage")
      .def(py::init([](Pointer data, int64_t n_stride, int64_t h_stride, int64_t w_stride,
                       int64_t channels, int64_t weight_offset) {
             return Conv2dImage{pointer(data), n_stride, h_stride, w_stride, channels,
                                weight_offset};
           }),
           py::kw_only(), arg("data"), arg("n_stride"), arg("h_stride"), arg("w_stride"),
           arg("channels"), arg("weight_offset"));
  py::class_<Conv2dForwardArgs>(m, "Conv2dForwardArgs")
      .def(py::init([](const Conv2dShape& shape, const std::vector<Conv2dImage>& sources,
                       Dtype weight_dtype, int32_t kernel, int32_t algo, Pointer panels,
                       int64_t c_out_max, int64_t c_in_max, Pointer bias, Pointer norm,
                       bool norm_silu, Pointer shift, int32_t activation, Pointer gate,
                       Pointer residual, int64_t residual_scale, double gain, Pointer y,
                       Dtype y_dtype, int64_t c_out, int64_t parts, Pointer moments) {
             Conv2dForwardArgs args{};
             args.shape = shape;
             Conv2dImage images[2] = {};
             fill_sources("Conv2dForwardArgs", sources, images);
             args.x = images[0];
             args.x2 = images[1];
             args.weight.dtype = dtype_of(weight_dtype);
             args.weight.kernel = kernel;
             args.algo = static_cast<Conv2dAlgo>(algo);
             args.panels = {pointer(panels), c_out_max, c_in_max};
             args.bias = pointer(bias);
             args.norm = pointer<float>(norm);
             args.norm_silu = norm_silu;
             args.shift = pointer<float>(shift);
             args.activation = static_cast<Activation>(activation);
             args.gate = pointer<float>(gate);
             args.residual = pointer(residual);
             args.residual_scale = residual_scale;
             args.gain = gain;
             args.y = pointer(y);
             args.y_dtype = dtype_of(y_dtype);
             args.c_out = c_out;
             args.parts = parts;
             args.moments = pointer<double>(moments);
             return args;
           }),
           py::kw_only(), arg("shape"), arg("sources"), arg("weight_dtype"), arg("kernel"),
           arg("algo"), arg("panels"), arg("c_out_max"), arg("c_in_max"), arg("bias"), arg("norm"),
           arg("norm_silu"), arg("shift"), arg("activation"), arg("gate"), arg("residual"),
           arg("residual_scale"), arg("gain"), arg("y"), arg("y_dtype"), arg("c_out"),
           arg("parts"), arg("moments"));
}

void bind_linear(py::module_& m) {
  py::class_<LinearForwardArgs>(m, "LinearForwardArgs")
      .def(py::init([](Pointer x, int64_t rows, int64_t c_in, int64_t x_row_stride, Pointer weight,
                       Dtype weight_dtype, int64_t weight_stride, Pointer bias, Pointer residual,
                       Pointer y, Dtype y_dtype, int64_t c_out) {
             LinearForwardArgs args{};
             args.x = pointer(x);
             args.rows = rows;
             args.c_in = c_in;
             args.x_row_stride = x_row_stride;
             args.weight = {pointer(weight), dtype_of(weight_dtype), weight_stride, 1};
             args.bias = pointer(bias);
             args.residual = pointer(residual);
             args.y = pointer(y);
             args.y_dtype = dtype_of(y_dtype);
             args.y_row_stride = args.c_out = c_out;
             return args;
           }),
           py::kw_only(), arg("x"), arg("rows"), arg("c_in"), arg("x_row_stride"), arg("weight"),
           arg("weight_dtype"), arg("weight_stride"), arg("bias"), arg("residual"), arg("y"),
           arg("y_dtype"), arg("c_out"));
  py::class_<LinearsForwardArgs>(m, "LinearsForwardArgs")
      .def(py::init([](std::vector<LinearForwardArgs> layers) {
             return LinearsForwardArgs{std::move(layers)};
           }),
           py::kw_only(), arg("layers"));
}

void bind_group_norm_merge(py::module_& m) {
  py::class_<GroupNormMomentsArgs>(m, "GroupNormMomentsArgs")
      .def(py::init([](Pointer x, Dtype dtype, int64_t images, int64_t pixels, int64_t channels,
                       int64_t x_pixel_stride, int64_t block_pixels, Pointer moments) {
             return GroupNormMomentsArgs{pointer(x),   dtype_of(dtype), images,
                                         pixels,       channels,        x_pixel_stride,
                                         block_pixels, pointer<double>(moments)};
           }),
           py::kw_only(), arg("x"), arg("dtype"), arg("images"), arg("pixels"), arg("channels"),
           arg("x_pixel_stride"), arg("block_pixels"), arg("moments"));
  py::class_<GroupNormMergeSource>(m, "GroupNormMergeSource")
      .def(py::init([](int64_t channels, int64_t param_offset, Pointer moments,
                       int64_t block_pixels) {
             return GroupNormMergeSource{channels, param_offset, pointer<double>(moments),
                                         block_pixels};
           }),
           py::kw_only(), arg("channels"), arg("param_offset"), arg("moments"),
           arg("block_pixels"));
  py::class_<GroupNormMergeArgs>(m, "GroupNormMergeArgs")
      .def(py::init([](int64_t images, int64_t pixels,
                       const std::vector<GroupNormMergeSource>& sources, int64_t groups,
                       double eps, Pointer weight, Pointer bias, Dtype param_dtype, Pointer scale,
                       Pointer shift, int64_t modulation_stride, Pointer norm) {
             GroupNormMergeArgs args{};
             args.images = images;
             args.pixels = pixels;
             args.source_count = fill_sources("GroupNormMergeArgs", sources, args.sources);
             args.groups = groups;
             args.eps = eps;
             args.weight = pointer(weight);
             args.bias = pointer(bias);
             args.param_dtype = dtype_of(param_dtype);
             args.scale = pointer(scale);
             args.shift = pointer(shift);
             args.modulation_dtype = args.compute = DType::kFloat32;
             args.modulation_stride = modulation_stride;
             args.norm = pointer(norm);
             return args;
           }),
           py::kw_only(), arg("images"), arg("pixels"), arg("sources"), arg("groups"), arg("eps"),
           arg("weight"), arg("bias"), arg("param_dtype"), arg("scale"), arg("shift"),
           arg("modulation_stride"), arg("norm"));
}

void bind_group_norm_apply(py::module_& m) {
  py::enum_<Resample>(m, "Resample", "What happens to pixels on their way.")
      .value("none", Resample::kNone)
      .value("up", Resample::kUp)
      .value("down", Resample::kDown);
  py::class_<GroupNormApplySource>(m, "GroupNormApplySource")
      .def(py::init([](Pointer x, int64_t channels, int64_t x_pixel_stride, Pointer y,
                       int64_t y_pixel_stride) {
             return GroupNormApplySource{pointer(x), channels, x_pixel_stride, pointer(y),
                                         y_pixel_stride};
           }),
           py::kw_only(), arg("x"), arg("channels"), arg("x_pixel_stride"), arg("y"),
           arg("y_pixel_stride"));
  py::class_<GroupNormApplyArgs>(m, "GroupNormApplyArgs")
      .def(py::init([](int64_t images, int64_t height, int64_t width,
                       const std::vector<GroupNormApplySource>& sources, Dtype dtype,
                       Dtype y_dtype, Pointer norm, bool silu, Resample resample) {
             GroupNormApplyArgs args{};
             args.images = images;
             args.height = height;
             args.width = width;
             args.source_count = fill_sources("GroupNormApplyArgs", sources, args.sources);
             args.dtype = dtype_of(dtype);
             args.y_dtype = dtype_of(y_dtype);
             args.norm = pointer(norm);
             args.silu = silu;
             args.resample = resample;
             return args;
           }),
           py::kw_only(), arg("images"), arg("height"), arg("width"), arg("sources"),
           arg("dtype"), arg("y_dtype"), arg("norm"), arg("silu"), arg("resample"));
}

void bind_layer_norm(py::module_& m) {
  py::class_<LayerNormArgs>(m, "LayerNormArgs")
      .def(py::init([](Pointer x, Dtype dtype, int64_t images, int64_t rows, int64_t channels,
                       Pointer weight, Pointer bias, Dtype param_dtype, double eps, Pointer scale,
                       Pointer shift, Pointer y, Pointer scratch) {
             LayerNormArgs args{};
             args.dtype = dtype_of(dtype);
             args.param_dtype = dtype_of(param_dtype);
             args.modulation_dtype = DType::kFloat32;
             args.images = images;
             args.rows = args.run = rows;
             args.channels = args.x_row_stride = args.modulation_stride = channels;
             args.x_run_stride = rows * channels;
             args.x = pointer(x);
             args.weight = pointer(weight);
             args.bias = pointer(bias);
             args.eps = eps;
             args.scale = pointer(scale);
             args.shift = pointer(shift);
             args.y = pointer(y);
             args.scratch = pointer(scratch);
             return args;
           }),
           py::kw_only(), arg("x"), arg("dtype"), arg("images"), arg("rows"), arg("channels"),
           arg("weight"), arg("bias"), arg("param_dtype"), arg("eps"), arg("scale"), arg("shift"),
           arg("y"), arg("scratch"));
  m.def("layer_norm_scratch_bytes", &layer_norm_scratch_bytes,
        "Bytes of the scratch of a call.");
}

void bind_resample(py::module_& m) {
  py::class_<ResampleArgs>(m, "ResampleArgs")
      .def(py::init([](Pointer x, Dtype dtype, int64_t images, int64_t height, int64_t width,
                       int64_t channels, int64_t n_stride, int64_t h_stride, int64_t w_stride,
                       bool up, double gain, int32_t taps, bool ring, Pointer residual,
                       Pointer y) {
             ResampleArgs args{pointer(x), dtype_of(dtype), images,   height, width, channels,
                               n_stride,   h_stride,        w_stride, up,     gain,  taps,
                               ring,       pointer(residual)};
             args.residual_w_stride = channels;
             args.residual_h_stride = args.out_side(width) * channels;
             args.residual_n_stride = args.out_side(height) * args.residual_h_stride;
             args.y = pointer(y);
             return args;
           }),
           py::kw_only(), arg("x"), arg("dtype"), arg("images"), arg("height"), arg("width"),
           arg("channels"), arg("n_stride"), arg("h_stride"), arg("w_stride"), arg("up"),
           arg("gain"), arg("taps"), arg("ring"), arg("residual"), arg("y"));
}

void bind_attention(py::module_& m) {
  py::class_<AttentionTensor>(m, "AttentionTensor")
      .def(py::init([](Pointer data, int64_t n_stride, int64_t head_stride, int64_t t_stride) {
             return AttentionTensor{pointer(data), n_stride, head_stride, t_stride};
           }),
           py::kw_only(), arg("data"), arg("n_stride"), arg("head_stride"), arg("t_stride"));
  py::class_<AttentionArgs>(m, "AttentionArgs")
      .def(py::init([](Dtype dtype, int64_t n, int64_t heads, int64_t t_q, int64_t t_k, int64_t d,
                       double scale, int64_t slots, const AttentionTensor& q,
                       const AttentionTensor& k, const AttentionTensor& v,
                       const AttentionTensor& out, Pointer lse, Pointer scratch) {
             AttentionArgs args{};
             args.dtype = dtype_of(dtype);
             args.n = n;
             args.heads = heads;
             args.t_q = t_q;
             args.t_k = t_k;
             args.d = d;
             args.scale = scale;
             args.slots = slots;
             args.q = q;
             args.k = k;
             args.v = v;
             args.out = out;
             args.lse = pointer(lse);
             args.scratch = pointer(scratch);
             return args;
           }),
           py::kw_only(), arg("dtype"), arg("n"), arg("heads"), arg("t_q"), arg("t_k"), arg("d"),
           arg("scale"), arg("slots"), arg("q"), arg("k"), arg("v"), arg("out"), arg("lse"),
           arg("scratch"));
  m.def("attention_slots", &attention_slots,
        "The threads' parts of the scratch that pay for the work, as its args have pointers or "
        "not.");
  m.def("attention_scratch_bytes", &attention_forward_scratch_bytes,
        "Bytes of the forward's scratch, for as many slots as the args have.");
}

void run(const StepPlan& plan, int64_t begin, int64_t end) {
  if (begin < 0 || begin > end || end > plan.size()) {
    throw py::index_error("StepPlan.run: calls [" + std::to_string(begin) + ", " +
                          std::to_string(end) + ") of " + std::to_string(plan.size()) +
                          "; need 0 <= begin <= end <= all of them");
  }
  py::gil_scoped_release released;
  if (!plan.run(begin, end)) throw std::bad_alloc();
}

template <class Args>
void add(StepPlan& plan, const Args& args) {
  plan.add(args);
}

}  // namespace

void bind_step_plan(py::module_& m) {
  bind_conv2d(m);
  bind_linear(m);
  bind_group_norm_merge(m);
  bind_group_norm_apply(m);
  bind_layer_norm(m);
  bind_resample(m);
  bind_attention(m);
  py::class_<StepPlan>(m, "StepPlan",
                       "A list of kernel calls on buffers laid out beforehand. Unsafe: addresses, "
                       "sizes and strides in the calls are trusted, nothing here can check them.")
      .def(py::init<int64_t>(), arg("calls") = 0)
      .def("__len__", &StepPlan::size)
      .def("add", &add<Conv2dForwardArgs>)
      .def("add", &add<LinearsForwardArgs>)
      .def("add", &add<GroupNormMomentsArgs>)
      .def("add", &add<GroupNormMergeArgs>)
      .def("add", &add<GroupNormApplyArgs>)
      .def("add", &add<LayerNormArgs>)
      .def("add", &add<ResampleArgs>)
      .def("add", &add<AttentionArgs>)
      .def("run", [](const StepPlan& plan) { run(plan, 0, plan.size()); })
      .def("run", &run, "Make the calls [begin, end).");
  m.attr("STEP_CALL_BYTES") = sizeof(StepCall);
}
