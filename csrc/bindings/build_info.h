// What the libraries were built from and for, as CMake found it.
#pragma once

struct BuildFact {
  const char* name;
  const char* value;
};

// Ends with a null name.
extern const BuildFact kBuildInfo[];
