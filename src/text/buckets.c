/* buckets.c: half of the buckets for each direction; distances below 8 have one each, then they grow
 * logarithmically up to distance 128: 8 + trunc(ln(n/8) / ln(128/8) * 8), at most 15. The formula is
 * tabulated as the first distance of each bucket, so that no rounding of the logarithm can move one:
 * ceil(8 * 16^(k/8)). */
#include "text/buckets.h"

int bucket_of(int rel) {
  static const int first[8] = {8, 12, 16, 23, 32, 46, 64, 91}; /* of buckets 8..15 */
  int n = rel < 0 ? -rel : rel, base = rel > 0 ? BUCKETS / 2 : 0;
  if (n < first[0]) return base + n;
  int k = 7;
  while (n < first[k]) k--;
  return base + 8 + k;
}
