#pragma once

#include <pybind11/pybind11.h>

// Adds StepPlan and the choice of convolution algorithms to the module.
void bind_step_plan(pybind11::module_& m);
