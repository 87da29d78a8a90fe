/* pth.h: the tensors of a file written by torch.save(). */
#ifndef WAN_WEIGHTS_PTH_H
#define WAN_WEIGHTS_PTH_H

#include "core/ctx.h"
#include "core/tensor.h"

typedef struct pth pth;

/* A state dict, bare or as {"state_dict": ...}. Tensors point into the mapped file (possibly unaligned
 * for their dtype); two names may share their data. Nothing in the file is executed. */
wan_status pth_open(core_ctx *ctx, const char *path, pth **out);
void pth_close(pth *p);
int64_t pth_count(const pth *p);
const char *pth_name(const pth *p, int64_t i);
tensor pth_tensor(const pth *p, int64_t i);

/* Does the file begin like something that torch.save() writes, in this format or the one before 1.6? */
bool pth_probe(const char *path);

#endif
