# Sets sources_hash to one digest of all C++ and CUDA files under csrc, by path and content. A
# Python package that borrows the libraries of another folder compares (ddsm_ext/_library.py).
set(csrc ${CMAKE_CURRENT_SOURCE_DIR}/csrc)
file(GLOB_RECURSE sources RELATIVE ${csrc}
     ${csrc}/*.h ${csrc}/*.cpp ${csrc}/*.cu ${csrc}/*.cuh)
list(SORT sources)
set(listing "")
foreach(source IN LISTS sources)
  file(SHA256 ${csrc}/${source} digest)
  string(APPEND listing "${source} ${digest}\n")
endforeach()
string(SHA256 sources_hash "${listing}")
