/* prims.c: see prims.h. The cache is a small array searched in order; the least recently used entry
 * makes room. A primitive's memory objects are made once and pointed at new data for each run. */
#include "backend/cpu/prims.h"
#include "backend/cpu/dnnl_compat.h"

#include <omp.h>

/* A denoising step uses about 10 shapes, a VAE pass about 60. */
enum { CACHE_MAX = 96 };

typedef struct prim_key {
  conv_geometry g; /* matmul: M, N, K lie in T, Co, Ci */
  int64_t is_conv, act, has_bias, add_dst, packed;
} prim_key;

typedef struct prim {
  prim_key key;
  uint64_t used;
  dnnl_primitive_t primitive;
  dnnl_memory_t src, w, bias, dst, scratch;
  cpu_md w_md;
  size_t scratch_bytes;
} prim;

struct prims {
  core_ctx *ctx;
  int threads;
  dnnl_engine_t engine;
  dnnl_stream_t stream;
  uint64_t clock;
  int count;
  prim entry[CACHE_MAX];
  void *scratch;
  size_t scratch_bytes;
};

struct packed {
  cpu_md md;
  void *data;
};

static wan_status library_failed(core_ctx *ctx, const char *what, dnnl_status_t s) {
  return core_fail(ctx, s == dnnl_out_of_memory ? WAN_ERR_MEMORY : WAN_ERR_BACKEND,
                   "oneDNN could not %s (status %d)", what, (int)s);
}

/* The library asks OpenMP for its thread count; each backend has its own. */
static int threads_enter(const prims *p) {
  int before = omp_get_max_threads();
  omp_set_num_threads(p->threads);
  return before;
}

static void threads_leave(int before) {
  omp_set_num_threads(before);
}

#if defined(__x86_64__)
static bool may_use(int isa) {
  return ((int)dnnl_get_effective_cpu_isa() & isa) == isa;
}

bool prims_native_bf16(void) {
  return may_use(dnnl_cpu_isa_avx512_core_bf16);
}

bool prims_native_amx(void) {
  return may_use(dnnl_cpu_isa_avx512_core_amx);
}
#else
bool prims_native_bf16(void) {
  return false;
}

bool prims_native_amx(void) {
  return false;
}
#endif

wan_status prims_open(core_ctx *ctx, int threads, prims **out) {
  prims *p = core_calloc(ctx, 1, sizeof *p);
  if (!p) return WAN_ERR_MEMORY;
  p->ctx = ctx;
  p->threads = threads;
  dnnl_status_t s = dnnl_engine_create(&p->engine, dnnl_cpu, 0);
  if (s == dnnl_success) s = dnnl_stream_create(&p->stream, p->engine, dnnl_stream_default_flags);
  if (s != dnnl_success) {
    prims_close(p);
    return library_failed(ctx, "start on this processor", s);
  }
  *out = p;
  return WAN_OK;
}

static void prim_free(prim *e) {
  dnnl_memory_t memories[] = {e->src, e->w, e->bias, e->dst, e->scratch};
  for (size_t i = 0; i < sizeof memories / sizeof memories[0]; i++)
    if (memories[i]) dnnl_memory_destroy(memories[i]);
  if (e->primitive) dnnl_primitive_destroy(e->primitive);
  md_free(&e->w_md);
  memset(e, 0, sizeof *e);
}

void prims_close(prims *p) {
  if (!p) return;
  for (int i = 0; i < p->count; i++) prim_free(&p->entry[i]);
  if (p->stream) dnnl_stream_destroy(p->stream);
  if (p->engine) dnnl_engine_destroy(p->engine);
  core_free(p->ctx, p->scratch);
  core_free(p->ctx, p);
}

/* ---- Making a primitive ---- */

static dnnl_data_type_t dnnl_type(dtype t) {
  return t == DT_BF16 ? dnnl_bf16 : dnnl_f32;
}

static dnnl_status_t make_attr(const prim_key *k, dnnl_primitive_attr_t *attr) {
  dnnl_post_ops_t ops = NULL;
  dnnl_status_t s = dnnl_primitive_attr_create(attr);
  if (s == dnnl_success) s = dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user);
  if (s == dnnl_success) s = dnnl_post_ops_create(&ops);
  if (s == dnnl_success && k->add_dst) s = post_sum(ops);
  if (s == dnnl_success && k->act != ACT_NONE)
    s = post_eltwise(ops, k->act == ACT_SILU ? dnnl_eltwise_swish : dnnl_eltwise_gelu_tanh);
  if (s == dnnl_success) s = dnnl_primitive_attr_set_post_ops(*attr, ops);
  if (ops) dnnl_post_ops_destroy(ops);
  return s;
}

typedef struct prim_mds {
  cpu_md src, w, bias, dst;
} prim_mds;

static void mds_free(prim_mds *m) {
  md_free(&m->src);
  md_free(&m->w);
  md_free(&m->bias);
  md_free(&m->dst);
}

/* packed_md: the layout of packed weights, NULL for plain ones or, when the key asks for packed ones, to let
 * the library choose. */
static dnnl_status_t matmul_mds(const prim_key *k, const cpu_md *packed_md, prim_mds *m) {
  const dnnl_dims_t src = {k->g.T, k->g.Ci}, w = {k->g.Ci, k->g.Co}, bias = {1, k->g.Co},
                    dst = {k->g.T, k->g.Co};
  dnnl_status_t s = md_init(&m->src, 2, src, dnnl_type(k->g.type), dnnl_ab);
  if (s == dnnl_success && packed_md)
    s = md_copy(&m->w, md_in(packed_md));
  else if (s == dnnl_success)
    s = md_init(&m->w, 2, w, dnnl_type(k->g.type), k->packed ? dnnl_format_tag_any : dnnl_ba);
  if (s == dnnl_success && k->has_bias) s = md_init(&m->bias, 2, bias, dnnl_f32, dnnl_ab);
  if (s == dnnl_success) s = md_init(&m->dst, 2, dst, dnnl_type(k->g.dst_type), dnnl_ab);
  return s;
}

/* Kernels one frame deep see the frames as a batch of pictures (and have stride_t 1, prims.h). */
static bool is_flat(const conv_geometry *g) {
  return g->kt == 1;
}

static dnnl_status_t conv_mds(const prim_key *k, prim_mds *m) {
  const conv_geometry *g = &k->g;
  dnnl_data_type_t type = dnnl_type(g->type);
  const dnnl_dims_t bias = {g->Co};
  dnnl_status_t s;
  if (is_flat(g)) {
    const dnnl_dims_t src = {g->T, g->Ci, g->H, g->W}, w = {g->Co, g->Ci, g->kh, g->kw},
                      dst = {g->To, g->Co, g->Ho, g->Wo};
    s = md_init(&m->src, 4, src, type, dnnl_nhwc);
    if (s == dnnl_success) s = md_init(&m->w, 4, w, type, dnnl_format_tag_any);
    if (s == dnnl_success) s = md_init(&m->dst, 4, dst, dnnl_type(g->dst_type), dnnl_nhwc);
  } else {
    const dnnl_dims_t src = {1, g->Ci, g->T, g->H, g->W}, w = {g->Co, g->Ci, g->kt, g->kh, g->kw},
                      dst = {1, g->Co, g->To, g->Ho, g->Wo};
    s = md_init(&m->src, 5, src, type, dnnl_ndhwc);
    if (s == dnnl_success) s = md_init(&m->w, 5, w, type, dnnl_format_tag_any);
    if (s == dnnl_success) s = md_init(&m->dst, 5, dst, dnnl_type(g->dst_type), dnnl_ndhwc);
  }
  if (s == dnnl_success && k->has_bias) s = md_init(&m->bias, 1, bias, dnnl_f32, dnnl_a);
  return s;
}

static dnnl_status_t make_pd(prims *p, const prim_key *k, const cpu_md *w_md, prim_mds *m,
                             dnnl_primitive_desc_t *pd) {
  dnnl_primitive_attr_t attr = NULL;
  dnnl_status_t s = k->is_conv ? conv_mds(k, m) : matmul_mds(k, w_md, m);
  if (s == dnnl_success) s = make_attr(k, &attr);
  const cpu_md *bias = k->has_bias ? &m->bias : NULL;
  if (s == dnnl_success && k->is_conv) {
    const conv_geometry *g = &k->g;
    int skip = is_flat(g) ? 1 : 0; /* flat kernels have no time in their geometry */
    const int64_t stride[] = {g->stride_t, g->stride_h, g->stride_w}, left[] = {0, g->pad_top, g->pad_left},
                  right[] = {0, g->pad_bottom, g->pad_right};
    dnnl_dims_t sd = {0}, ld = {0}, rd = {0};
    for (int i = skip; i < 3; i++) {
      sd[i - skip] = stride[i];
      ld[i - skip] = left[i];
      rd[i - skip] = right[i];
    }
    s = pd_conv(pd, p->engine, &m->src, &m->w, bias, &m->dst, sd, ld, rd, attr);
  } else if (s == dnnl_success) {
    s = pd_matmul(pd, p->engine, &m->src, &m->w, bias, &m->dst, attr);
  }
  if (attr) dnnl_primitive_attr_destroy(attr);
  return s;
}

static dnnl_status_t make_memory(prims *p, dnnl_memory_t *mem, cpu_md_in md) {
  return dnnl_memory_create(mem, md, p->engine, DNNL_MEMORY_NONE);
}

static dnnl_status_t prim_make(prims *p, const prim_key *k, const cpu_md *w_md, prim *e) {
  prim_mds m;
  memset(&m, 0, sizeof m);
  dnnl_primitive_desc_t pd = NULL;
  const char *name = "";
  dnnl_status_t s = make_pd(p, k, w_md, &m, &pd);
  if (s == dnnl_success) s = dnnl_primitive_create(&e->primitive, pd);
  if (s == dnnl_success) s = md_copy(&e->w_md, pd_md(pd, dnnl_query_weights_md));
  if (s == dnnl_success) s = make_memory(p, &e->src, md_in(&m.src));
  if (s == dnnl_success) s = make_memory(p, &e->w, md_in(&e->w_md));
  if (s == dnnl_success && k->has_bias) s = make_memory(p, &e->bias, md_in(&m.bias));
  if (s == dnnl_success) s = make_memory(p, &e->dst, md_in(&m.dst));
  if (s == dnnl_success) s = make_memory(p, &e->scratch, pd_md(pd, dnnl_query_scratchpad_md));
  if (s == dnnl_success) {
    e->scratch_bytes = dnnl_memory_desc_get_size(pd_md(pd, dnnl_query_scratchpad_md));
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name);
    core_log(p->ctx, WAN_LOG_DEBUG,
             "cpu: %s %lld x %lld x %lld x %lld -> %lld, kernel %lld %lld %lld: %s, scratch %zu bytes",
             k->is_conv ? "conv" : "matmul", (long long)k->g.T, (long long)k->g.H, (long long)k->g.W,
             (long long)k->g.Ci, (long long)k->g.Co, (long long)k->g.kt, (long long)k->g.kh,
             (long long)k->g.kw, name, e->scratch_bytes);
  }
  if (pd) dnnl_primitive_desc_destroy(pd);
  mds_free(&m);
  if (s != dnnl_success) prim_free(e);
  e->key = *k;
  return s;
}

/* ---- The cache ---- */

static wan_status prim_get(prims *p, const prim_key *k, const cpu_md *w_md, prim **out) {
  int oldest = 0;
  for (int i = 0; i < p->count; i++) {
    if (memcmp(&p->entry[i].key, k, sizeof *k) == 0) {
      p->entry[i].used = ++p->clock;
      *out = &p->entry[i];
      return WAN_OK;
    }
    if (p->entry[i].used < p->entry[oldest].used) oldest = i;
  }
  int at = p->count < CACHE_MAX ? p->count : oldest;
  if (at < p->count) prim_free(&p->entry[at]);
  dnnl_status_t s = prim_make(p, k, w_md, &p->entry[at]);
  if (s != dnnl_success) {
    memset(&p->entry[at].key, 0xff, sizeof p->entry[at].key); /* matches nothing, is reused first */
    p->entry[at].used = 0;
    if (at == p->count) p->count++;
    return library_failed(p->ctx, k->is_conv ? "make a convolution" : "make a matrix product", s);
  }
  if (at == p->count) p->count++;
  p->entry[at].used = ++p->clock;
  *out = &p->entry[at];
  return WAN_OK;
}

static wan_status scratch_ensure(prims *p, size_t bytes) {
  if (bytes <= p->scratch_bytes) return WAN_OK;
  core_free(p->ctx, p->scratch);
  p->scratch_bytes = 0;
  p->scratch = core_alloc(p->ctx, bytes);
  if (!p->scratch) return WAN_ERR_MEMORY;
  p->scratch_bytes = bytes;
  return WAN_OK;
}

/* ---- Running ---- */

/* The library's argument is not const, its use of sources is. */
static dnnl_status_t point(dnnl_memory_t mem, const void *data) {
  return dnnl_memory_set_data_handle(mem, (void *)(uintptr_t)data);
}

static wan_status prim_run(prims *p, prim *e, const void *src, const void *w, const float *bias, void *dst) {
  CORE_TRY(scratch_ensure(p, e->scratch_bytes));
  dnnl_status_t s = point(e->src, src);
  if (s == dnnl_success) s = point(e->w, w);
  if (s == dnnl_success && bias) s = point(e->bias, bias);
  if (s == dnnl_success) s = point(e->dst, dst);
  if (s == dnnl_success) s = point(e->scratch, p->scratch);
  dnnl_exec_arg_t args[5] = {{DNNL_ARG_SRC, e->src},
                             {DNNL_ARG_WEIGHTS, e->w},
                             {DNNL_ARG_DST, e->dst},
                             {DNNL_ARG_SCRATCHPAD, e->scratch},
                             {DNNL_ARG_BIAS, e->bias}};
  if (s == dnnl_success) s = dnnl_primitive_execute(e->primitive, p->stream, bias ? 5 : 4, args);
  if (s == dnnl_success) s = dnnl_stream_wait(p->stream);
  return s == dnnl_success ? WAN_OK : library_failed(p->ctx, "run an operation", s);
}

wan_status prims_matmul(prims *p, const matmul_args *a) {
  prim_key k;
  memset(&k, 0, sizeof k);
  k.g.type = a->type;
  k.g.T = a->M;
  k.g.Ci = a->K;
  k.g.Co = a->N;
  k.g.dst_type = a->dst_type;
  k.act = (int64_t)a->act;
  k.has_bias = a->bias != NULL;
  k.add_dst = a->add_dst;
  k.packed = a->w_packed != NULL; /* the layout follows from K, N and the type: prims_pack_matrix() */
  int before = threads_enter(p);
  prim *e = NULL;
  wan_status s = prim_get(p, &k, a->w_packed ? &a->w_packed->md : NULL, &e);
  if (s == WAN_OK) s = prim_run(p, e, a->src, a->w_packed ? a->w_packed->data : a->w, a->bias, a->dst);
  threads_leave(before);
  return s;
}

/* ---- Packed weights ---- */

static wan_status reorder(prims *p, cpu_md_in from, const void *src, cpu_md_in to, void *dst) {
  dnnl_primitive_attr_t attr = NULL;
  dnnl_primitive_desc_t pd = NULL;
  dnnl_primitive_t r = NULL;
  dnnl_memory_t ms = NULL, md = NULL, mt = NULL;
  wan_status status = WAN_OK;
  dnnl_status_t s = dnnl_primitive_attr_create(&attr);
  if (s == dnnl_success) s = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
  if (s == dnnl_success) s = dnnl_reorder_primitive_desc_create(&pd, from, p->engine, to, p->engine, attr);
  if (s == dnnl_success) s = dnnl_primitive_create(&r, pd);
  if (s == dnnl_success) s = make_memory(p, &ms, from);
  if (s == dnnl_success) s = make_memory(p, &md, to);
  if (s == dnnl_success) s = make_memory(p, &mt, pd_md(pd, dnnl_query_scratchpad_md));
  if (s == dnnl_success) {
    status = scratch_ensure(p, dnnl_memory_desc_get_size(pd_md(pd, dnnl_query_scratchpad_md)));
    if (status != WAN_OK) goto done;
    s = point(ms, src);
  }
  if (s == dnnl_success) s = point(md, dst);
  if (s == dnnl_success) s = point(mt, p->scratch);
  dnnl_exec_arg_t args[3] = {{DNNL_ARG_FROM, ms}, {DNNL_ARG_TO, md}, {DNNL_ARG_SCRATCHPAD, mt}};
  if (s == dnnl_success) s = dnnl_primitive_execute(r, p->stream, 3, args);
  if (s == dnnl_success) s = dnnl_stream_wait(p->stream);
done:
  if (mt) dnnl_memory_destroy(mt);
  if (md) dnnl_memory_destroy(md);
  if (ms) dnnl_memory_destroy(ms);
  if (r) dnnl_primitive_destroy(r);
  if (pd) dnnl_primitive_desc_destroy(pd);
  if (attr) dnnl_primitive_attr_destroy(attr);
  if (status == WAN_OK && s != dnnl_success) status = library_failed(p->ctx, "pack a weight", s);
  return status;
}

static wan_status repack(prims *p, packed *w, cpu_md_in from, const void *src, cpu_md_in to) {
  void *data = core_alloc(p->ctx, dnnl_memory_desc_get_size(to));
  if (!data) return WAN_ERR_MEMORY;
  cpu_md md;
  memset(&md, 0, sizeof md);
  wan_status s = reorder(p, from, src, to, data);
  if (s == WAN_OK && md_copy(&md, to) != dnnl_success)
    s = library_failed(p->ctx, "describe a weight", dnnl_out_of_memory);
  if (s != WAN_OK) {
    core_free(p->ctx, data);
    return s;
  }
  core_free(p->ctx, w->data);
  md_free(&w->md);
  w->md = md;
  w->data = data;
  return WAN_OK;
}

static prim_key conv_key(const conv_geometry *g, bool bias, bool add) {
  prim_key k;
  memset(&k, 0, sizeof k);
  k.g = *g;
  k.is_conv = 1;
  k.has_bias = bias;
  k.add_dst = add;
  return k;
}

wan_status prims_conv(prims *p, const conv_args *a) {
  prim_key k = conv_key(&a->g, a->bias != NULL, a->add_dst);
  int before = threads_enter(p);
  prim *e = NULL;
  wan_status s = prim_get(p, &k, NULL, &e);
  if (s == WAN_OK && !dnnl_memory_desc_equal(md_in(&a->w->md), md_in(&e->w_md)))
    s = repack(p, a->w, md_in(&a->w->md), a->w->data, md_in(&e->w_md));
  if (s == WAN_OK) s = prim_run(p, e, a->src, a->w->data, a->bias, a->dst);
  threads_leave(before);
  return s;
}

wan_status prims_pack(prims *p, const conv_geometry *g, dtype from, const void *src, packed **out) {
  prim_key k = conv_key(g, true, false);
  prim_mds m;
  memset(&m, 0, sizeof m);
  dnnl_primitive_desc_t pd = NULL;
  packed *w = core_calloc(p->ctx, 1, sizeof *w);
  if (!w) return WAN_ERR_MEMORY;
  int before = threads_enter(p);
  dnnl_status_t s = make_pd(p, &k, NULL, &m, &pd);
  cpu_md plain;
  memset(&plain, 0, sizeof plain);
  const dnnl_dims_t d5 = {g->Co, g->Ci, g->kt, g->kh, g->kw}, d4 = {g->Co, g->Ci, g->kh, g->kw};
  if (s == dnnl_success)
    s = is_flat(g) ? md_init(&plain, 4, d4, dnnl_type(from), dnnl_abcd)
                   : md_init(&plain, 5, d5, dnnl_type(from), dnnl_abcde);
  wan_status status = s == dnnl_success ? repack(p, w, md_in(&plain), src, pd_md(pd, dnnl_query_weights_md))
                                        : library_failed(p->ctx, "choose a layout for a weight", s);
  threads_leave(before);
  if (pd) dnnl_primitive_desc_destroy(pd);
  mds_free(&m);
  md_free(&plain);
  if (status != WAN_OK) {
    packed_free(p, w);
    return status;
  }
  *out = w;
  return WAN_OK;
}

wan_status prims_pack_matrix(prims *p, int64_t N, int64_t K, dtype type, dtype from, const void *src,
                             packed **out) {
  enum { TOKENS = 4096 }; /* rows of a typical product; the layout serves any number */
  prim_key k;
  memset(&k, 0, sizeof k);
  k.g.type = k.g.dst_type = type;
  k.g.T = TOKENS;
  k.g.Ci = K;
  k.g.Co = N;
  k.has_bias = k.packed = 1;
  const dnnl_dims_t dims = {K, N};
  prim_mds m;
  memset(&m, 0, sizeof m);
  dnnl_primitive_desc_t pd = NULL;
  cpu_md plain, wanted;
  memset(&plain, 0, sizeof plain);
  memset(&wanted, 0, sizeof wanted);
  packed *w = NULL;
  wan_status status = WAN_OK;
  int before = threads_enter(p);
  dnnl_status_t s = make_pd(p, &k, NULL, &m, &pd);
  if (s == dnnl_success) s = md_init(&wanted, 2, dims, dnnl_type(type), dnnl_ba);
  if (s == dnnl_success) s = md_init(&plain, 2, dims, dnnl_type(from), dnnl_ba);
  if (s != dnnl_success) {
    status = library_failed(p->ctx, "choose a layout for a matrix", s);
  } else if (!dnnl_memory_desc_equal(pd_md(pd, dnnl_query_weights_md), md_in(&wanted))) {
    w = core_calloc(p->ctx, 1, sizeof *w);
    status = w ? repack(p, w, md_in(&plain), src, pd_md(pd, dnnl_query_weights_md)) : WAN_ERR_MEMORY;
  }
  threads_leave(before);
  if (pd) dnnl_primitive_desc_destroy(pd);
  mds_free(&m);
  md_free(&plain);
  md_free(&wanted);
  if (status != WAN_OK) {
    packed_free(p, w);
    w = NULL;
  }
  *out = w;
  return status;
}

size_t packed_bytes(const packed *w) {
  return dnnl_memory_desc_get_size(md_in(&w->md));
}

void packed_free(prims *p, packed *w) {
  if (!w) return;
  core_free(p->ctx, w->data);
  md_free(&w->md);
  core_free(p->ctx, w);
}
