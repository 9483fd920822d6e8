#include "machine.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "../error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

namespace sparse24::cpu {
namespace {

std::int64_t cache_bytes([[maybe_unused]] int name) {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

#if defined(__x86_64__)

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf = 0) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(unsigned word, int at) { return (word >> at & 1) != 0; }

// Which registers the operating system saves (XCR0); 0 where it does not say.
std::uint64_t saved_registers() {
  if (!bit(cpuid(1).c, 27)) return 0;  // OSXSAVE
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return std::uint64_t{high} << 32 | low;
}

constexpr std::uint64_t kTiles = std::uint64_t{3} << 17;  // XTILECFG and XTILEDATA

std::string microarchitecture_of(const Machine& m) {
  if (m.vendor == "AMD") {
    if (m.family == 0x17) return m.model >= 0x30 ? "Zen 2" : "Zen";
    if (m.family == 0x19) {
      const bool zen4 = (m.model >= 0x10 && m.model < 0x20) || (m.model >= 0x60 && m.model < 0x80) || m.model >= 0xa0;
      return zen4 ? "Zen 4" : "Zen 3";
    }
    return m.family == 0x1a ? "Zen 5" : "";
  }
  if (m.vendor != "Intel" || m.family != 6) return "";
  switch (m.model) {
    case 0x3c:
    case 0x3f:
    case 0x45:
    case 0x46: return "Haswell";
    case 0x3d:
    case 0x47:
    case 0x4f:
    case 0x56: return "Broadwell";
    case 0x4e:
    case 0x5e:
    case 0x8e:
    case 0x9e: return "Skylake";
    case 0x55: return "Skylake-SP";
    case 0x6a:
    case 0x6c: return "Ice Lake-SP";
    case 0x8f: return "Sapphire Rapids";
    case 0xcf: return "Emerald Rapids";
    case 0xad:
    case 0xae: return "Granite Rapids";
    case 0x97:
    case 0x9a: return "Alder Lake";
    case 0xb7:
    case 0xba:
    case 0xbf: return "Raptor Lake";
    case 0xaa:
    case 0xac: return "Meteor Lake";
    default: return "";
  }
}

void look(Machine& m) {
  const Registers name = cpuid(0), signature = cpuid(1), extended = cpuid(7);
  char vendor[13] = {};
  std::memcpy(vendor, &name.b, 4);
  std::memcpy(vendor + 4, &name.d, 4);
  std::memcpy(vendor + 8, &name.c, 4);
  m.vendor = std::strcmp(vendor, "AuthenticAMD") == 0   ? "AMD"
             : std::strcmp(vendor, "GenuineIntel") == 0 ? "Intel"
                                                        : vendor;
  m.family = static_cast<int>(signature.a >> 8 & 15);
  m.model = static_cast<int>(signature.a >> 4 & 15);
  if (m.family == 15) m.family += static_cast<int>(signature.a >> 20 & 255);
  if (m.family >= 6) m.model |= static_cast<int>(signature.a >> 16 & 15) << 4;
  m.microarchitecture = microarchitecture_of(m);
  // __builtin_cpu_supports asks the operating system too (XGETBV).
  m.features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && bit(signature.c, 29);
  m.features.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  m.features.avx512_vnni = __builtin_cpu_supports("avx512vnni");
  m.features.avx512_vbmi2 = m.features.avx512 && bit(extended.c, 6);
  m.features.avx512_bf16 = m.features.avx512 && bit(cpuid(7, 1).a, 5);
  m.features.amx_bf16 = bit(extended.d, 22);
  m.features.amx_tile = bit(extended.d, 24);
  m.features.amx_int8 = bit(extended.d, 25);
}

std::string ask_for_amx() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
  const bool cpu = machine().features.amx_tile, saved = (saved_registers() & kTiles) == kTiles;
  if (!cpu || !saved) return describe_amx(cpu, saved, 0);
  const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return describe_amx(cpu, saved, granted ? 0 : errno);
}

#else

void look(Machine& m) {
#if defined(__aarch64__)
  m.vendor = "Arm";
  m.features.neon = true;
#endif
}

std::string ask_for_amx() { return describe_amx(false, false, 0); }

#endif

// Every row: which kernels, on which machines, and its constants. The first that fits is taken. Rows that say
// "derived" follow from published or reasoned figures and were not measured on such a machine.
struct Row {
  const char* isa;
  bool (*fits)(const Machine&);
  Tuning tuning;
};

bool any(const Machine&) { return true; }
bool is(const Machine& m, const char* microarchitecture) { return m.microarchitecture == microarchitecture; }

constexpr std::int64_t kSumsBytes = 300 << 10;

const Row kRows[] = {
    // Zen follows four streams of weights. A fetch 512 bytes ahead is worth 3 to 8 %, more with 16-bit weights.
    // From five tokens on tiles are as fast as dot products.
    // Nine sums cover the latency of the multiply-add. Fourteen, which the registers would hold, measured no
    // better on a quiet machine, and their tile fills a 32 KB L1 that another hyperthread may share.
    {"avx2", [](const Machine& m) { return is(m, "Zen 3"); }, {"Zen 3, AVX2", 4, 4, 512, 512, 9, 64, 8, kSumsBytes}},
    {"avx2",
     [](const Machine& m) { return is(m, "Zen 2"); },
     {"Zen 2, AVX2 (derived)", 4, 4, 0, 512, 9, 64, 8, kSumsBytes}},
    {"avx2", any, {"AVX2 (derived)", 4, 1, 0, 0, 9, 64, 8, kSumsBytes}},
    // Intel reads one stream fastest; a tile of 32 columns and 13 vectors is 26 KB of its 48 KB L1.
    {"avx512",
     [](const Machine& m) { return m.vendor == "Intel"; },
     {"Intel, AVX-512 (derived)", 8, 1, 0, 2048, 13, 32, 8, kSumsBytes}},
    // Zen 4 does half an AVX-512 instruction a cycle and unit, with the latency of a whole one: eight sums are enough,
    // and a tile of 64 columns halves the traffic of sums, which is worth more than that it fills L1.
    {"avx512", [](const Machine& m) { return is(m, "Zen 4"); }, {"Zen 4, AVX-512", 8, 4, 0, 512, 8, 64, 8, kSumsBytes}},
    {"avx512", any, {"AVX-512 (derived)", 8, 4, 0, 0, 13, 32, 8, kSumsBytes}},
    {"avx512_vnni",
     [](const Machine& m) { return m.vendor == "Intel"; },
     {"Intel, AVX-512 VNNI (derived)", 8, 1, 0, 2048, 13, 32, 8, kSumsBytes, 12}},
    {"avx512_vnni",
     [](const Machine& m) { return is(m, "Zen 4"); },
     {"Zen 4, AVX-512 VNNI", 8, 4, 0, 512, 8, 64, 8, kSumsBytes, 12, 4, 64}},
    {"avx512_vnni", any, {"AVX-512 VNNI (derived)", 8, 4, 0, 0, 13, 32, 8, kSumsBytes, 12}},
    // One or two tokens read a weight as fast without tiles, and sum up in float32.
    {"amx", any, {"AMX (derived)", 2, 1, 0, 2048, 13, 32, 8, kSumsBytes}},
    {"neon", any, {"NEON (derived)", 4, 1, 0, 0, 20, 64, 8, kSumsBytes}},
    {"scalar", any, {"scalar", 4, 1, 0, 0, 8, 64, 8, kSumsBytes}},
};

}  // namespace

const Machine& machine() {
  static const Machine found = [] {
    Machine m;
    m.l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE);
    m.l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE);
    m.l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE);
    look(m);
    return m;
  }();
  return found;
}

std::string describe_amx(bool cpu, bool saved, int error) {
  if (!cpu) return "the CPU has no AMX";
  if (!saved) return "the operating system does not save AMX tiles";
  if (error == 0) return "";
  if (error == ENOSPC) {
    return "the system refused permission for AMX tiles (ENOSPC): a thread of this process has a signal stack that "
           "is too small to save them; start it with a larger one (sigaltstack), or ask before it is started";
  }
  return message("the system refused permission for AMX tiles: ", std::strerror(error));
}

const std::string& amx_problem() {
  static const std::string found = ask_for_amx();
  return found;
}

const Tuning& row_of(const std::string& isa, const Machine& machine) {
  for (const Row& row : kRows) {
    if (isa == row.isa && row.fits(machine)) return row.tuning;
  }
  throw InvalidArgument(message("no constants for kernels called ", isa));
}

void check_tuning(const Tuning& t) {
  const auto check = [](const char* field, std::int64_t value, bool legal, const char* rule) {
    if (!legal) throw InvalidArgument(message("tuning: ", field, " must be ", rule, ", not ", value));
  };
  check("few_tokens", t.few_tokens, t.few_tokens >= 0 && t.few_tokens <= 8, "0 to 8");
  check("streams", t.streams, t.streams == 1 || t.streams == 2 || t.streams == 4, "1, 2 or 4");
  check("prefetch_wide", t.prefetch_wide, t.prefetch_wide >= 0 && t.prefetch_wide <= 1 << 16, "0 to 65536");
  check("prefetch_narrow", t.prefetch_narrow, t.prefetch_narrow >= 0 && t.prefetch_narrow <= 1 << 16, "0 to 65536");
  check("vectors", t.vectors, t.vectors >= 1 && t.vectors <= 20, "1 to 20");
  check("tile_cols", t.tile_cols, t.tile_cols == 32 || t.tile_cols == 64, "32 or 64");
  check("tile_prefetch", t.tile_prefetch, t.tile_prefetch >= 0 && t.tile_prefetch <= 64, "0 to 64");
  check("few_halves", t.few_halves, t.few_halves >= 0 && t.few_halves <= 16, "0 to 16");
  check("pair_vectors", t.pair_vectors, t.pair_vectors >= 1 && t.pair_vectors <= 10, "1 to 10");
  check("pair_cols", t.pair_cols, t.pair_cols == 32 || t.pair_cols == 64, "32 or 64");
  check("packed_bytes", t.packed_bytes, t.packed_bytes >= 1024 && t.packed_bytes <= 1 << 28, "1 KB to 256 MB");
  check("stream_bytes", t.stream_bytes, t.stream_bytes >= 0, "0 or more");
  check("sums_bytes", t.sums_bytes, t.sums_bytes >= 4096 && t.sums_bytes <= 1 << 28, "4 KB to 256 MB");
}

}  // namespace sparse24::cpu
