/* guidance.c: every variant ends in one linear combination; only its coefficients differ. */
#include "pipeline/guidance.h"

#include <math.h>

/* Terms collected for the final op_lincomb. */
typedef struct terms {
  int n;
  tensor x[8];
  float coef[8];
} terms;

static void add(terms *t, tensor x, double coef) {
  t->x[t->n] = x;
  t->coef[t->n++] = (float)coef;
}

/* momentum := d + m * momentum with d = Dc - Du = -sigma (c - u); then
 * D = Dc + (g-1) k (M - (1 - eta) a Dc), k the norm cut, a = <M, Dc>/<Dc, Dc>, Dc = x - sigma c, and
 * v = (x - D) / sigma. With b = 1 - (g-1)(1-eta) k a:  v = (1-b)/sigma x + b c - (g-1) k/sigma M. */
static void apg(backend *be, const guidance_params *p, tensor x, tensor c, tensor u, tensor m, terms *t) {
  scope_mark mark = scope_begin(be);
  double s = (double)p->sigma;
  op_lincomb(be, m, 3, (tensor[]){m, c, u}, (float[]){(float)p->apg_momentum, -p->sigma, p->sigma});
  tensor dc = tensor_new(be, DT_F32, x.ndim, x.dim);
  op_lincomb(be, dc, 2, (tensor[]){x, c}, (float[]){1, -p->sigma});
  double norm = sqrt(op_dot(be, m, m)), square = op_dot(be, dc, dc);
  double k = p->apg_norm > 0 && norm > p->apg_norm ? p->apg_norm / norm : 1;
  double a = square > 0 ? op_dot(be, m, dc) / square : 0;
  double g = p->scale - 1, b = 1 - g * (1 - p->apg_eta) * k * a;
  add(t, x, (1 - b) / s);
  add(t, c, b);
  add(t, m, -g * k / s);
  scope_end(be, mark);
}

void guidance_combine(backend *be, const guidance_params *p, tensor x, tensor c, tensor u, tensor skip,
                      tensor momentum, tensor out) {
  terms t = {0};
  double g = p->scale, of_cond = 0;
  if (u.type == DT_NONE) {
    of_cond = 1;
  } else if (p->apg && p->sigma > 0) {
    apg(be, p, x, c, u, momentum, &t);
  } else {
    double a = 1;
    if (p->zero_star) {
      double square = op_dot(be, u, u);
      a = square > 0 ? op_dot(be, c, u) / square : 0;
    }
    add(&t, u, a * (1 - g));
    of_cond = g;
  }
  if (skip.type != DT_NONE) {
    of_cond += p->skip_scale;
    add(&t, skip, -p->skip_scale);
  }
  if (of_cond != 0) add(&t, c, of_cond);
  if (t.n == 1 && t.coef[0] == 1 && t.x[0].data == out.data) return; /* one pass: already there */
  op_lincomb(be, out, t.n, t.x, t.coef);
}
