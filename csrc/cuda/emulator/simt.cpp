#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ddsm::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kUnit = 2;  // bytes that one shadow entry watches
constexpr int kNobody = -1, kMany = -2;

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct PendingCopy {
  uint32_t address;
  unsigned char bytes[16];
};

struct Thread {
  ucontext_t context;  // of the first entry; later switches are jumps, which cost no system call
  jmp_buf jump;
  bool entered;
  State state;
  WarpBody instruction;
  void* operand;
  std::vector<PendingCopy> open;                 // copies not yet committed
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
};

struct Memory {
  size_t bytes;
  bool writable;
};

// When a unit of shared memory was last touched, in barriers of the block and of the warp.
struct Shadow {
  int writer = kNobody, reader = kNobody, reader_warp = kNobody, pending = kNobody;
  unsigned write_time = 0, write_warp_time = 0, read_time = 0, read_warp_time = 0;
};

std::map<uintptr_t, Memory>& memories() {
  static std::map<uintptr_t, Memory> known;  // by first address
  return known;
}

struct Machine {
  const std::function<void()>* body;
  Grid grid, block;
  int threads;
  int current;
  unsigned time;  // barriers that the block has passed
  std::vector<unsigned> warp_time;
  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::vector<unsigned char> shared;
  std::vector<Shadow> shadow;
  std::unordered_map<uintptr_t, uint64_t> global_writer;  // unit -> thread of the whole launch
  jmp_buf scheduler;
  std::string fault;
};
Machine machine;

std::string who(int thread) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(machine.block.x) + "," +
         std::to_string(machine.block.y);
}

Thread& self() { return *machine.pool[machine.current]; }
int warp_of(int thread) { return thread / kWarp; }

void yield() {
  if (_setjmp(self().jump) == 0) _longjmp(machine.scheduler, 1);
}

void wait_as(State state) {
  self().state = state;
  yield();
}

void enter() {
  try {
    (*machine.body)();
    if (!self().open.empty() || !self().groups.empty()) {
      throw Fault(who(machine.current) + " ends with copies under way");
    }
  } catch (const Fault& fault) {
    machine.fault = fault.what();
  }
  self().state = State::kDone;
  _longjmp(machine.scheduler, 1);
}

void resume(int index) {
  machine.current = index;
  Thread& thread = self();
  if (_setjmp(machine.scheduler) != 0) return;
  if (thread.entered) _longjmp(thread.jump, 1);
  thread.entered = true;
  setcontext(&thread.context);
}

void start_block(size_t shared_bytes) {
  machine.time = 1;
  machine.warp_time.assign(machine.threads / kWarp, 1);
  machine.shared.assign(shared_bytes, 0xFF);
  machine.shadow.assign((shared_bytes + kUnit - 1) / kUnit, Shadow{});
  while (static_cast<int>(machine.pool.size()) < machine.threads) {
    machine.pool.push_back(std::make_unique<Thread>());
    machine.stacks.emplace_back(new char[kStackBytes]);
  }
  for (int i = 0; i < machine.threads; ++i) {
    Thread& thread = *machine.pool[i];
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = machine.stacks[i].get();
    thread.context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.context, enter, 0);
    thread.entered = false;
    thread.state = State::kReady;
    thread.open.clear();
    thread.groups.clear();
  }
}

int count(State state, int first, int last) {
  int found = 0;
  for (int i = first; i < last; ++i) found += machine.pool[i]->state == state;
  return found;
}

void run_block(size_t shared_bytes) {
  start_block(shared_bytes);
  for (bool progress = true; progress && machine.fault.empty();) {
    progress = false;
    for (int i = 0; i < machine.threads && machine.fault.empty(); ++i) {
      if (machine.pool[i]->state != State::kReady) continue;
      progress = true;
      resume(i);
    }
  }
  const int done = count(State::kDone, 0, machine.threads);
  if (machine.fault.empty() && done != machine.threads) {
    machine.fault = std::to_string(count(State::kAtBarrier, 0, machine.threads)) +
                    " threads wait at a barrier and " +
                    std::to_string(count(State::kAtWarp, 0, machine.threads)) +
                    " at a warp instruction that not all reach";
  }
}

[[noreturn]] void race(uint32_t address, const char* what, int other) {
  throw Fault("shared byte " + std::to_string(address) + ": " + who(machine.current) + what +
              (other == kMany ? "several threads" : "thread " + std::to_string(other)) +
              " and no barrier is between");
}

// True if an earlier access at (time, warp_time) by `thread` or its warp is ordered before now.
bool ordered(int thread, int warp, unsigned time, unsigned warp_time) {
  if (thread == machine.current || time < machine.time) return true;
  const int own = warp_of(machine.current);
  return warp == own && warp_time < machine.warp_time[own];
}

void watch(uint32_t address, size_t bytes, Access access) {
  const int me = machine.current;
  for (size_t unit = address / kUnit; unit * kUnit < address + bytes; ++unit) {
    Shadow& s = machine.shadow[unit];
    const uint32_t at = static_cast<uint32_t>(unit * kUnit);
    if (s.pending != kNobody) race(at, " touches what is being copied by ", s.pending);
    if (s.writer != kNobody &&
        !ordered(s.writer, warp_of(s.writer), s.write_time, s.write_warp_time)) {
      race(at, access == Access::kRead ? " reads what was written by " : " overwrites ", s.writer);
    }
    if (access == Access::kRead) {
      if (s.writer == kNobody) throw Fault("shared byte " + std::to_string(at) + ": " + who(me) +
                                           " reads what nobody wrote");
      const bool same_time = s.reader != kNobody && s.read_time == machine.time;
      s.reader_warp = same_time && s.reader_warp != warp_of(me) ? kMany : warp_of(me);
      s.reader = same_time && s.reader != me ? kMany : me;
      s.read_time = machine.time;
      s.read_warp_time = machine.warp_time[warp_of(me)];
    } else {
      if (s.reader != kNobody &&
          !ordered(s.reader, s.reader_warp, s.read_time, s.read_warp_time)) {
        race(at, " overwrites what was read by ", s.reader);
      }
      s.writer = me;
      s.write_time = machine.time;
      s.write_warp_time = machine.warp_time[warp_of(me)];
    }
  }
}

void check_shared(uint32_t address, size_t bytes) {
  if (address + bytes > machine.shared.size()) {
    throw Fault("shared byte " + std::to_string(address) + ": out of bounds, " +
                who(machine.current) + " has " + std::to_string(machine.shared.size()));
  }
  if (address % bytes != 0) {
    throw Fault("shared byte " + std::to_string(address) + ": not aligned to " +
                std::to_string(bytes));
  }
}

}  // namespace

void allow_memory(const void* data, size_t bytes, bool writable) {
  if (bytes > 0) memories()[reinterpret_cast<uintptr_t>(data)] = {bytes, writable};
}

void forget_memory() { memories().clear(); }

const char* run(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  machine.fault.clear();
  machine.body = &body;
  machine.grid = grid;
  machine.threads = threads;
  machine.global_writer.clear();
  if (threads < 1 || threads % kWarp != 0) machine.fault = "a block is not made of whole warps";
  for (unsigned y = 0; y < grid.y && machine.fault.empty(); ++y) {
    for (unsigned x = 0; x < grid.x && machine.fault.empty(); ++x) {
      machine.block = {x, y};
      run_block(shared_bytes);
    }
  }
  return machine.fault.empty() ? nullptr : machine.fault.c_str();
}

unsigned thread_index() { return static_cast<unsigned>(machine.current); }
unsigned block_index() { return machine.block.x; }
unsigned block_index_y() { return machine.block.y; }
unsigned grid_size() { return machine.grid.x; }

void sync_threads() {
  if (count(State::kAtBarrier, 0, machine.threads) + 1 < machine.threads) {
    wait_as(State::kAtBarrier);
    return;
  }
  ++machine.time;
  for (int i = 0; i < machine.threads; ++i) machine.pool[i]->state = State::kReady;
}

void warp_instruction(WarpBody body, void* operand) {
  const int first = warp_of(machine.current) * kWarp;
  self().instruction = body;
  self().operand = operand;
  if (count(State::kAtWarp, first, first + kWarp) + 1 < kWarp) {
    wait_as(State::kAtWarp);
    return;
  }
  void* operands[kWarp];
  for (int lane = 0; lane < kWarp; ++lane) {
    Thread& thread = *machine.pool[first + lane];
    if (thread.instruction != body) throw Fault("a warp diverges at a warp instruction");
    operands[lane] = thread.operand;
  }
  body(operands);
  for (int lane = 0; lane < kWarp; ++lane) machine.pool[first + lane]->state = State::kReady;
}

void sync_warp() {
  // Once for the warp: the body runs on the last thread to arrive.
  warp_instruction([](void* const*) { ++machine.warp_time[warp_of(machine.current)]; }, nullptr);
}

unsigned char* shared(uint32_t address, size_t bytes, Access access) {
  check_shared(address, bytes);
  watch(address, bytes, access);
  return machine.shared.data() + address;
}

unsigned char* global(const void* address, size_t bytes, Access access) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto memory = memories().upper_bound(at);
  const bool inside = memory != memories().begin() &&
                      at + bytes <= (--memory)->first + memory->second.bytes;
  if (!inside) {
    throw Fault("global memory: out of bounds, " + who(machine.current) + " touches " +
                std::to_string(bytes) + " bytes" +
                (memory == memories().end() ? std::string()
                                          : " at byte " + std::to_string(at - memory->first) +
                                                " of " + std::to_string(memory->second.bytes)));
  }
  if (at % bytes != 0) {
    throw Fault("global memory: " + std::to_string(bytes) + " bytes at an address not aligned");
  }
  if (access == Access::kWrite && !memory->second.writable) {
    throw Fault("global memory: " + who(machine.current) + " writes an input");
  }
  const uint64_t blocks = uint64_t(machine.block.y) * machine.grid.x + machine.block.x;
  const uint64_t me = blocks * machine.threads + machine.current;
  for (uintptr_t unit = at / kUnit; unit * kUnit < at + bytes; ++unit) {
    const auto found = machine.global_writer.find(unit);
    if (found != machine.global_writer.end() && found->second != me) {
      throw Fault("global memory: " + who(machine.current) +
                  " touches what another thread of the launch wrote");
    }
    if (access == Access::kWrite) machine.global_writer[unit] = me;
  }
  return const_cast<unsigned char*>(static_cast<const unsigned char*>(address));
}

void copy_async(uint32_t shared_address, const void* source, int bytes) {
  PendingCopy copy{shared_address, {}};
  if (bytes > 0) {
    // The whole 16 bytes must be aligned, only `bytes` of them are read.
    if (reinterpret_cast<uintptr_t>(source) % 16 != 0) {
      throw Fault("cp.async: the global address is not aligned to 16 bytes");
    }
    for (int i = 0; i < bytes; i += kUnit) {
      memcpy(copy.bytes + i, global(static_cast<const char*>(source) + i, kUnit, Access::kRead),
             kUnit);
    }
  }
  check_shared(shared_address, 16);
  watch(shared_address, 16, Access::kWrite);
  for (size_t i = 0; i < 16; i += kUnit) {
    machine.shadow[(shared_address + i) / kUnit].pending = machine.current;
  }
  self().open.push_back(copy);
}

void commit_group() {
  self().groups.push_back(std::move(self().open));
  self().open.clear();
}

void wait_groups(int still_running) {
  auto& groups = self().groups;
  while (static_cast<int>(groups.size()) > still_running) {
    for (const PendingCopy& copy : groups.front()) {
      for (size_t i = 0; i < 16; i += kUnit) {
        machine.shadow[(copy.address + i) / kUnit].pending = kNobody;
      }
      memcpy(shared(copy.address, 16, Access::kWrite), copy.bytes, 16);
    }
    groups.erase(groups.begin());
  }
}

}  // namespace ddsm::simt
