// What kind of CPU this is, and the constants that its kernels take: one row a class of machine.
#pragma once

#include <cstdint>
#include <string>

namespace sparse24::cpu {

// Instruction sets that the CPU has and the operating system lets a process use.
struct Features {
  bool avx2 = false;    // with FMA and F16C
  bool avx512 = false;  // F, BW, VL, DQ
  bool avx512_bf16 = false, avx512_vnni = false, avx512_vbmi2 = false;
  bool amx_tile = false, amx_bf16 = false, amx_int8 = false;  // of the CPU alone: amx_problem() says the rest
  bool neon = false;
};

struct Machine {
  std::string vendor;                                     // "AMD", "Intel", or what the CPU says
  int family = 0, model = 0;                              // as CPUID counts them, extended fields added
  std::string microarchitecture;                          // "Zen 3", "Sapphire Rapids", ...; empty: not known
  std::int64_t l1_bytes = 0, l2_bytes = 0, l3_bytes = 0;  // of data, as the C library reports them; 0: not known
  Features features;
};

// Looked at once, at first use.
const Machine& machine();

// Why AMX cannot be used in this process; empty: it can. The first call asks the operating system for
// permission, which cannot be given back: only what wants tiles, or the doctor, should call it.
const std::string& amx_problem();

// The text of amx_problem() for a CPU that has tiles or not, a system that saves them or not, and the error
// number of the request (0: granted).
std::string describe_amx(bool cpu, bool saved, int error);

// Constants of the products. Whatever they are, results are the same bits.
struct Tuning {
  const char* row;          // the class of machine that they were measured on, or derived for
  int few_tokens;           // up to this many tokens: dot products along the rows of the weight
  int streams;              // rows that are read side by side there, with one token: 1, 2 or 4
  int prefetch_wide;        // bytes ahead on each of these rows, weights of 32 bits; 0: the hardware does it
  int prefetch_narrow;      // the same, weights of 16 bits
  int vectors;              // more tokens: vectors of them in a tile, at most
  int tile_cols;            // columns of the weight in a tile: 32 or 64
  int tile_prefetch;        // rows ahead whose weights are fetched
  std::int64_t sums_bytes;  // of L2 for the sums of a run of rows
  int few_halves = 8;       // bf16 by bf16: the same as few_tokens, where pairs of it are multiplied
  int pair_vectors = 8;     // vectors of tokens in a tile of pairs, at most
  int pair_cols = 32;       // and its columns: 32 or 64
  // Products by tiles:
  std::int64_t packed_bytes = 1 << 20;  // of L2 for packed activations
  std::int64_t stream_bytes = 2 << 20;  // outputs that are larger go past the caches
};

// The row of the kernels of an instruction set ("avx2", ...) on a machine.
const Tuning& row_of(const std::string& isa, const Machine& machine);

// Throws InvalidArgument that names the field that is out of range.
void check_tuning(const Tuning& tuning);

// What the products take here: the row of the chosen kernels on this machine, or what override_tuning set
// (null: the row again). Not to be overridden while a product runs. (dispatch.cpp)
const Tuning& tuning();
void override_tuning(const Tuning* tuning);

}  // namespace sparse24::cpu
