#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"
#include "sec_grpo/elementary.h"
#include "sec_grpo/philox.h"

using sec_grpo::deterministic_exp;
using sec_grpo::deterministic_log;

// long double where it is wider than double; std::exp is within 1 ulp in any case.
void test_error() {
  double worst = 0;
  for (std::uint32_t i = 0; i < 1000000; ++i) {
    sec_grpo::PhiloxWords words({i, 0, 0, 0}, {1, 1});
    const double unit = static_cast<double>(words() >> 11) * 0x1p-53;
    const double x = (i & 1u) != 0 ? -42.0 * unit + 0.7 : -700.0 + 1400.0 * unit;
    const long double truth = std::exp(static_cast<long double>(x));
    const long double error = std::fabs((deterministic_exp(x) - truth) / truth);
    worst = std::fmax(worst, static_cast<double>(error));
  }
  std::printf("largest relative error %.3g\n", worst);
  CHECK(worst < 2.5e-16);
}

void test_special_values() {
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(deterministic_exp(0.0) == 1.0);
  CHECK(deterministic_exp(-infinity) == 0.0);
  CHECK(deterministic_exp(-1e300) == 0.0);
  CHECK(deterministic_exp(infinity) == infinity);
  CHECK(deterministic_exp(710.0) == infinity);
  CHECK(std::isnan(deterministic_exp(std::numeric_limits<double>::quiet_NaN())));
  CHECK(deterministic_exp(709.78) > 1.78e308 && std::isfinite(deterministic_exp(709.78)));
  // Subnormal results.
  CHECK(std::fabs(deterministic_exp(-740.0) - std::exp(-740.0)) <= 0x1p-1074);
}

// Bits that every target must reproduce.
void test_golden_bits() {
  CHECK(deterministic_exp(1.0) == 0x1.5bf0a8b145769p+1);
  CHECK(deterministic_exp(-1.0) == 0x1.78b56362cef38p-2);
  std::uint64_t hash = 0;
  for (int i = 0; i < 100000; ++i) {
    const double y = deterministic_exp(-i * 0x1.3p-12);
    hash = hash * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(y * 0x1p+60);
  }
  std::printf("hash %#llx\n", static_cast<unsigned long long>(hash));
  CHECK(hash == 0x83bc6cfe34a1702cu);
}

void test_log() {
  const double infinity = std::numeric_limits<double>::infinity();
  double worst = 0;
  std::uint64_t hash = 0;
  for (std::uint32_t i = 0; i < 1000000; ++i) {
    sec_grpo::PhiloxWords words({i, 0, 0, 0}, {2, 2});
    const double unit = static_cast<double>(words() >> 11) * 0x1p-53;
    // Over the whole range, and near 1, where the result is small.
    const double x = (i & 1u) != 0
                         ? std::ldexp(1.0 + unit, static_cast<int>(i % 2000) - 1050)
                         : 1.0 + (unit - 0.5) * std::ldexp(1.0, -static_cast<int>(i % 40));
    if (x == 1.0) continue;
    const long double truth = std::log(static_cast<long double>(x));
    const long double error = std::fabs((deterministic_log(x) - truth) / truth);
    worst = std::fmax(worst, static_cast<double>(error));
    hash = hash * 0x9E3779B97F4A7C15u +
           static_cast<std::uint64_t>(static_cast<std::int64_t>(deterministic_log(x) * 0x1p+52));
  }
  std::printf("log: largest relative error %.3g, hash %#llx\n", worst,
              static_cast<unsigned long long>(hash));
  CHECK(worst < 2.5e-16);
  CHECK(hash == 0x86317667abb24da9u);
  CHECK(deterministic_log(1.0) == 0.0);
  CHECK(deterministic_log(0.0) == -infinity);
  CHECK(deterministic_log(infinity) == infinity);
  CHECK(std::isnan(deterministic_log(-1.0)) && std::isnan(deterministic_log(std::nan(""))));
  CHECK(std::fabs(deterministic_log(0x1p-1074) + 744.4400719213812) < 1e-12);
}

int main() {
  test_error();
  test_special_values();
  test_golden_bits();
  test_log();
}
