#include "hopper.h"

#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "../matrix_descriptor.h"
#include "machine.h"

namespace ddsm::simt {
namespace {

bool device_is_hopper = false;

// PTX ISA, "mbarrier": a phase completes when no arrival and no byte is pending.
struct Mbarrier {
  int index;
  uint32_t arrivals, pending;
  int64_t bytes;
  uint32_t phase;
  Epoch init;
  Clock arrived, completed;  // what this phase, and the last complete one, are ordered after
};
std::map<uint32_t, Mbarrier> mbarriers;  // by address

struct BulkCopy {
  TensorMapSpec map;
  uint32_t target, mbarrier;
  int issuer;
  std::vector<std::array<int64_t, 4>> rows;  // first element of each
};
std::vector<BulkCopy> copies;

struct CopyOut {
  TensorMapSpec map;
  uint32_t source;
  std::array<int64_t, 4> first;
};

struct Warpgroup {
  bool fenced = false;
  uint32_t committed = 0;
  std::vector<std::vector<WarpgroupProduct>> open;                 // products not yet committed
  std::vector<std::vector<std::vector<WarpgroupProduct>>> groups;  // each: products, threads
  uint32_t copied_out = 0;
  std::map<int, std::vector<CopyOut>> copies_out;  // by thread
};
std::vector<Warpgroup> warpgroups;

Mbarrier& mbarrier_at(uint32_t address) {
  const auto found = mbarriers.find(address);
  if (found == mbarriers.end() || !ordered(found->second.init, clock_of(thread()))) {
    throw Fault("shared byte " + std::to_string(address) + ": " +
                shared_memory().name(thread()) + " uses an mbarrier whose init it may not see");
  }
  return found->second;
}

void complete_if_done(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.completed = barrier.arrived;
  barrier.completed[copies_agent(barrier.index)] = barrier.phase;
}

uint32_t row_bytes(const TensorMapSpec& map) { return static_cast<uint32_t>(map.row * 2); }

void start_copy(const TensorMapSpec& map, uint32_t target, uint32_t mbarrier,
                std::vector<std::array<int64_t, 4>> rows) {
  if (const char* reason = refusal(map)) throw Fault(reason);
  if (!map.constant) check_waited();
  Mbarrier& barrier = mbarrier_at(mbarrier);
  const size_t bytes = rows.size() * row_bytes(map);
  shared_memory().check(target, bytes, kSwizzleBytes, thread());
  shared_memory().access(target, bytes, Access::kWrite, now(), clock_of(thread()));
  shared_memory().expect_copy(target, bytes, copies_agent(barrier.index));
  copies.push_back({map, target, mbarrier, thread(), std::move(rows)});
}

// 16 bytes of a row from its element `first` on; zero outside of the tensor.
void load_chunk(const TensorMapSpec& map, const std::array<int64_t, 4>& row, int64_t first,
                unsigned char* chunk) {
  memset(chunk, 0, 16);
  int64_t offset = 0;
  for (int d = 1; d < 4; ++d) {
    if (row[d] < 0 || row[d] >= map.size[d]) return;
    offset += row[d] * map.stride_bytes[d - 1];
  }
  for (int64_t i = 0; i < 8; ++i) {
    const int64_t c = row[0] + first + i;
    if (c < 0 || c >= map.size[0]) continue;
    const char* source = static_cast<const char*>(map.data) + offset + c * 2;
    memcpy(chunk + i * 2, constant_memory(source, 2), 2);
  }
}

// Address of the chunk of 8 elements along an operand's rows.
uint32_t chunk_address(const MatrixDescriptor& d, bool k_major, int row, int chunk) {
  const uint32_t panel = k_major ? 0 : chunk / 8 * d.leading_bytes;
  const uint32_t along = k_major ? chunk : chunk % 8;
  return swizzled(d.start + panel + row / 8 * d.stride_bytes + row % 8 * kSwizzleBytes +
                      along * 16,
                  kSwizzleBytes);
}

MatrixDescriptor decoded(uint64_t bits) {
  const MatrixDescriptor d = decode(bits);
  if (d.swizzle != 1 || d.base_offset != 0) {
    throw Fault("wgmma: a descriptor without the 128-byte swizzle, or with a base offset");
  }
  return d;
}

// Calls visit(address, row, chunk) for an operand of `extent` rows of M or N and 16 of K.
template <class Visit>
void for_chunks(uint64_t bits, int extent, bool k_major, Visit visit) {
  const MatrixDescriptor d = decoded(bits);
  const int rows = k_major ? extent : 16, chunks = k_major ? 2 : extent / 8;
  for (int row = 0; row < rows; ++row) {
    for (int chunk = 0; chunk < chunks; ++chunk) {
      visit(chunk_address(d, k_major, row, chunk), row, chunk);
    }
  }
}

// An operand as [extent][16].
std::vector<float> load_operand(const WarpgroupProduct& p, uint64_t bits, int extent,
                                bool k_major) {
  std::vector<float> values(extent * 16);
  for_chunks(bits, extent, k_major, [&](uint32_t address, int row, int chunk) {
    for (int i = 0; i < 8; ++i) {
      uint16_t number;
      memcpy(&number, shared_memory().data(address + i * 2), 2);
      const int mn = k_major ? row : chunk * 8 + i, k = k_major ? chunk * 8 + i : row;
      values[mn * 16 + k] = p.number(number);
    }
  });
  return values;
}

// PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16": where a thread's sums lie.
void multiply(const std::vector<WarpgroupProduct>& threads) {
  const WarpgroupProduct& p = threads[0];
  const auto a = load_operand(p, p.a, 64, true);
  const auto b = load_operand(p, p.b, p.n, !p.b_is_n_major);
  for (int t = 0; t < kWarpgroup; ++t) {
    for (int i = 0; i < p.n / 2; ++i) {
      const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + t % 4 * 2 + i % 2;
      double sum = p.accumulate ? threads[t].d[i] : 0.0;
      for (int k = 0; k < 16; ++k) sum += double(a[row * 16 + k]) * b[column * 16 + k];
      threads[t].d[i] = static_cast<float>(sum);
    }
  }
}

int own_warpgroup() { return thread() / kWarpgroup; }

// What all threads of the warpgroup are ordered after.
Clock warpgroup_clock() {
  const int first = own_warpgroup() * kWarpgroup;
  Clock clock = clock_of(first);
  for (int i = 1; i < kWarpgroup; ++i) meet(clock, clock_of(first + i));
  return clock;
}

void issue(std::vector<WarpgroupProduct> threads) {
  Warpgroup& group = warpgroups[own_warpgroup()];
  if (!group.fenced) throw Fault("wgmma: no wgmma.fence since its sums could be touched");
  const WarpgroupProduct& p = threads[0];
  for (const WarpgroupProduct& other : threads) {
    if (other.a != p.a || other.b != p.b) throw Fault("wgmma: descriptors of a warpgroup differ");
  }
  const Clock clock = warpgroup_clock();
  const Epoch epoch{products_agent(own_warpgroup()), group.committed + 1};
  const auto read = [&](uint32_t address, int, int) {
    shared_memory().check(address, 16, 16, thread());
    shared_memory().access(address, 16, Access::kRead, epoch, clock);
  };
  for_chunks(p.a, 64, true, read);
  for_chunks(p.b, p.n, !p.b_is_n_major, read);
  group.open.push_back(std::move(threads));
}

}  // namespace

void set_hopper(bool hopper) { device_is_hopper = hopper; }
bool is_hopper() { return device_is_hopper; }

void start_hopper() {
  mbarriers.clear();
  copies.clear();
  warpgroups.assign((threads() + kWarpgroup - 1) / kWarpgroup, Warpgroup{});
}

void finish_hopper() {
  if (!copies.empty()) throw Fault("a block ends with bulk copies under way");
  for (const Warpgroup& group : warpgroups) {
    if (!group.open.empty() || !group.groups.empty()) {
      throw Fault("a block ends with products under way");
    }
    for (const auto& [thread, under_way] : group.copies_out) {
      if (!under_way.empty()) throw Fault("a block ends with bulk copies out under way");
    }
  }
}

bool land_bulk_copy() {
  if (copies.empty()) return false;
  const BulkCopy copy = std::move(copies.back());  // none may count on the order of issue
  copies.pop_back();
  act_as(copy.issuer);
  Mbarrier& barrier = mbarriers.at(copy.mbarrier);
  const Epoch writer{copies_agent(barrier.index), barrier.phase + 1};
  const uint32_t pitch = row_bytes(copy.map);
  for (size_t row = 0; row < copy.rows.size(); ++row) {
    for (uint32_t chunk = 0; chunk < pitch / 16; ++chunk) {
      unsigned char bytes[16];
      load_chunk(copy.map, copy.rows[row], chunk * 8, bytes);
      const auto address = static_cast<uint32_t>(copy.target + row * pitch + chunk * 16);
      shared_memory().land_copy(swizzled(address, pitch), bytes, 16, writer);
    }
  }
  barrier.bytes -= static_cast<int64_t>(copy.rows.size() * pitch);
  complete_if_done(barrier);
  return true;
}

void mbarrier_init(uint32_t address, uint32_t arrivals) {
  shared(address, 8, Access::kWrite);
  const int index = static_cast<int>(mbarriers.size());
  if (index == kMostMbarriers) throw Fault("more mbarriers than the emulator has names for");
  const Clock nothing(clock_of(thread()).size(), 0);
  mbarriers[address] = {index, arrivals, arrivals, 0, 0, now(), nothing, nothing};
}

void mbarrier_arrive(uint32_t address, uint32_t bytes) {
  Mbarrier& barrier = mbarrier_at(address);
  if (barrier.pending == 0) throw Fault("an mbarrier gets more arrivals than it counts");
  join(barrier.arrived, clock_of(thread()));
  tick(thread());
  barrier.bytes += bytes;
  --barrier.pending;
  complete_if_done(barrier);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  Mbarrier& barrier = mbarrier_at(address);
  wait_until([&] { return (barrier.phase & 1) != parity; }, "a phase of an mbarrier");
  join(clock_of(thread()), barrier.completed);
}

void copy_tiled(const TensorMapSpec& map, uint32_t target, uint32_t mbarrier,
                const int32_t (&at)[4]) {
  if (map.im2col) throw Fault("a tiled copy by a tensor map of im2col");
  std::vector<std::array<int64_t, 4>> rows;
  for (int64_t k = 0; k < map.box[2]; ++k) {
    for (int64_t j = 0; j < map.box[1]; ++j) {
      for (int64_t i = 0; i < map.box[0]; ++i) {
        rows.push_back({at[0], at[1] + i, at[2] + j, at[3] + k});
      }
    }
  }
  start_copy(map, target, mbarrier, std::move(rows));
}

void copy_out(const TensorMapSpec& map, uint32_t source, const int32_t (&at)[4]) {
  if (const char* reason = refusal(map)) throw Fault(reason);
  if (map.im2col || map.box[1] != 1 || map.box[2] != 1) throw Fault("a copy out of no plain box");
  check_waited();
  Warpgroup& group = warpgroups[own_warpgroup()];
  const size_t bytes = static_cast<size_t>(map.box[0]) * row_bytes(map);
  const Epoch epoch{copies_out_agent(own_warpgroup()), group.copied_out + 1};
  shared_memory().check(source, bytes, kSwizzleBytes, thread());
  shared_memory().check_passed(source, bytes, threads(), passed_of(thread()), now());
  shared_memory().access(source, bytes, Access::kRead, epoch, clock_of(thread()));
  group.copies_out[thread()].push_back({map, source, {at[0], at[1], at[2], at[3]}});
}

void copy_out_commit() {}

void copy_out_wait() {
  Warpgroup& group = warpgroups[own_warpgroup()];
  for (const CopyOut& copy : group.copies_out[thread()]) {
    const uint32_t pitch = row_bytes(copy.map);
    for (int64_t row = 0; row < copy.map.box[0]; ++row) {
      if (copy.first[1] + row >= copy.map.size[1]) break;
      for (int64_t i = 0; i < copy.map.row; ++i) {
        const int64_t c = copy.first[0] + i;
        if (c >= copy.map.size[0]) break;
        const auto address = static_cast<uint32_t>(copy.source + row * pitch + i * 2);
        char* target = static_cast<char*>(const_cast<void*>(copy.map.data)) + c * 2 +
                       (copy.first[1] + row) * copy.map.stride_bytes[0];
        memcpy(global(target, 2, Access::kWrite), shared_memory().data(swizzled(address, pitch)),
               2);
      }
    }
  }
  group.copies_out[thread()].clear();
  clock_of(thread())[copies_out_agent(own_warpgroup())] = ++group.copied_out;
}

void pass_to_copies() {
  passed_of(thread())[thread()] = clock_of(thread())[thread()];
  tick(thread());
}

// PTX ISA, "im2col mode": the corner walks through the pixel box, the offsets are added to it.
void copy_im2col(const TensorMapSpec& map, uint32_t target, uint32_t mbarrier,
                 const int32_t (&at)[4], uint32_t offset_w, uint32_t offset_h) {
  if (!map.im2col) throw Fault("a copy of im2col by a tiled tensor map");
  if (offset_w > 255 || offset_h > 255) throw Fault("im2col: an offset is not 0 to 255");
  const int64_t end_w = map.size[1] + map.upper_w, end_h = map.size[2] + map.upper_h;
  int64_t w = at[1], h = at[2], n = at[3];
  if (w < map.lower || w >= end_w || h < map.lower || h >= end_h) {
    throw Fault("im2col: the filter's corner is outside of the pixel box");
  }
  std::vector<std::array<int64_t, 4>> rows;
  for (int64_t pixel = 0; pixel < map.pixels; ++pixel) {
    rows.push_back({at[0], w + offset_w, h + offset_h, n});
    w += map.step;
    if (w < end_w) continue;
    w = map.lower;
    h += map.step;
    if (h < end_h) continue;
    h = map.lower;
    ++n;
  }
  start_copy(map, target, mbarrier, std::move(rows));
}

void warpgroup_fence() {
  const GroupBody body = [](void* const*) { warpgroups[own_warpgroup()].fenced = true; };
  converge(kWarpgroup, body, nullptr);
}

void warpgroup_product(WarpgroupProduct product) {
  const GroupBody body = [](void* const* operands) {
    std::vector<WarpgroupProduct> threads;
    for (int t = 0; t < kWarpgroup; ++t) {
      threads.push_back(*static_cast<WarpgroupProduct*>(operands[t]));
    }
    issue(std::move(threads));
  };
  converge(kWarpgroup, body, &product);
}

void warpgroup_commit() {
  const GroupBody body = [](void* const*) {
    Warpgroup& group = warpgroups[own_warpgroup()];
    ++group.committed;
    group.groups.push_back(std::move(group.open));
    group.open.clear();
  };
  converge(kWarpgroup, body, nullptr);
}

void warpgroup_wait(int still_running) {
  const GroupBody body = [](void* const* operands) {
    const auto most = static_cast<size_t>(*static_cast<int*>(operands[0]));
    Warpgroup& group = warpgroups[own_warpgroup()];
    group.fenced = false;
    while (group.groups.size() > most) {
      for (const auto& product : group.groups.front()) multiply(product);
      group.groups.erase(group.groups.begin());
    }
    const int first = own_warpgroup() * kWarpgroup;
    for (int t = 0; t < kWarpgroup; ++t) {
      clock_of(first + t)[products_agent(own_warpgroup())] =
          group.committed - static_cast<uint32_t>(group.groups.size());
    }
  };
  converge(kWarpgroup, body, &still_running);
}

}  // namespace ddsm::simt
