// Global memory: its bounds, who may read what another thread wrote, and tickets between blocks.
#include <map>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace ddsm::simt {
namespace {

// The last write to a unit of global memory: by which block, and when in its life.
struct GlobalWrite {
  uint64_t block;
  Epoch epoch;
};

// What a block had done when it took a ticket.
struct Arrival {
  uint64_t block;
  Clock clock;
};
// What of other blocks a block sees, from `since` on.
struct Acquired {
  Arrival arrival;
  Epoch since;
};

struct Memory {
  size_t bytes;
  bool writable;
};

std::map<uintptr_t, Memory>& memories() {
  static std::map<uintptr_t, Memory> known;  // by first address
  return known;
}

// Of the launch.
bool overlapping;
std::unordered_map<uintptr_t, GlobalWrite> writes;     // by unit
std::map<const void*, std::vector<Arrival>> tickets;  // taken, by counter
// Of the running block.
std::vector<Acquired> acquisitions;
std::vector<bool> waited;  // by thread: for the kernel before

// Whether the running thread may count on having what was written.
bool sees(const GlobalWrite& write) {
  const Clock& now = clock_of(thread());
  if (write.block == running_block() && ordered(write.epoch, now)) return true;
  for (const Acquired& acquired : acquisitions) {
    if (acquired.arrival.block == write.block && ordered(acquired.since, now) &&
        ordered(write.epoch, acquired.arrival.clock)) {
      return true;
    }
  }
  return false;
}

unsigned char* touch_global(const void* address, size_t bytes, Access access) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto memory = memories().upper_bound(at);
  const bool inside = memory != memories().begin() &&
                      at + bytes <= (--memory)->first + memory->second.bytes;
  if (!inside) {
    throw Fault("global memory: out of bounds, " + who() + " touches " +
                std::to_string(bytes) + " bytes" +
                (memory == memories().end() ? std::string()
                                          : " at byte " + std::to_string(at - memory->first) +
                                                " of " + std::to_string(memory->second.bytes)));
  }
  if (at % bytes != 0) {
    throw Fault("global memory: " + std::to_string(bytes) + " bytes at an address not aligned");
  }
  if (access == Access::kWrite && !memory->second.writable) {
    throw Fault("global memory: " + who() + " writes an input");
  }
  for (uintptr_t unit = at / kUnit; unit * kUnit < at + bytes; ++unit) {
    const auto found = writes.find(unit);
    if (found != writes.end() && !sees(found->second)) {
      throw Fault("global memory: " + who() +
                  " touches what another thread of the launch wrote");
    }
    if (access == Access::kWrite) writes[unit] = {running_block(), now()};
  }
  return const_cast<unsigned char*>(static_cast<const unsigned char*>(address));
}

}  // namespace

void start_global_memory(bool overlaps) {
  overlapping = overlaps;
  writes.clear();
  tickets.clear();
}

void enter_global_memory() {
  acquisitions.clear();
  waited.assign(threads(), false);
}

void allow_memory(const void* data, size_t bytes, bool writable) {
  if (bytes > 0) memories()[reinterpret_cast<uintptr_t>(data)] = {bytes, writable};
}

void forget_memory() { memories().clear(); }

void check_waited() {
  if (overlapping && !waited[thread()]) {
    throw Fault("global memory: " + who() + " has not waited for the kernel before");
  }
}

unsigned char* global(const void* address, size_t bytes, Access access) {
  check_waited();
  return touch_global(address, bytes, access);
}
unsigned char* constant_memory(const void* address, size_t bytes) {
  return touch_global(address, bytes, Access::kRead);
}

unsigned take_ticket(unsigned* counter, unsigned last) {
  check_waited();
  const unsigned ticket = *counter;
  if (ticket > last) throw Fault("a counter of tickets does not begin at 0");
  std::vector<Arrival>& arrivals = tickets[counter];
  for (const Arrival& arrival : arrivals) acquisitions.push_back({arrival, now()});
  arrivals.push_back({running_block(), clock_of(thread())});
  tick(thread());
  *counter = ticket == last ? 0 : ticket + 1;
  return ticket;
}

void wait_for_kernel_before() { waited[thread()] = true; }
void allow_kernel_after() {
  if (!waited[thread()]) throw Fault(who() + " allows the next kernel before it has waited itself");
}

}  // namespace ddsm::simt
