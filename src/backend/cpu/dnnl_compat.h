/* dnnl_compat.h: the one place that knows two versions of oneDNN's C API. 2.x describes memory by a
 * plain struct and creates a primitive descriptor from an operation descriptor; 3.x has opaque memory
 * descriptors and one creating function per operation. */
#ifndef WAN_CPU_DNNL_COMPAT_H
#define WAN_CPU_DNNL_COMPAT_H

#include <dnnl.h>
#include <dnnl_version.h>
#include <string.h>

/* cpu_md owns what it holds; cpu_md_in is how the library takes one as an argument. */
typedef dnnl_memory_desc_t cpu_md;

#if DNNL_VERSION_MAJOR >= 3

typedef const_dnnl_memory_desc_t cpu_md_in;
static inline cpu_md_in md_in(const cpu_md *md) {
  return md ? *md : NULL;
}
static inline dnnl_status_t md_init(cpu_md *md, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                                    dnnl_format_tag_t tag) {
  return dnnl_memory_desc_create_with_tag(md, ndims, dims, type, tag);
}
static inline dnnl_status_t md_copy(cpu_md *md, cpu_md_in from) {
  return dnnl_memory_desc_clone(md, from);
}
static inline void md_free(cpu_md *md) {
  if (*md) dnnl_memory_desc_destroy(*md);
  *md = NULL;
}
static inline dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t eng, const cpu_md *src,
                                      const cpu_md *w, const cpu_md *bias, const cpu_md *dst,
                                      dnnl_primitive_attr_t attr) {
  return dnnl_matmul_primitive_desc_create(pd, eng, *src, *w, md_in(bias), *dst, attr);
}
static inline dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t eng, const cpu_md *src,
                                    const cpu_md *w, const cpu_md *bias, const cpu_md *dst,
                                    const dnnl_dims_t strides, const dnnl_dims_t pad_l,
                                    const dnnl_dims_t pad_r, dnnl_primitive_attr_t attr) {
  const dnnl_dims_t dilates = {0};
  return dnnl_convolution_forward_primitive_desc_create(pd, eng, dnnl_forward_inference,
                                                        dnnl_convolution_direct, *src, *w, md_in(bias), *dst,
                                                        strides, dilates, pad_l, pad_r, attr);
}
static inline dnnl_status_t post_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t alg) {
  return dnnl_post_ops_append_eltwise(ops, alg, 1.0f, 0.0f);
}
static inline dnnl_status_t post_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_data_type_undef);
}

#else /* 2.x */

typedef const dnnl_memory_desc_t *cpu_md_in;
static inline cpu_md_in md_in(const cpu_md *md) {
  return md;
}
static inline dnnl_status_t md_init(cpu_md *md, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                                    dnnl_format_tag_t tag) {
  return dnnl_memory_desc_init_by_tag(md, ndims, dims, type, tag);
}
static inline dnnl_status_t md_copy(cpu_md *md, cpu_md_in from) {
  *md = *from;
  return dnnl_success;
}
static inline void md_free(cpu_md *md) {
  memset(md, 0, sizeof *md);
}
static inline dnnl_status_t pd_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t eng, const cpu_md *src,
                                      const cpu_md *w, const cpu_md *bias, const cpu_md *dst,
                                      dnnl_primitive_attr_t attr) {
  dnnl_matmul_desc_t op;
  dnnl_status_t s = dnnl_matmul_desc_init(&op, src, w, bias, dst);
  return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &op, attr, eng, NULL);
}
static inline dnnl_status_t pd_conv(dnnl_primitive_desc_t *pd, dnnl_engine_t eng, const cpu_md *src,
                                    const cpu_md *w, const cpu_md *bias, const cpu_md *dst,
                                    const dnnl_dims_t strides, const dnnl_dims_t pad_l,
                                    const dnnl_dims_t pad_r, dnnl_primitive_attr_t attr) {
  dnnl_convolution_desc_t op;
  dnnl_status_t s = dnnl_convolution_forward_desc_init(&op, dnnl_forward_inference, dnnl_convolution_direct,
                                                       src, w, bias, dst, strides, pad_l, pad_r);
  return s != dnnl_success ? s : dnnl_primitive_desc_create(pd, &op, attr, eng, NULL);
}
static inline dnnl_status_t post_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t alg) {
  return dnnl_post_ops_append_eltwise(ops, 1.0f, alg, 1.0f, 0.0f);
}
static inline dnnl_status_t post_sum(dnnl_post_ops_t ops) {
  return dnnl_post_ops_append_sum(ops, 1.0f);
}

#endif

static inline cpu_md_in pd_md(const_dnnl_primitive_desc_t pd, dnnl_query_t what) {
  return dnnl_primitive_desc_query_md(pd, what, 0);
}

#endif
