#include "sec_grpo/elementary.h"

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if FLT_EVAL_METHOD != 0
#error "doubles must be evaluated as doubles (on x86-32: -msse2 -mfpmath=sse)"
#endif

namespace sec_grpo {
namespace {

static_assert(std::numeric_limits<double>::is_iec559);

// 2^(i/64), rounded to nearest.
constexpr double kPowers[64] = {
    0x1.0000000000000p+0, 0x1.02c9a3e778061p+0, 0x1.059b0d3158574p+0, 0x1.0874518759bc8p+0,
    0x1.0b5586cf9890fp+0, 0x1.0e3ec32d3d1a2p+0, 0x1.11301d0125b51p+0, 0x1.1429aaea92de0p+0,
    0x1.172b83c7d517bp+0, 0x1.1a35beb6fcb75p+0, 0x1.1d4873168b9aap+0, 0x1.2063b88628cd6p+0,
    0x1.2387a6e756238p+0, 0x1.26b4565e27cddp+0, 0x1.29e9df51fdee1p+0, 0x1.2d285a6e4030bp+0,
    0x1.306fe0a31b715p+0, 0x1.33c08b26416ffp+0, 0x1.371a7373aa9cbp+0, 0x1.3a7db34e59ff7p+0,
    0x1.3dea64c123422p+0, 0x1.4160a21f72e2ap+0, 0x1.44e086061892dp+0, 0x1.486a2b5c13cd0p+0,
    0x1.4bfdad5362a27p+0, 0x1.4f9b2769d2ca7p+0, 0x1.5342b569d4f82p+0, 0x1.56f4736b527dap+0,
    0x1.5ab07dd485429p+0, 0x1.5e76f15ad2148p+0, 0x1.6247eb03a5585p+0, 0x1.6623882552225p+0,
    0x1.6a09e667f3bcdp+0, 0x1.6dfb23c651a2fp+0, 0x1.71f75e8ec5f74p+0, 0x1.75feb564267c9p+0,
    0x1.7a11473eb0187p+0, 0x1.7e2f336cf4e62p+0, 0x1.82589994cce13p+0, 0x1.868d99b4492edp+0,
    0x1.8ace5422aa0dbp+0, 0x1.8f1ae99157736p+0, 0x1.93737b0cdc5e5p+0, 0x1.97d829fde4e50p+0,
    0x1.9c49182a3f090p+0, 0x1.a0c667b5de565p+0, 0x1.a5503b23e255dp+0, 0x1.a9e6b5579fdbfp+0,
    0x1.ae89f995ad3adp+0, 0x1.b33a2b84f15fbp+0, 0x1.b7f76f2fb5e47p+0, 0x1.bcc1e904bc1d2p+0,
    0x1.c199bdd85529cp+0, 0x1.c67f12e57d14bp+0, 0x1.cb720dcef9069p+0, 0x1.d072d4a07897cp+0,
    0x1.d5818dcfba487p+0, 0x1.da9e603db3285p+0, 0x1.dfc97337b9b5fp+0, 0x1.e502ee78b3ff6p+0,
    0x1.ea4afa2a490dap+0, 0x1.efa1bee615a27p+0, 0x1.f50765b6e4540p+0, 0x1.fa7c1819e90d8p+0,
};

// ln 2 / 64 as the sum of a 34-bit part, whose products with the reduced exponent are exact, and
// a remainder.
constexpr double kStepHigh = 0x1.62e42fef80000p-7;
constexpr double kStepLow = 0x1.1cf79abc9e3b4p-42;
constexpr double kStepsPerUnit = 0x1.71547652b82fep+6;
// ln 2 likewise, for products with exponents.
constexpr double kLn2High = 0x1.62e42fef80000p-1;
constexpr double kLn2Low = 0x1.1cf79abc9e3b4p-36;
constexpr double kSqrt2 = 0x1.6a09e667f3bcdp+0;
// Adding and subtracting 1.5 * 2^52 rounds to the nearest integer.
constexpr double kRounder = 0x1.8p+52;

double power_of_two(std::int64_t exponent) {
  const std::uint64_t bits = static_cast<std::uint64_t>(exponent + 1023) << 52;
  double result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace

double deterministic_exp(double x) {
  if (std::isnan(x)) return x;
  if (x < -746.0) return 0.0;
  if (x > 709.79) return std::numeric_limits<double>::infinity();
  // exp(x) = 2^exponent * 2^(index/64) * exp(r), |r| <= ln 2 / 128.
  const double steps = (x * kStepsPerUnit + kRounder) - kRounder;
  const double r = (x - steps * kStepHigh) - steps * kStepLow;
  const auto whole = static_cast<std::int64_t>(steps);
  const std::int64_t index = whole & 63;
  std::int64_t exponent = (whole - index) / 64;
  const double expm1_r = r + r * r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0))));
  const double base = kPowers[index];
  const double mantissa = base + base * expm1_r;
  // Two steps where 2^exponent is not a normal number itself.
  if (exponent < -1000) return mantissa * power_of_two(exponent + 600) * power_of_two(-600);
  if (exponent > 1000) return mantissa * power_of_two(exponent - 600) * power_of_two(600);
  return mantissa * power_of_two(exponent);
}

double deterministic_log(double x) {
  if (std::isnan(x) || x < 0.0) return std::numeric_limits<double>::quiet_NaN();
  if (x == 0.0) return -std::numeric_limits<double>::infinity();
  if (std::isinf(x)) return x;
  std::int64_t exponent = 0;
  if (x < std::numeric_limits<double>::min()) {
    x *= 0x1p54;
    exponent = -54;
  }
  std::uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  exponent += static_cast<std::int64_t>(bits >> 52) - 1023;
  bits = (bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
  double mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  if (mantissa > kSqrt2) {
    mantissa *= 0.5;
    ++exponent;
  }
  // log(1 + f) = 2 atanh(s) = f - (f^2 / 2 - s (f^2 / 2 + R)), R = sum over k > 0 of
  // 2 s^2k / (2k + 1), and s^2 < 0.0295.
  const double f = mantissa - 1.0;
  const double s = f / (2.0 + f);
  const double z = s * s;
  double series = 0.0;
  for (int k = 11; k > 0; --k) series = z * (2.0 / (2 * k + 1) + series);
  const double half_square = 0.5 * f * f;
  const auto e = static_cast<double>(exponent);
  return e * kLn2High - ((half_square - (s * (half_square + series) + e * kLn2Low)) - f);
}

}  // namespace sec_grpo
