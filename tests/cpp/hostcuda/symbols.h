// The program's own symbol table: where the __shared__ variables lie, and what a kernel is called.
#pragma once

#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace hostcuda {

// Calls visit(name, address, size, type) for each defined symbol of each loaded ELF file that is not stripped.
template <class Visit>
void for_each_symbol(Visit&& visit) {
  const auto read_module = [](dl_phdr_info* info, size_t, void* context) {
    const char* path = info->dlpi_name[0] != '\0' ? info->dlpi_name : "/proc/self/exe";
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;  // the kernel's own vdso
    struct stat status;
    void* image = MAP_FAILED;
    if (fstat(file, &status) == 0 && status.st_size > static_cast<off_t>(sizeof(ElfW(Ehdr)))) {
      image = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    }
    close(file);
    if (image == MAP_FAILED) return 0;
    const char* bytes = static_cast<const char*>(image);
    const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes);
    const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes + header->e_shoff);
    for (int s = 0; s < header->e_shnum; ++s) {
      if (sections[s].sh_type != SHT_SYMTAB) continue;
      const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes + sections[s].sh_offset);
      const char* names = bytes + sections[sections[s].sh_link].sh_offset;
      for (size_t i = 0; i < sections[s].sh_size / sizeof(ElfW(Sym)); ++i) {
        if (symbols[i].st_shndx == SHN_UNDEF || symbols[i].st_size == 0) continue;
        const auto address = reinterpret_cast<char*>(info->dlpi_addr + symbols[i].st_value);
        (*static_cast<Visit*>(context))(names + symbols[i].st_name, address, symbols[i].st_size,
                                        ELF64_ST_TYPE(symbols[i].st_info));
      }
    }
    munmap(image, static_cast<size_t>(status.st_size));
    return 0;
  };
  dl_iterate_phdr(read_module, &visit);
}

struct Region {
  char* begin;
  size_t bytes;
};

inline std::vector<Region> shared_variables() {
  std::vector<Region> found;
  for_each_symbol([&](const char* name, char* address, size_t size, int type) {
    if (type == STT_OBJECT && std::strstr(name, "hostcuda_shared") != nullptr) found.push_back({address, size});
  });
  return found;
}

inline std::string function_name(const void* function) {
  std::string name = "?";
  for_each_symbol([&](const char* symbol, char* address, size_t, int type) {
    if (type != STT_FUNC || address != function) return;
    int status = 0;
    char* readable = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    name = status == 0 ? readable : symbol;
    std::free(readable);
  });
  return name;
}

// How many modules were ever loaded: a change means that the tables must be read again.
inline unsigned long long modules_loaded() {
  unsigned long long count = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<unsigned long long*>(out) = info->dlpi_adds;
        return 1;
      },
      &count);
  return count;
}

}  // namespace hostcuda
