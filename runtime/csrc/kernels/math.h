// Elementary functions of 16 floats, built of exactly rounded steps so that every instruction set
// gives the same bits. Errors are a few units in the last place unless said.
#pragma once

namespace qd::QD_ISA {

// e^x; 0 below -87.33, e^88.37 = 2.4e38 above 88.37, NaN for NaN.
// Cody-Waite reduction by ln 2 in two parts, then a polynomial of degree 6 on [-ln2/2, ln2/2]
// (Muller, Elementary Functions, chapter 11).
inline V exp(V x) {
  const V low = set1(-87.33f), high = set1(88.37f);
  // max and min take their second operand where one is NaN: n is a number, r is not.
  const V n = round_even(mul(max(min(x, high), low), set1(1.44269504f)));
  V r = fma(n, set1(-0.693145752f), max(low, min(high, x)));
  r = fma(n, set1(-1.42860677e-6f), r);
  V p = set1(1.0f / 720);
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return select_gt(low, x, zero(), mul(p, power_of_two(n)));
}

// tanh x = 1 - 2 / (e^2x + 1); absolute error below 2e-7.
inline V tanh(V x) {
  const V grown = exp(add(x, x));
  return sub(set1(1.0f), div(set1(2.0f), add(grown, set1(1.0f))));
}

// erf x, absolute error below 2e-7 (Abramowitz and Stegun, 7.1.26).
inline V erf(V x) {
  const V a = abs(x);
  const V t = div(set1(1.0f), fma(a, set1(0.3275911f), set1(1.0f)));
  V p = set1(1.061405429f);
  p = fma(p, t, set1(-1.453152027f));
  p = fma(p, t, set1(1.421413741f));
  p = fma(p, t, set1(-0.284496736f));
  p = fma(p, t, set1(0.254829592f));
  p = mul(p, t);
  const V positive = sub(set1(1.0f), mul(p, exp(sub(zero(), mul(a, a)))));
  return select_gt(zero(), x, sub(zero(), positive), positive);
}

inline V silu(V x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

inline V gelu(V x) {
  return mul(mul(x, set1(0.5f)), add(erf(mul(x, set1(0.707106781f))), set1(1.0f)));
}

inline V gelu_tanh(V x) {
  const V cube = mul(mul(x, x), x);
  const V inner = mul(fma(cube, set1(0.044715f), x), set1(0.797884561f));
  return mul(mul(x, set1(0.5f)), add(tanh(inner), set1(1.0f)));
}

inline V activate(V x, Activation kind) {
  switch (kind) {
    case Activation::kSilu: return silu(x);
    case Activation::kGelu: return gelu(x);
    case Activation::kGeluTanh: return gelu_tanh(x);
    case Activation::kRelu: return max(x, zero());
    case Activation::kNone: break;
  }
  return x;
}

}  // namespace qd::QD_ISA
