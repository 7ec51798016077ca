#include "race.h"

#include <algorithm>
#include <cstring>

#include "simt.h"

namespace ddsm::simt {
namespace {

constexpr size_t kUnit = 2;  // bytes that are watched as one
constexpr int kMany = -2;

size_t first_unit(uint32_t address) { return address / kUnit; }
size_t last_unit(uint32_t address, size_t bytes) { return (address + bytes + kUnit - 1) / kUnit; }

}  // namespace

void join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void meet(Clock& into, const Clock& with) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::min(into[i], with[i]);
}

void SharedMemory::reset(size_t bytes, std::vector<std::string> names) {
  bytes_.assign(bytes, 0xFF);
  units_.assign((bytes + kUnit - 1) / kUnit, Unit{});
  names_ = std::move(names);
}

void SharedMemory::check(uint32_t address, size_t bytes, size_t alignment, int agent) const {
  const std::string where = "shared byte " + std::to_string(address) + ": ";
  if (address + bytes > bytes_.size()) {
    throw Fault(where + "out of bounds, " + names_[agent] + " has " +
                std::to_string(bytes_.size()));
  }
  if (address % alignment != 0) throw Fault(where + "not aligned to " + std::to_string(alignment));
}

void SharedMemory::race(size_t unit, const char* what, int other, const Epoch& me) const {
  throw Fault("shared byte " + std::to_string(unit * kUnit) + ": " + names_[me.agent] + what +
              (other == kMany ? "several threads" : names_[other]) +
              " and no barrier is between");
}

void SharedMemory::access(uint32_t address, size_t bytes, Access access, const Epoch& me,
                          const Clock& now) {
  for (size_t unit = first_unit(address); unit < last_unit(address, bytes); ++unit) {
    Unit& u = units_[unit];
    if (u.copying != kNobody) race(unit, " touches what is being copied by ", u.copying, me);
    if (!ordered(u.writer, now)) {
      const bool reads = access == Access::kRead;
      race(unit, reads ? " reads what was written by " : " overwrites ", u.writer.agent, me);
    }
    if (access == Access::kRead) {
      if (u.writer.agent == kNobody) {
        throw Fault("shared byte " + std::to_string(unit * kUnit) + ": " + names_[me.agent] +
                    " reads what nobody wrote");
      }
      const auto gone = [&](const Epoch& reader) { return ordered(reader, now); };
      u.readers.erase(std::remove_if(u.readers.begin(), u.readers.end(), gone), u.readers.end());
      u.readers.push_back(me);
    } else {
      for (const Epoch& reader : u.readers) {
        const int who = u.readers.size() > 1 ? kMany : reader.agent;
        if (!ordered(reader, now)) race(unit, " overwrites what was read by ", who, me);
      }
      u.readers.clear();
      u.writer = me;
    }
  }
}

void SharedMemory::check_passed(uint32_t address, size_t bytes, int threads, const Clock& passed,
                                const Epoch& me) const {
  for (size_t unit = first_unit(address); unit < last_unit(address, bytes); ++unit) {
    const Epoch& writer = units_[unit].writer;
    if (writer.agent == kNobody || writer.agent >= threads || ordered(writer, passed)) continue;
    throw Fault("shared byte " + std::to_string(unit * kUnit) + ": " + names_[me.agent] +
                " copies what " + names_[writer.agent] + " wrote and did not pass to copies");
  }
}

void SharedMemory::expect_copy(uint32_t address, size_t bytes, int agent) {
  for (size_t unit = first_unit(address); unit < last_unit(address, bytes); ++unit) {
    units_[unit].copying = agent;
  }
}

void SharedMemory::land_copy(uint32_t address, const unsigned char* source, size_t bytes,
                             const Epoch& writer) {
  for (size_t unit = first_unit(address); unit < last_unit(address, bytes); ++unit) {
    units_[unit].copying = kNobody;
    units_[unit].writer = writer;
  }
  memcpy(data(address), source, bytes);
}

}  // namespace ddsm::simt
