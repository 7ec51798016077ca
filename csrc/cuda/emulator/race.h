// What happened before what in an emulated block, by vector clocks, and the shared memory that is
// watched with them. Agents are the block's threads and what runs beside them: the bulk copies of
// each mbarrier and the products of each warpgroup.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace ddsm::simt {

enum class Access { kRead, kWrite };

constexpr int kNobody = -1;

// A moment of an agent's life.
struct Epoch {
  int agent = kNobody;
  uint32_t time = 0;
};

// Up to which moment of each agent something is ordered after it.
using Clock = std::vector<uint32_t>;

inline bool ordered(const Epoch& earlier, const Clock& now) {
  return earlier.agent == kNobody || earlier.time <= now[earlier.agent];
}
void join(Clock& into, const Clock& from);
void meet(Clock& into, const Clock& with);  // what both are ordered after

class SharedMemory {
 public:
  // Every byte 0xFF and not yet written. `names`: of the agents, for messages.
  void reset(size_t bytes, std::vector<std::string> names);

  unsigned char* data(uint32_t address) { return bytes_.data() + address; }
  const std::string& name(int agent) const { return names_[agent]; }

  // Throws Fault unless the bytes lie inside and at a multiple of `alignment`.
  void check(uint32_t address, size_t bytes, size_t alignment, int agent) const;
  // Throws Fault if an earlier access that conflicts with this one is not ordered before `now`.
  void access(uint32_t address, size_t bytes, Access access, const Epoch& me, const Clock& now);

  // Throws Fault if one of the first `threads` agents wrote the bytes and has not passed them on.
  void check_passed(uint32_t address, size_t bytes, int threads, const Clock& passed,
                    const Epoch& me) const;

  // Bytes that a copy will fill at an unknown time; nobody may touch them until it has landed.
  void expect_copy(uint32_t address, size_t bytes, int agent);
  void land_copy(uint32_t address, const unsigned char* source, size_t bytes, const Epoch& writer);

 private:
  struct Unit {
    Epoch writer;
    std::vector<Epoch> readers;  // since the last write, none ordered before another
    int copying = kNobody;
  };
  [[noreturn]] void race(size_t unit, const char* what, int other, const Epoch& me) const;

  std::vector<unsigned char> bytes_;
  std::vector<Unit> units_;
  std::vector<std::string> names_;
};

}  // namespace ddsm::simt
