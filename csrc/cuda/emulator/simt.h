// A small SIMT machine for tests: runs a kernel that was compiled as plain C++, one block at a
// time, every thread a fiber, and watches each access that goes through ptx.cuh.
//
// A launch ends with a message, never a crash, when a kernel
//   - touches shared or global memory out of bounds, or at an address that is not aligned,
//   - reads shared memory that nobody wrote, or that a cp.async still fills,
//   - touches shared memory that another thread wrote (or writes what another read) with no barrier
//     between the two,
//   - reads or writes global memory that another thread of the launch wrote, unless barriers and a
//     ticket lie between,
//   - overlaps the kernel before it and touches global memory without waiting for that one,
//   - leaves threads waiting at a barrier or a warp instruction that not all reach, or for a phase
//     of an mbarrier that nobody completes.
// Bulk copies land, and products of warpgroups run, as late as the kernel lets them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "race.h"

namespace ddsm::simt {

constexpr int kWarp = 32;

struct Grid {
  unsigned x = 1, y = 1;
};

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Global memory that kernels may touch; everything else is out of bounds.
void allow_memory(const void* data, size_t bytes, bool writable);
void forget_memory();

struct Launch {
  std::string name;  // of the kernel
  Grid grid;
  int threads;
  size_t shared_bytes;
  bool overlaps;
};

// Runs `body` once for every thread; null, or what went wrong (valid until the next call).
const char* run(const Launch& launch, const std::function<void()>& body);
const char* run(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body);

// The launches since the list was last cleared. While kernels are not wanted they are listed only.
std::vector<Launch>& launches();
void want_kernels(bool wanted);

// Whether the emulated device runs sm_90a code: no, unless set. Its multiprocessors: 4.
void set_hopper(bool hopper);
bool is_hopper();
void set_multiprocessors(int count);
int multiprocessors();

// What the running thread is.
unsigned thread_index();
unsigned block_index();
unsigned block_index_y();
unsigned grid_size();

void sync_threads();
void sync_warp();
// Barrier `id` of `count` threads of the block.
void sync_some(int id, int count);

// One instruction of a whole warp: `body` sees the 32 threads' operands once all have arrived.
using GroupBody = void (*)(void* const* operands);
void warp_instruction(GroupBody body, void* operand);

unsigned char* shared(uint32_t address, size_t bytes, Access access);
unsigned char* global(const void* address, size_t bytes, Access access);

// See ptx.cuh.
unsigned take_ticket(unsigned* counter, unsigned last);
void wait_for_kernel_before();
void allow_kernel_after();

// Asynchronous copy of `bytes` of 16, the rest zero; it lands when the thread waits for its group.
void copy_async(uint32_t shared_address, const void* source, int bytes);
void commit_group();
void wait_groups(int still_running);

}  // namespace ddsm::simt
