/* sentencepiece_shim.h: the C face of libsentencepiece, which is C++. */
#ifndef WAN_TEXT_SENTENCEPIECE_SHIM_H
#define WAN_TEXT_SENTENCEPIECE_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct sentencepiece_model sentencepiece_model;

/* NULL on failure, with the library's reason in message. data is a serialized ModelProto. */
sentencepiece_model *sentencepiece_open(const void *data, size_t size, char *message, size_t message_size);
void sentencepiece_close(sentencepiece_model *m);
/* The best segmentation of n bytes: its first `room` ids. Their number, or -1 with a message. */
int sentencepiece_encode(sentencepiece_model *m, const char *text, size_t n, int32_t *ids, int room,
                         char *message, size_t message_size);

#ifdef __cplusplus
}
#endif

#endif
