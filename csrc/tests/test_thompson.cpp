#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "sec_grpo/crc32.h"
#include "sec_grpo/thompson.h"

using sec_grpo::gaussian_wins;
using sec_grpo::nearest_beta_wins;

std::vector<double> gaussians(const std::vector<double>& mean, const std::vector<double>& spread) {
  return gaussian_wins(mean.data(), spread.data(), mean.size());
}

std::vector<double> betas(const std::vector<double>& a, const std::vector<double>& b,
                          double target) {
  return nearest_beta_wins(a.data(), b.data(), a.size(), target);
}

bool near(double value, double expected, double tolerance) {
  if (std::fabs(value - expected) <= tolerance) return true;
  std::fprintf(stderr, "%.12g is not %.12g\n", value, expected);
  return false;
}

// P(X > Y) of two Gaussians is Phi(difference / deviation of the difference).
void test_two_gaussians() {
  const double cases[][4] = {{1, 0, 1, 1}, {0.3, 0.25, 0.05, 0.2}, {-2, -2.5, 0.7, 0.1}};
  for (const auto& [m0, m1, s0, s1] : cases) {
    const auto wins = gaussians({m0, m1}, {s0, s1});
    const double expected = 0.5 * std::erfc((m1 - m0) / std::sqrt(2 * (s0 * s0 + s1 * s1)));
    CHECK(near(wins[0], expected, 2e-8));
    CHECK(near(wins[0] + wins[1], 1.0, 1e-14));
  }
}

// Of n arms alike each wins 1 / n, also when the product of thousands of factors is far below the
// smallest double over most of the grid.
void test_many_alike() {
  for (const std::size_t count : {1u, 2u, 9u, 5000u}) {
    for (const double win :
         gaussians(std::vector<double>(count, 3.0), std::vector<double>(count, 0.2))) {
      CHECK(near(win, 1.0 / static_cast<double>(count), 1e-12));
    }
    for (const double win :
         betas(std::vector<double>(count, 2.0), std::vector<double>(count, 3.0), 0.4)) {
      CHECK(near(win, 1.0 / static_cast<double>(count), 1e-12));
    }
  }
}

// The result belongs to the arm, wherever it stands and whether arms alike follow one another.
void test_order_does_not_matter() {
  const std::vector<double> mean = {0.1, 0.5, 0.5, 0.45, 0.1, 0.5};
  const std::vector<double> spread = {0.3, 0.05, 0.05, 0.1, 0.3, 0.05};
  const auto wins = gaussians(mean, spread);
  const auto back = gaussians({mean.rbegin(), mean.rend()}, {spread.rbegin(), spread.rend()});
  for (std::size_t c = 0; c < mean.size(); ++c) {
    CHECK(near(wins[c], back[mean.size() - 1 - c], 1e-13));
  }
  CHECK(near(wins[1], wins[5], 1e-13) && near(wins[0], wins[4], 1e-13));
}

void test_certain_samples() {
  CHECK((gaussians({0.0, 2.0, 2.0}, {0.0, 0.0, 0.0}) == std::vector<double>{0.0, 0.5, 0.5}));
  // One that is certain against one that is not: Phi(1) and the rest.
  CHECK(near(gaussians({1.0, 0.0}, {0.0, 1.0})[0], 0.5 * std::erfc(-1 / std::sqrt(2.0)), 1e-3));
  const auto far = gaussians({0.0, 100.0}, {1e-3, 1.0});
  CHECK(far[0] == 0.0 && far[1] == 1.0);
}

// Target 1 asks for the largest sample: P(Beta(2, 1) > uniform) is the mean 2/3; of Beta(n, 1) and
// Beta(m, 1) it is n / (n + m). Target 0 asks for the smallest.
void test_betas_by_hand() {
  CHECK(near(betas({2, 1}, {1, 1}, 1.0)[0], 2.0 / 3.0, 1e-4));
  CHECK(near(betas({5, 3}, {1, 1}, 1.0)[0], 5.0 / 8.0, 1e-4));
  CHECK(near(betas({1, 1}, {5, 3}, 0.0)[0], 5.0 / 8.0, 1e-4));
  // Symmetric about the target: no arm is nearer.
  CHECK(near(betas({8, 2}, {2, 8}, 0.5)[0], 0.5, 1e-12));
  // As certain as it can be, at the target and off it.
  const auto sure = betas({5e8, 9e8}, {5e8, 1e8}, 0.5);
  CHECK(sure[0] > 0.999999 && sure[1] < 1e-6);
}

void test_refusals() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS(gaussians({0.0, nan}, {1.0, 1.0}), std::invalid_argument, "mean[1]");
  CHECK_THROWS(gaussians({0.0}, {-1.0}), std::invalid_argument, "deviation[0]");
  CHECK_THROWS(gaussians({0.0, 1e308}, {1.0, 1e308}), std::invalid_argument, "range");
  CHECK_THROWS(betas({0.5}, {1.0}, 0.5), std::invalid_argument, "a[0]");
  CHECK_THROWS(betas({1.0}, {nan}, 0.5), std::invalid_argument, "b[0]");
  CHECK_THROWS(betas({1.0}, {1.0}, 1.5), std::invalid_argument, "target");
}

// Bits that every target must reproduce.
void test_golden_bits() {
  std::string bytes;
  std::vector<double> mean, spread, a, b;
  for (int c = 0; c < 50; ++c) {
    mean.push_back(c % 7 * 0.125);
    spread.push_back(0.0625 * (1 + c % 5));
    a.push_back(1 + c % 9);
    b.push_back(1 + c % 4 * 2.5);
  }
  for (const auto& wins : {gaussians(mean, spread), betas(a, b, 0.4375)}) {
    for (const double win : wins) {
      std::uint64_t bits;
      std::memcpy(&bits, &win, sizeof bits);
      for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(bits >> (8 * i)));
    }
  }
  std::printf("hash %#x\n", sec_grpo::crc32(bytes.data(), bytes.size()));
  CHECK(sec_grpo::crc32(bytes.data(), bytes.size()) == 0x71c7917au);
}

int main() {
  test_two_gaussians();
  test_many_alike();
  test_order_does_not_matter();
  test_certain_samples();
  test_betas_by_hand();
  test_refusals();
  test_golden_bits();
}
