// The symbol table of the program or library that holds a kernel: where its __shared__ variables lie, and what the
// kernel is called. Build libraries with hidden visibility, else one's variables may stand for another's.
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
#include <type_traits>
#include <vector>

namespace hostcuda {

inline bool holds(const dl_phdr_info* info, const void* p) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
    const auto offset = reinterpret_cast<ElfW(Addr)>(p) - info->dlpi_addr - segment.p_vaddr;
    if (segment.p_type == PT_LOAD && offset < segment.p_memsz) return true;
  }
  return false;
}

// Calls visit(name, address, size, type) for each defined symbol of the file that `inside` was loaded from. The other
// files are left alone: some have millions of symbols.
template <class Visit>
void for_each_symbol(const void* inside, Visit&& visit) {
  struct Context {
    const void* inside;
    std::remove_reference_t<Visit>* visit;
  } context{inside, &visit};
  const auto read_module = [](dl_phdr_info* info, size_t, void* opaque) {
    const auto* context = static_cast<const Context*>(opaque);
    if (!holds(info, context->inside)) return 0;
    const char* path = info->dlpi_name[0] != '\0' ? info->dlpi_name : "/proc/self/exe";
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 1;
    struct stat status;
    void* image = MAP_FAILED;
    if (fstat(file, &status) == 0 && status.st_size > static_cast<off_t>(sizeof(ElfW(Ehdr)))) {
      image = mmap(nullptr, static_cast<size_t>(status.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    }
    close(file);
    if (image == MAP_FAILED) return 1;
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
        (*context->visit)(names + symbols[i].st_name, address, symbols[i].st_size, ELF64_ST_TYPE(symbols[i].st_info));
      }
    }
    munmap(image, static_cast<size_t>(status.st_size));
    return 1;
  };
  dl_iterate_phdr(read_module, &context);
}

struct Region {
  char* begin;
  size_t bytes;
};

inline std::vector<Region> shared_variables(const void* kernel) {
  std::vector<Region> found;
  for_each_symbol(kernel, [&](const char* name, char* address, size_t size, int type) {
    if (type == STT_OBJECT && std::strstr(name, "hostcuda_shared") != nullptr) found.push_back({address, size});
  });
  return found;
}

inline std::string function_name(const void* function) {
  std::string name = "?";
  for_each_symbol(function, [&](const char* symbol, char* address, size_t, int type) {
    if (type != STT_FUNC || address != function) return;
    int status = 0;
    char* readable = abi::__cxa_demangle(symbol, nullptr, nullptr, &status);
    name = status == 0 ? readable : symbol;
    std::free(readable);
  });
  return name;
}

}  // namespace hostcuda
