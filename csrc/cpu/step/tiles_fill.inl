// Normals of a stream into tiles.

// Puts rows of 16 numbers, one after another, into the first `rows` rows of each tile of a block.
template <class T>
struct TileWriter {
  T* tile;
  int64_t rows, width, row = 0;

  MHICL_INLINE void write(const T* numbers, int64_t count) {
    for (const T* end = numbers + count * kTile; numbers < end; numbers += kTile) {
      std::memcpy(tile + row * kTile, numbers, kTile * sizeof(T));
      if (++row == rows) {
        row = 0;
        tile += width * kTile;
      }
    }
  }
};

// Normals of a stream from the row of 16 called first_row on.
template <class T>
void fill_tiles(const philox::Stream& stream, int64_t first_row, int64_t rows, int64_t tiles, T* out, int64_t width) {
  constexpr int64_t together = 32;  // whole groups, but for the first ones where first_row is not at the start of one
  alignas(64) T normals[together * kTile];
  const Schedule schedule(stream);
  TileWriter<T> writer{out, rows, width};
  for (int64_t next = first_row, end = first_row + rows * tiles; next < end;) {
    const int64_t skipped = next % philox::kWords, count = std::min(together - skipped, end - next);
    // To the end of a group: whole ones cost less than parts.
    const int64_t drawn = (skipped + count + philox::kWords - 1) / philox::kWords * philox::kWords - skipped;
    elements<StandardNormals<T>>(normals, drawn * kTile, schedule, next * kTile);
    writer.write(normals, count);
    next += count;
  }
}
