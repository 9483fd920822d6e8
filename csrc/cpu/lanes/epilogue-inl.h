// Activations on a Vec.
#pragma once

// e^v by v = n ln 2 + r: 2^n times a Taylor polynomial on |r| <= ln 2 / 2 (2 ulp).
static inline Vec exponential(Vec v) {
  v = clamp(v, -87.0f, 88.0f);
  const Vec n = round(mul(v, broadcast(1.44269504f)));
  const Vec r = fma(n, broadcast(1.42860677e-6f), fma(n, broadcast(-0.693145752f), v));  // ln 2 in two parts
  Vec p = broadcast(1.0f / 720);
  for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, broadcast(c));
  return mul(p, pow2(n));
}

// erf as x P(x^2) / Q(x^2) on |x| <= 4, beyond which it is 1 in fp32: a Lawson-weighted least-squares
// fit to the exact function, 2e-8 off before rounding, 4e-7 in fp32.
static inline Vec error_function(Vec x) {
  x = clamp(x, -4.0f, 4.0f);
  const Vec t = mul(x, x);
  Vec p = broadcast(1.974833920e-06f), q = broadcast(3.748092251e-05f);
  for (const float c : {2.880417409e-04f, 4.003644117e-03f, 5.346746685e-02f, 1.962488869e-01f, 1.128378976e+00f}) {
    p = fma(p, t, broadcast(c));
  }
  for (const float c : {1.216360322e-03f, 1.544441539e-02f, 1.164763904e-01f, 5.072522062e-01f, 1.0f}) {
    q = fma(q, t, broadcast(c));
  }
  return div(mul(x, p), q);
}

// x/2 (1 + erf(x / sqrt 2)): torch.nn.functional.gelu.
static inline Vec gelu(Vec x) {
  const Vec half = mul(x, broadcast(0.5f));
  return fma(half, error_function(mul(x, broadcast(0.707106781f))), half);
}

// x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): gelu(approximate="tanh").
static inline Vec gelu_tanh(Vec x) {
  const Vec u = mul(mul(x, broadcast(-1.59576912f)), fma(mul(x, x), broadcast(0.044715f), broadcast(1.0f)));
  return div(x, add(broadcast(1.0f), exponential(u)));
}

static inline Vec activate(Vec v, Activation activation) {
  switch (activation) {
    case Activation::kRelu: return relu(v);
    case Activation::kGelu: return gelu(v);
    case Activation::kGeluTanh: return gelu_tanh(v);
    case Activation::kNone: break;
  }
  return v;
}

// out[0, count) = activation(in + bias): the tail goes through a full vector on the stack.
static inline void finish_row(const float* in, Vec bias, Activation activation, std::int64_t count, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, activate(add(load(in + i), bias), activation));
  if (i == count) return;
  alignas(64) float tail[kLanes] = {};
  for (std::int64_t j = i; j < count; ++j) tail[j - i] = in[j];
  store(tail, activate(add(load(tail), bias), activation));
  for (std::int64_t j = i; j < count; ++j) out[j] = tail[j - i];
}
