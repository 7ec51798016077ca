# Refuses a kernel object with a symbol that the linker may merge with other variants' copies
# (isa.h says why): an inline function outside the variant's namespace compiled for AVX-512 could
# otherwise run on a CPU without it.
#   cmake -DNM=nm -DISA=avx2 -DOBJECTS=a.o|b.o -P check_variant_symbols.cmake
string(REPLACE "|" ";" objects "${OBJECTS}")
foreach(object IN LISTS objects)
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE symbols
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
  foreach(symbol IN LISTS shared)
    if(NOT symbol MATCHES "ddsm::${ISA}::|DW.ref.__gxx_personality_v0")
      message(FATAL_ERROR "${object}: '${symbol}' is shared between the instruction-set variants; "
                          "make it static or move it into namespace ddsm::DDSM_ISA")
    endif()
  endforeach()
endforeach()
