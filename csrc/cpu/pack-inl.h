// Canonical values and indices to panels. Included once per instruction set, inside its namespace.
//
// Panels [padded/64][rows/kLanes] of blocks; a block holds kLanes rows of 64 columns:
//     values   [8 quads][kLanes positions][4]   fp32; position of row r: row_position(r)
//     metadata [2 words][kLanes rows]           a word: 16 kept values, 2 bits each
// Rows and columns beyond the weight are zero weights at column 0 of their group.

static void pack_panels(const void* values, const std::uint8_t* indices, DType dtype, std::int64_t rows,
                        std::int64_t padded, void* panels) {
  const std::int64_t row_blocks = (rows + kLanes - 1) / kLanes;
  auto* block = static_cast<std::byte*>(panels);
  for (std::int64_t k = 0; k < padded; k += kBlockCols) {
    const std::int64_t quads = padded - k < kBlockCols ? (padded - k) / 8 : kBlockQuads;
    for (std::int64_t top = 0; top < row_blocks * kLanes; top += kLanes, block += kBlockBytes) {
      std::memset(block, 0, static_cast<std::size_t>(kBlockBytes));
      auto* out = reinterpret_cast<float*>(block);
      auto* words = reinterpret_cast<std::uint8_t*>(block + kLanes * kBlockKept * 4);
      for (std::int64_t row = 0; row < kLanes && top + row < rows; ++row) {
        const std::int64_t kept = ((top + row) * padded + k) / 2;
        for (std::int64_t q = 0; q < quads; ++q) {
          for (int i = 0; i < 4; ++i) {
            out[(q * kLanes + row_position(row)) * 4 + i] = to_float(values, dtype, kept + 4 * q + i);
          }
          words[(q / 4 * kLanes + row) * 4 + q % 4] = indices[kept / 4 + q];
        }
      }
    }
  }
}
