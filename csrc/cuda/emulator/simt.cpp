#include "simt.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <tuple>
#include <vector>

#include "machine.h"

namespace ddsm::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

enum class State { kReady, kAtBarrier, kAtGroup, kWaiting, kDone };

struct PendingCopy {
  uint32_t address;
  unsigned char bytes[16];
};

struct Thread {
  ucontext_t context;  // of the first entry; later switches are jumps, which cost no system call
  jmp_buf jump;
  bool entered;
  State state;
  GroupBody instruction;
  void* operand;
  std::function<bool()> ready;  // while kWaiting
  const char* awaited;
  Clock clock;
  Clock passed;  // writes of threads that bulk copies see
  std::vector<PendingCopy> open;                 // copies not yet committed
  std::vector<std::vector<PendingCopy>> groups;  // committed, oldest first
};

struct Machine {
  const std::function<void()>* body;
  Grid grid, block;
  int threads;
  int current;
  std::vector<std::unique_ptr<Thread>> pool;
  std::vector<std::unique_ptr<char[]>> stacks;
  SharedMemory shared;
  std::map<int, std::vector<int>> barriers;  // sync_some: who has arrived
  jmp_buf scheduler;
  std::string fault;
};
Machine machine;

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
      throw Fault(who() + " ends with copies under way");
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

std::vector<std::string> agent_names() {
  const std::string block =
      " of block " + std::to_string(machine.block.x) + "," + std::to_string(machine.block.y);
  std::vector<std::string> names;
  for (int i = 0; i < machine.threads; ++i) names.push_back("thread " + std::to_string(i) + block);
  for (int i = 0; i < kMostMbarriers; ++i) {
    names.push_back("a bulk copy of mbarrier " + std::to_string(i) + block);
  }
  for (int i = 0; i < (machine.threads + kWarpgroup - 1) / kWarpgroup; ++i) {
    names.push_back("a product of warpgroup " + std::to_string(i) + block);
  }
  for (int i = 0; i < (machine.threads + kWarpgroup - 1) / kWarpgroup; ++i) {
    names.push_back("a bulk copy out of warpgroup " + std::to_string(i) + block);
  }
  return names;
}

void start_block(size_t shared_bytes) {
  const auto names = agent_names();
  machine.barriers.clear();
  machine.shared.reset(shared_bytes, names);
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
    thread.clock.assign(names.size(), 0);
    thread.clock[i] = 1;
    thread.passed.assign(names.size(), 0);
    thread.open.clear();
    thread.groups.clear();
  }
  enter_global_memory();
  start_hopper();
}

int count(State state, int first, int last) {
  int found = 0;
  for (int i = first; i < last; ++i) found += machine.pool[i]->state == state;
  return found;
}

// Runs each thread that can go on, once; false: there is none.
bool run_ready() {
  bool progress = false;
  for (int i = 0; i < machine.threads && machine.fault.empty(); ++i) {
    Thread& thread = *machine.pool[i];
    if (thread.state == State::kWaiting && thread.ready()) thread.state = State::kReady;
    if (thread.state != State::kReady) continue;
    progress = true;
    resume(i);
  }
  return progress;
}

std::string stuck() {
  std::string text = std::to_string(count(State::kAtBarrier, 0, machine.threads)) +
                     " threads wait at a barrier and " +
                     std::to_string(count(State::kAtGroup, 0, machine.threads)) +
                     " at a warp instruction that not all reach";
  for (int i = 0; i < machine.threads; ++i) {
    if (machine.pool[i]->state != State::kWaiting) continue;
    return text + ", " + std::to_string(count(State::kWaiting, 0, machine.threads)) +
           " wait without end, the first for " + machine.pool[i]->awaited;
  }
  return text;
}

void run_block(size_t shared_bytes) {
  start_block(shared_bytes);
  try {
    const auto all_done = [] {
      return count(State::kDone, 0, machine.threads) == machine.threads;
    };
    while (machine.fault.empty() && !all_done() && (run_ready() || land_bulk_copy())) {
    }
    if (!machine.fault.empty()) return;
    if (!all_done()) throw Fault(stuck());
    finish_hopper();
  } catch (const Fault& fault) {
    machine.fault = fault.what();
  }
}

// Everything that any of `group` did is ordered before what each does next.
void order(const std::vector<int>& group) {
  Clock all = machine.pool[group[0]]->clock, passed = machine.pool[group[0]]->passed;
  for (const int i : group) {
    join(all, machine.pool[i]->clock);
    join(passed, machine.pool[i]->passed);
  }
  for (const int i : group) {
    machine.pool[i]->clock = all;
    machine.pool[i]->passed = passed;
    tick(i);
  }
}

std::vector<int> adjacent(int first, int size) {
  std::vector<int> group(size);
  std::iota(group.begin(), group.end(), first);
  return group;
}

}  // namespace

int copies_agent(int mbarrier) { return machine.threads + mbarrier; }
int products_agent(int warpgroup) { return machine.threads + kMostMbarriers + warpgroup; }
int copies_out_agent(int warpgroup) {
  return products_agent(warpgroup) + (machine.threads + kWarpgroup - 1) / kWarpgroup;
}
int threads() { return machine.threads; }
int thread() { return machine.current; }
void act_as(int thread) { machine.current = thread; }
SharedMemory& shared_memory() { return machine.shared; }
const std::string& who() { return machine.shared.name(machine.current); }
uint64_t running_block() { return uint64_t(machine.block.y) * machine.grid.x + machine.block.x; }
Clock& clock_of(int thread) { return machine.pool[thread]->clock; }
Clock& passed_of(int thread) { return machine.pool[thread]->passed; }
Epoch now() { return {machine.current, self().clock[machine.current]}; }
void tick(int thread) { ++machine.pool[thread]->clock[thread]; }

void wait_until(std::function<bool()> ready, const char* what) {
  if (ready()) return;
  self().ready = std::move(ready);
  self().awaited = what;
  wait_as(State::kWaiting);
}

void converge(int size, GroupBody body, void* operand) {
  const int first = machine.current / size * size;
  self().instruction = body;
  self().operand = operand;
  if (count(State::kAtGroup, first, first + size) + 1 < size) {
    wait_as(State::kAtGroup);
    return;
  }
  std::vector<void*> operands(size);
  for (int lane = 0; lane < size; ++lane) {
    Thread& thread = *machine.pool[first + lane];
    if (thread.instruction != body) throw Fault("a warp diverges at a warp instruction");
    operands[lane] = thread.operand;
  }
  body(operands.data());
  for (int lane = 0; lane < size; ++lane) machine.pool[first + lane]->state = State::kReady;
}

std::vector<Launch>& launches() {
  static std::vector<Launch> all;
  return all;
}
static bool kernels_wanted = true;
void want_kernels(bool wanted) { kernels_wanted = wanted; }

static int multiprocessor_count = 4;
void set_multiprocessors(int count) { multiprocessor_count = count; }
int multiprocessors() { return multiprocessor_count; }

const char* run(Grid grid, int threads, size_t shared_bytes, const std::function<void()>& body) {
  return run({"", grid, threads, shared_bytes, false}, body);
}

const char* run(const Launch& launch, const std::function<void()>& body) {
  launches().push_back(launch);
  if (!kernels_wanted) return nullptr;
  const auto [grid, threads, shared_bytes] =
      std::tuple(launch.grid, launch.threads, launch.shared_bytes);
  machine.fault.clear();
  machine.body = &body;
  machine.grid = grid;
  machine.threads = threads;
  start_global_memory(launch.overlaps);
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

void sync_threads() { sync_some(0, machine.threads); }

void sync_some(int id, int count) {
  std::vector<int>& arrived = machine.barriers[id];
  arrived.push_back(machine.current);
  if (static_cast<int>(arrived.size()) < count) {
    wait_as(State::kAtBarrier);
    return;
  }
  order(arrived);
  for (const int i : arrived) machine.pool[i]->state = State::kReady;
  arrived.clear();
}

void warp_instruction(GroupBody body, void* operand) { converge(kWarp, body, operand); }

void sync_warp() {
  // Once for the warp: the body runs on the last thread to arrive.
  const GroupBody body = [](void* const*) {
    order(adjacent(warp_of(machine.current) * kWarp, kWarp));
  };
  warp_instruction(body, nullptr);
}

unsigned char* shared(uint32_t address, size_t bytes, Access access) {
  machine.shared.check(address, bytes, bytes, machine.current);
  machine.shared.access(address, bytes, access, now(), self().clock);
  return machine.shared.data(address);
}

void copy_async(uint32_t shared_address, const void* source, int bytes) {
  PendingCopy copy{shared_address, {}};
  if (bytes % 2 != 0) throw Fault("cp.async: an odd number of bytes");
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
  shared(shared_address, 16, Access::kWrite);
  machine.shared.expect_copy(shared_address, 16, machine.current);
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
      machine.shared.land_copy(copy.address, copy.bytes, 16, now());
    }
    groups.erase(groups.begin());
  }
}

}  // namespace ddsm::simt
