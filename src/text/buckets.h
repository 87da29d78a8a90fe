/* buckets.h: relative positions to rows of T5's bias table. */
#ifndef WAN_TEXT_BUCKETS_H
#define WAN_TEXT_BUCKETS_H

enum { BUCKETS = 32 };

/* The bucket of a key `rel` positions after its query (negative: before). */
int bucket_of(int rel);

#endif
