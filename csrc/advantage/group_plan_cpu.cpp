#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <utility>

#include "advantage/group_plan.h"

namespace warpup {
namespace {

constexpr int kMaxDigit = 11;  // bits: 2,048 counters of 4 bytes are a quarter of L1

// A row beside its key. Packed into 8 bytes where both fit in 32 bits: then the outputs themselves are the scratch
// space.
struct Packed {
  uint64_t bits;
  static Packed of(uint64_t key, int64_t row) { return {key << 32 | static_cast<uint64_t>(row)}; }
  uint64_t key() const { return bits >> 32; }
  int64_t row() const { return static_cast<int64_t>(bits & 0xffffffffu); }
};
struct Wide {
  uint64_t key_;
  int64_t row_;
  static Wide of(uint64_t key, int64_t row) { return {key, row}; }
  uint64_t key() const { return key_; }
  int64_t row() const { return row_; }
};
static_assert(sizeof(Packed) == sizeof(int64_t));

template <class Id>
uint64_t key_of(Id id, Id min) {
  return static_cast<uint64_t>(id) - static_cast<uint64_t>(min);  // unsigned: the difference may exceed int64
}

// Sorts `from` (filled in here), using `to`; returns the one of the two that ends up sorted.
template <class Entry, class Id>
Entry* sort(const GroupPlanArgs<Id>& args, Id min, int bits, Entry* from, Entry* to) {
  const int digits = (bits + kMaxDigit - 1) / kMaxDigit, width = (bits + digits - 1) / digits;
  const uint64_t mask = (uint64_t{1} << width) - 1;
  const auto counts = std::make_unique<int64_t[]>(static_cast<size_t>(digits) << width);
  for (int64_t i = 0; i < args.rows; ++i) {
    uint64_t key = key_of(args.ids[i], min);
    from[i] = Entry::of(key, i);
    for (int d = 0; d < digits; ++d, key >>= width) ++counts[(static_cast<size_t>(d) << width) + (key & mask)];
  }
  for (int d = 0; d < digits; ++d) {
    const int shift = d * width;
    int64_t* at = counts.get() + (static_cast<size_t>(d) << width);
    if (at[from[0].key() >> shift & mask] == args.rows) continue;
    int64_t sum = 0;
    for (uint64_t b = 0; b <= mask; ++b) sum += std::exchange(at[b], sum);
    for (int64_t i = 0; i < args.rows; ++i) {
      const Entry entry = from[i];
      to[at[entry.key() >> shift & mask]++] = entry;
    }
    std::swap(from, to);
  }
  return from;
}

// Writes order and offsets. `sorted` may lie in either: entry i is read before anything at or after i is written.
template <class Entry, class Id>
void emit(const GroupPlanArgs<Id>& args, const Entry* sorted) {
  int64_t groups = 0;
  uint64_t former = 0;
  for (int64_t i = 0; i < args.rows; ++i) {
    const uint64_t key = sorted[i].key();
    const int64_t row = sorted[i].row();
    if (i == 0 || key != former) args.offsets[groups++] = i;
    former = key;
    args.order[i] = row;
  }
  std::fill(args.offsets + groups, args.offsets + args.rows + 1, args.rows);
}

}  // namespace

template <class Id>
void group_plan_cpu(const GroupPlanArgs<Id>& args) {
  const int64_t n = args.rows;
  const Id* ids = args.ids;
  Id min = n > 0 ? ids[0] : 0, max = min;
  bool ascending = true;
  for (int64_t i = 1; i < n; ++i) {
    ascending &= ids[i - 1] <= ids[i];
    min = std::min(min, ids[i]);
    max = std::max(max, ids[i]);
  }
  if (ascending) {
    int64_t groups = 0;
    for (int64_t i = 0; i < n; ++i) {
      args.order[i] = i;
      if (i == 0 || ids[i] != ids[i - 1]) args.offsets[groups++] = i;
    }
    std::fill(args.offsets + groups, args.offsets + n + 1, n);
    return;
  }
  const int bits = std::bit_width(key_of(max, min));
  if (bits <= 32 && n <= int64_t{1} << 32) {
    auto* first = reinterpret_cast<Packed*>(args.order);
    emit(args, sort(args, min, bits, first, reinterpret_cast<Packed*>(args.offsets)));
  } else {
    const std::unique_ptr<Wide[]> scratch(new Wide[2 * n]);
    emit(args, sort(args, min, bits, scratch.get(), scratch.get() + n));
  }
}

template void group_plan_cpu<int64_t>(const GroupPlanArgs<int64_t>& args);
template void group_plan_cpu<int32_t>(const GroupPlanArgs<int32_t>& args);

}  // namespace warpup
