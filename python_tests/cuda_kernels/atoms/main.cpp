// atoms --list            name, path, whether a kernel relies on it, what it is
// atoms --dump FILE       right bytes of all, as the emulator or plain loops give them
// atoms NAME FILE         runs one and compares: one line of JSON; 0 right, 1 wrong, 2 not run
#include <map>
#include <string>

#include "atoms.h"

namespace ddsm::atoms {
namespace {

std::vector<Atom> all_atoms() {
  std::vector<Atom> atoms = portable_atoms();
  for (const auto& more : {copy_atoms(), product_atoms()}) {
    atoms.insert(atoms.end(), more.begin(), more.end());
  }
  return atoms;
}

const char* run(const Atom& atom, Bytes* bytes) {
#ifndef __CUDACC__
  simt::forget_memory();  // of the atom before
#endif
  return atom.run(bytes);
}

int list() {
  for (const Atom& atom : all_atoms()) {
    printf("%s\t%s\t%s\t%s\n", atom.name, atom.path, atom.question ? "question" : "needed",
           atom.about);
  }
  return 0;
}

// Each: name, bytes, both ended by a newline, then so many bytes.
int dump(const char* path) {
  FILE* file = fopen(path, "wb");
  if (!file) return 2;
  for (const Atom& atom : all_atoms()) {
    Bytes bytes;
    const char* error = nullptr;
    if (atom.wanted) bytes = atom.wanted();
    else error = run(atom, &bytes);
    if (error) {
      fprintf(stderr, "atoms: %s: %s\n", atom.name, error);
      return 2;
    }
    fprintf(file, "%s\n%zu\n", atom.name, bytes.size());
    fwrite(bytes.data(), 1, bytes.size(), file);
  }
  return fclose(file) == 0 ? 0 : 2;
}

std::map<std::string, Bytes> load(const char* path) {
  std::map<std::string, Bytes> found;
  FILE* file = fopen(path, "rb");
  char name[64];
  size_t size;
  while (file && fscanf(file, "%63s %zu", name, &size) == 2 && fgetc(file) == '\n') {
    Bytes bytes(size);
    if (fread(bytes.data(), 1, size, file) != size) break;
    found[name] = bytes;
  }
  if (file) fclose(file);
  return found;
}

int report(const Atom& atom, const char* status, const char* reason, const Bytes& got,
           const Bytes& wanted) {
  size_t different = 0, first = 0;
  for (size_t i = 0; i < wanted.size() && i < got.size(); ++i) {
    if (got[i] != wanted[i] && different++ == 0) first = i;
  }
  if (!status) status = different == 0 && got.size() == wanted.size() ? "right" : "wrong";
  printf("{\"atom\": \"%s\", \"path\": \"%s\", \"question\": %s, \"about\": \"%s\", "
         "\"status\": \"%s\", \"reason\": \"%s\", \"bytes\": %zu, \"different\": %zu, "
         "\"first\": %zu}\n",
         atom.name, atom.path, atom.question ? "true" : "false", atom.about, status, reason,
         wanted.size(), different, first);
  return strcmp(status, "right") == 0 ? 0 : strcmp(status, "wrong") == 0 ? 1 : 2;
}

int check(const std::string& name, const char* path) {
  const auto wanted = load(path);
  for (const Atom& atom : all_atoms()) {
    if (name != atom.name) continue;
    const auto found = wanted.find(name);
    if (found == wanted.end()) return report(atom, "not run", "nothing to compare with", {}, {});
    Bytes got;
    const char* error = run(atom, &got);
    if (error) return report(atom, "not run", error, {}, {});
    return report(atom, nullptr, "", got, found->second);
  }
  fprintf(stderr, "atoms: %s is unknown; need one of --list\n", name.c_str());
  return 2;
}

}  // namespace
}  // namespace ddsm::atoms

int main(int count, char** words) {
  const std::string first = count > 1 ? words[1] : "";
  if (first == "--list") return ddsm::atoms::list();
  if (count == 3 && first == "--dump") return ddsm::atoms::dump(words[2]);
  if (count == 3) return ddsm::atoms::check(first, words[2]);
  fprintf(stderr, "atoms: need --list, --dump FILE, or NAME FILE\n");
  return 2;
}
