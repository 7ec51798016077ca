// The parts of the Python module ddsm_ext._native.
#pragma once

#include <pybind11/pybind11.h>

void bind_conv2d_choice(pybind11::module_& m);
void bind_digest(pybind11::module_& m);
void bind_step_plan(pybind11::module_& m);
