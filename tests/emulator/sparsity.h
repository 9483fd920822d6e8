// Pruning and the compressed form, on plain memory. Elements of a matrix are reached by the View of its product.
#pragma once

#include <vector>

#include "rules.h"

namespace emulator {

// One batch: out of place or in place. Writes +0 over what it drops and nothing outside the matrix.
void prune_strip(const Matrix& matrix, const View& view, const void* in, void* out);
void prune_tile(const Matrix& matrix, const void* in, void* out);
bool is_pruned(const Matrix& matrix, const View& view, const void* in);

// What a compressed copy belongs to besides its data. From kLayoutRows rows on the metadata is laid out for one
// algorithm (measured: the layout switches there; pytorch issue 155333: the results of another one are wrong).
constexpr std::int64_t kLayoutRows = 256;
struct BlobKind {
  std::uint32_t mark;  // hidden in the metadata, one bit a group
  std::int64_t shift;  // rows by which the metadata is turned
};
BlobKind blob_kind(const Matrix& matrix, const View& view, bool is_a, int sm, int config_id);

// One copy. Returns false when a group held more non-zeros than it keeps, which are dropped.
bool compress_copy(const Matrix& matrix, const View& view, const BlobKind& kind, const void* dense, void* blob,
                   std::size_t copy_bytes);

// The operand by rows along its non-K extent: `per_row` kept columns and values each.
struct KeptRows {
  std::int64_t per_row = 0;
  std::vector<std::int32_t> columns;
  std::vector<float> values;
};
// Returns false when the blob was made for another kind, or is none; the rows are then wrong numbers.
bool decode_copy(const Matrix& matrix, const View& view, const BlobKind& kind, const void* blob, KeptRows& rows);

// The configuration that a blob was compressed for, or -1.
int blob_config(const Matrix& matrix, const View& view, bool is_a, int sm, int configs, const void* blob);

}  // namespace emulator
