#include "sparsity.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "numbers.h"

namespace emulator {

namespace {

// Two of four are kept, one of two for 32-bit values.
std::int64_t group_size(const Matrix& matrix) { return bits(matrix.type) == 32 ? 2 : 4; }

const unsigned char* element(const void* data, const Matrix& matrix, std::int64_t offset) {
  return static_cast<const unsigned char*>(data) + bytes(matrix.type, offset);
}
unsigned char* element(void* data, const Matrix& matrix, std::int64_t offset) {
  return static_cast<unsigned char*>(data) + bytes(matrix.type, offset);
}

// assumed: NaN is kept before anything else, so that it is never pruned silently.
float magnitude(const void* data, const Matrix& matrix, std::int64_t offset) {
  const float value = load(element(data, matrix, offset), matrix.type);
  return std::isnan(value) ? INFINITY : std::fabs(value);
}

// measured: kept elements are copied bit for bit, the others become +0.
void keep_or_zero(const Matrix& matrix, const void* in, void* out, std::int64_t offset, bool keep) {
  const std::size_t size = bytes(matrix.type, 1);
  if (!keep) {
    std::memset(element(out, matrix, offset), 0, size);
  } else if (in != out) {
    std::memcpy(element(out, matrix, offset), element(in, matrix, offset), size);
  }
}

bool nonzero(const void* data, const Matrix& matrix, std::int64_t offset) {
  return load(element(data, matrix, offset), matrix.type) != 0;  // true for NaN
}

// The 4x4 patterns with two kept in every row and column, bit 4 * row + column, in the order of their preference
// among equal sums.
//
// measured (by others, on sm_86; the rule is our fit, which names the same winner in each of 26,667 sets of tied
// patterns): first come those whose rows 0 and 1 complete each other, then those where they are equal, then the
// rest. Within these, low columns in row 0 and in row 2 (row 1, except in the first kind) come first.
std::vector<unsigned> tile_patterns() {
  constexpr unsigned kRows[] = {0b0011, 0b0101, 0b0110, 0b1001, 0b1010, 0b1100};
  const auto columns = [](unsigned row) {
    return static_cast<int>((row >> 1 & 1) + (row >> 2 & 1) * 2 + (row >> 3 & 1) * 3);
  };
  std::vector<std::pair<std::array<int, 6>, unsigned>> ordered;
  for (unsigned r0 : kRows) {
    for (unsigned r1 : kRows) {
      for (unsigned r2 : kRows) {
        // The last row is what the columns still lack, if they lack at most one each.
        const unsigned r3 = r0 ^ r1 ^ r2, all = r0 & r1 & r2, any = r0 | r1 | r2 | r3;
        if (all || any != 0b1111 || std::popcount(r3) != 2) continue;
        const bool complete = (r0 ^ r1) == 0b1111;
        const unsigned other = complete ? r2 : r1;
        const std::array<int, 6> key = {
            complete ? 0 : r0 == r1 ? 1 : 2, columns(r0) + columns(other), columns(other),
            static_cast<int>(other),         static_cast<int>(r0),         -static_cast<int>(r2)};
        ordered.emplace_back(key, r0 | r1 << 4 | r2 << 8 | r3 << 12);
      }
    }
  }
  std::sort(ordered.begin(), ordered.end());
  std::vector<unsigned> patterns;
  for (const auto& [key, pattern] : ordered) patterns.push_back(pattern);
  return patterns;
}

// measured: the largest sum of magnitudes; 2x2: the diagonal only if strictly larger.
unsigned best_tile(const std::array<float, 16>& magnitudes, std::int64_t side) {
  if (side == 2) return magnitudes[0] + magnitudes[3] > magnitudes[1] + magnitudes[2] ? 0b1001 : 0b0110;
  static const std::vector<unsigned> patterns = tile_patterns();
  unsigned best = 0;
  double best_sum = -1;
  for (unsigned pattern : patterns) {
    double sum = 0;
    for (int cell = 0; cell < 16; ++cell) sum += pattern >> cell & 1 ? magnitudes[static_cast<std::size_t>(cell)] : 0;
    if (sum > best_sum) {
      best = pattern;
      best_sum = sum;
    }
  }
  return best;
}

// The two slots of a group that are kept. measured: fewer than two non-zeros are padded from the right.
struct Slots {
  std::int64_t low, high;
  bool dropped;
};
Slots kept_slots(const void* dense, const Matrix& matrix, const std::int64_t (&offsets)[4]) {
  std::int64_t found[4];
  int count = 0;
  for (std::int64_t slot = 0; slot < 4; ++slot) {
    if (nonzero(dense, matrix, offsets[slot])) found[count++] = slot;
  }
  if (count >= 2) return {found[0], found[1], count > 2};
  if (count == 1) return {found[0] == 3 ? 2 : found[0], 3, false};
  return {2, 3, false};
}

// ---- the metadata: 4 bits a group, the two slots kept, low bits first ----
// The low two bits hold one slot and the high two the other. Which of them comes first carries one bit of the
// blob's mark, so that a blob says what it was made for without being any larger.

std::uint32_t mixed(std::uint32_t hash, std::uint64_t value) {
  hash ^= static_cast<std::uint32_t>(value ^ value >> 32);
  hash *= 0x9e3779b1u;
  return hash ^ hash >> 15;
}

bool mark_bit(const BlobKind& kind, std::int64_t group) { return kind.mark >> (group % 32) & 1; }

// Where the code of a group lies, in half bytes.
struct CodePlace {
  std::size_t byte;
  int shift;
};
CodePlace code_place(const View& view, const BlobKind& kind, std::int64_t groups, std::int64_t row,
                     std::int64_t group) {
  const auto index = static_cast<std::size_t>((row + kind.shift) % view.extent * groups + group);
  return {index / 2, static_cast<int>(index % 2 * 4)};
}

void set_code(unsigned char* metadata, CodePlace place, unsigned code) {
  metadata[place.byte] =
      static_cast<unsigned char>((metadata[place.byte] & ~(15u << place.shift)) | code << place.shift);
}

// measured: the kept values lie as the dense ones did, K contiguous or not.
std::int64_t value_offset(const View& view, std::int64_t row, std::int64_t column) {
  return view.k_contiguous() ? row * (view.k / 2) + column : column * view.extent + row;
}

}  // namespace

void prune_strip(const Matrix& matrix, const View& view, const void* in, void* out) {
  const std::int64_t size = group_size(matrix);
  for (std::int64_t row = 0; row < view.extent; ++row) {
    for (std::int64_t first = 0; first < view.k; first += size) {
      std::int64_t offsets[4];
      float magnitudes[4];
      for (std::int64_t i = 0; i < size; ++i) {
        offsets[i] = row * view.extent_stride + (first + i) * view.k_stride;
        magnitudes[i] = magnitude(in, matrix, offsets[i]);
      }
      for (std::int64_t i = 0; i < size; ++i) {
        // measured: a tie goes to the lower index.
        std::int64_t larger = 0;
        for (std::int64_t j = 0; j < size; ++j) {
          larger += magnitudes[j] > magnitudes[i] || (magnitudes[j] == magnitudes[i] && j < i);
        }
        keep_or_zero(matrix, in, out, offsets[i], larger < size / 2);
      }
    }
  }
}

void prune_tile(const Matrix& matrix, const void* in, void* out) {
  const std::int64_t side = group_size(matrix);
  for (std::int64_t line = 0; line < matrix.lines(); line += side) {
    for (std::int64_t first = 0; first < matrix.line_length(); first += side) {
      const auto offset = [&](std::int64_t cell) { return (line + cell / side) * matrix.ld + first + cell % side; };
      std::array<float, 16> magnitudes{};
      for (std::int64_t cell = 0; cell < side * side; ++cell) {
        magnitudes[static_cast<std::size_t>(cell)] = magnitude(in, matrix, offset(cell));
      }
      const unsigned pattern = best_tile(magnitudes, side);
      for (std::int64_t cell = 0; cell < side * side; ++cell) {
        keep_or_zero(matrix, in, out, offset(cell), pattern >> cell & 1);
      }
    }
  }
}

bool is_pruned(const Matrix& matrix, const View& view, const void* in) {
  const std::int64_t size = group_size(matrix);
  for (std::int64_t row = 0; row < view.extent; ++row) {
    for (std::int64_t first = 0; first < view.k; first += size) {
      std::int64_t count = 0;
      for (std::int64_t i = 0; i < size; ++i) {
        count += nonzero(in, matrix, row * view.extent_stride + (first + i) * view.k_stride);
      }
      if (count > size / 2) return false;
    }
  }
  return true;
}

BlobKind blob_kind(const Matrix& matrix, const View& view, bool is_a, int sm, int config_id) {
  const std::int64_t layout = view.extent >= kLayoutRows ? config_id : 0;
  std::uint32_t mark = 24;
  for (std::int64_t value :
       {view.extent, view.k, static_cast<std::int64_t>(matrix.type), static_cast<std::int64_t>(is_a),
        static_cast<std::int64_t>(view.k_contiguous()), static_cast<std::int64_t>(sm), layout}) {
    mark = mixed(mark, static_cast<std::uint64_t>(value));
  }
  return {mark, (layout + sm) % view.extent};
}

bool compress_copy(const Matrix& matrix, const View& view, const BlobKind& kind, const void* dense, void* blob,
                   std::size_t copy_bytes) {
  auto* values = static_cast<unsigned char*>(blob);
  auto* metadata = values + values_bytes(matrix);
  const std::size_t metadata_size = copy_bytes - values_bytes(matrix), value_size = bytes(matrix.type, 1);
  std::memset(metadata, 0xee, metadata_size);
  const bool pairs = group_size(matrix) == 2;
  const std::int64_t groups = view.k / group_size(matrix);
  bool nothing_dropped = true;
  for (std::int64_t row = 0; row < view.extent; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const auto offset = [&](std::int64_t k) { return row * view.extent_stride + k * view.k_stride; };
      unsigned low, high;
      if (pairs) {
        const bool first = nonzero(dense, matrix, offset(2 * group));
        const std::int64_t kept = offset(2 * group + (first ? 0 : 1));
        nothing_dropped = nothing_dropped && !(first && nonzero(dense, matrix, offset(2 * group + 1)));
        write(element(blob, matrix, value_offset(view, row, group)),
              tf32_half_up(read<std::uint32_t>(element(dense, matrix, kept))));
        low = first ? 0 : 2;
        high = low + 1;
      } else {
        const std::int64_t offsets[4] = {offset(4 * group), offset(4 * group + 1), offset(4 * group + 2),
                                         offset(4 * group + 3)};
        const Slots slots = kept_slots(dense, matrix, offsets);
        nothing_dropped = nothing_dropped && !slots.dropped;
        std::memcpy(element(blob, matrix, value_offset(view, row, 2 * group)),
                    element(dense, matrix, offsets[slots.low]), value_size);
        std::memcpy(element(blob, matrix, value_offset(view, row, 2 * group + 1)),
                    element(dense, matrix, offsets[slots.high]), value_size);
        low = static_cast<unsigned>(slots.low);
        high = static_cast<unsigned>(slots.high);
      }
      set_code(metadata, code_place(view, kind, groups, row, group),
               mark_bit(kind, group) ? high | low << 2 : low | high << 2);
    }
  }
  return nothing_dropped;
}

bool decode_copy(const Matrix& matrix, const View& view, const BlobKind& kind, const void* blob, KeptRows& rows) {
  const auto* metadata = static_cast<const unsigned char*>(blob) + values_bytes(matrix);
  const std::int64_t size = group_size(matrix), groups = view.k / size;
  rows.per_row = view.k / 2;
  rows.columns.resize(static_cast<std::size_t>(view.extent * rows.per_row));
  rows.values.resize(rows.columns.size());
  bool matching = true;
  const auto value = [&](std::int64_t row, std::int64_t column) {
    const unsigned char* at = element(blob, matrix, value_offset(view, row, column));
    return matrix.type == kReal32F ? tf32_truncate(read<std::uint32_t>(at)) : load(at, matrix.type);
  };
  for (std::int64_t row = 0; row < view.extent; ++row) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const CodePlace place = code_place(view, kind, groups, row, group);
      const unsigned code = metadata[place.byte] >> place.shift & 15, first = code & 3, second = code >> 2;
      const auto [low, high] = std::minmax(first, second);
      matching = matching && first != second && (first > second) == mark_bit(kind, group);
      if (size == 2) {
        const auto at = static_cast<std::size_t>(row * rows.per_row + group);
        rows.columns[at] = static_cast<std::int32_t>(2 * group + (low >= 2 ? 1 : 0));
        rows.values[at] = value(row, group);
      } else {
        const auto at = static_cast<std::size_t>(row * rows.per_row + 2 * group);
        rows.columns[at] = static_cast<std::int32_t>(4 * group + low);
        rows.columns[at + 1] = static_cast<std::int32_t>(4 * group + high);
        rows.values[at] = value(row, 2 * group);
        rows.values[at + 1] = value(row, 2 * group + 1);
      }
    }
  }
  return matching;
}

int blob_config(const Matrix& matrix, const View& view, bool is_a, int sm, int configs, const void* blob) {
  KeptRows rows;
  for (int config = 0; config < configs; ++config) {
    if (decode_copy(matrix, view, blob_kind(matrix, view, is_a, sm, config), blob, rows)) return config;
  }
  return -1;
}

}  // namespace emulator
