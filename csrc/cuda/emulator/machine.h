// What the parts of the emulator share: the running block. Kernels see simt.h only.
#pragma once

#include <functional>
#include <string>

#include "race.h"
#include "simt.h"

namespace ddsm::simt {

constexpr int kWarpgroup = 128;
constexpr int kMostMbarriers = 32;  // of a block

// Agents after the block's threads.
int copies_agent(int mbarrier);
int products_agent(int warpgroup);
int copies_out_agent(int warpgroup);

int threads();       // of the block
int thread();        // that runs
void act_as(int thread);  // what follows counts as this thread's doing
SharedMemory& shared_memory();
const std::string& who();  // names the running thread, for faults
uint64_t running_block();  // a number of its own in the launch
Clock& clock_of(int thread);
// Up to which moment of each thread its writes were passed to bulk copies, as this one knows.
Clock& passed_of(int thread);

// The running thread's moment, and the end of it: what follows is not ordered before what the
// clock was given to.
Epoch now();
void tick(int thread);

// Global memory (global_memory.cpp): units of kUnit bytes are watched as one.
constexpr size_t kUnit = 2;
void start_global_memory(bool overlaps);  // of a launch
void enter_global_memory();               // of a block
// Throws Fault unless the running thread may touch memory that kernels write.
void check_waited();
// As `global`, whether or not the thread has waited for the kernel before.
unsigned char* constant_memory(const void* address, size_t bytes);

// Leaves the running thread until `ready`, which must not throw. `what` it waits for.
void wait_until(std::function<bool()> ready, const char* what);

// One instruction of `size` adjacent threads (of whole warps): `body` runs once, as the last of
// them, when all have arrived.
void converge(int size, GroupBody body, void* operand);

// mbarriers, bulk copies and warpgroup products (hopper.cpp).
void start_hopper();
void finish_hopper();  // throws Fault if something is under way
bool land_bulk_copy();  // false: none is under way

}  // namespace ddsm::simt
