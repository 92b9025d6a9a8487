#include "sec_grpo/thompson.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "sec_grpo/elementary.h"

namespace sec_grpo {
namespace {

using Row = std::array<double, kGridPoints>;

// Standard deviations beyond which a Gaussian is taken to end.
constexpr double kReach = 6.0;
// Probabilities below do not matter to a product with a factor near 1 elsewhere; larger ones keep a
// few of them in a product above the smallest number.
constexpr double kLeast = 0x1p-60;
constexpr std::size_t kFactorsAtOnce = 8;
constexpr double kTiny = 0x1p-500;

// What one arm puts on the grid: the mass of its sample at each point, and below the middle of it.
struct Mass {
  Row at;
  Row below;
};

// The product over arms of the mass below each point, in doubles with an exponent apart.
class Product {
 public:
  Product() { value_.fill(1.0); }

  void multiply(const Row& below) {
    for (std::size_t x = 0; x < kGridPoints; ++x) value_[x] *= std::max(below[x], kLeast);
    if (++factors_ < kFactorsAtOnce) return;
    factors_ = 0;
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      if (value_[x] >= kTiny) continue;
      value_[x] *= 1.0 / kTiny;
      --exponent_[x];
    }
  }

  // The products in one scale, 0 where they are far below the largest: numbers that are not normal
  // would take a hundred times as long.
  Row scaled() const {
    constexpr double kLeastShown = 0x1p-900;
    const std::int64_t largest = *std::max_element(exponent_.begin(), exponent_.end());
    Row result{};
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      if (exponent_[x] == largest) result[x] = value_[x];
      if (exponent_[x] == largest - 1) result[x] = value_[x] * kTiny;
      if (result[x] < kLeastShown) result[x] = 0.0;
    }
    return result;
  }

 private:
  Row value_;
  std::array<std::int64_t, kGridPoints> exponent_{};
  std::size_t factors_ = 0;
};

// P(arm c wins) = sum over points of mass_c(x) * product over i != c of below_i(x), over rising
// points. `same_as_before(c)` says that arm c has the mass of arm c - 1, which is common: arms
// never drawn are all alike.
template <class FillMass, class SameAsBefore>
std::vector<double> largest_wins(std::size_t count, const FillMass& fill_mass,
                                 const SameAsBefore& same_as_before) {
  Mass mass;
  Product product;
  for (std::size_t c = 0; c < count; ++c) {
    if (c == 0 || !same_as_before(c)) fill_mass(c, &mass);
    product.multiply(mass.below);
  }
  const Row all = product.scaled();
  std::vector<double> wins(count);
  double total = 0.0;
  for (std::size_t c = 0; c < count; ++c) {
    if (c > 0 && same_as_before(c)) {
      wins[c] = wins[c - 1];
    } else {
      fill_mass(c, &mass);
      double sum = 0.0;
      for (std::size_t x = 0; x < kGridPoints; ++x) {
        sum += mass.at[x] * (all[x] / std::max(mass.below[x], kLeast));
      }
      wins[c] = sum;
    }
    total += wins[c];
  }
  for (double& win : wins) win /= total;
  return wins;
}

double normal_density(double z) {
  constexpr double kInverseRoot2Pi = 0x1.9884533d43651p-2;
  return kInverseRoot2Pi * deterministic_exp(-0.5 * z * z);
}

// The distribution function of the standard normal, to 1e-15: 1/2 + density (z + z^3 / 3 + z^5 /
// 15 + ...), whose terms are positive for z > 0.
double normal_below(double z) {
  if (z < 0.0) return 1.0 - normal_below(-z);
  if (z > 8.0) return 1.0;
  double term = z;
  double sum = z;
  for (int k = 3; term > 1e-17 * sum; k += 2) {
    term *= z * z / k;
    sum += term;
  }
  return 0.5 + normal_density(z) * sum;
}

// What the largest of samples with at least `spread` reaches: it is not below the lower end of any.
struct Grid {
  Grid(const double* mean, const double* deviation, std::size_t count, double spread)
      : least_spread(spread) {
    double high = -std::numeric_limits<double>::infinity();
    low = high;
    for (std::size_t c = 0; c < count; ++c) {
      const double reach = kReach * std::max(deviation[c], spread);
      low = std::max(low, mean[c] - reach);
      high = std::max(high, mean[c] + reach);
    }
    step = (high - low) / static_cast<double>(kGridPoints - 1);
    if (!std::isfinite(step)) {
      throw std::invalid_argument("mean and deviation must span a range that fits into a double");
    }
  }

  double low;
  double step;
  double least_spread;
};

// The density moves from point to point by a factor that moves by a factor itself; both are made
// anew so often that rounding does not add up. Below a point lies the sum of the trapezoids with
// the first correction of Euler and Maclaurin, h^2 / 12 times the change of the slope.
void fill_gaussian(double mean, double deviation, const Grid& grid, Mass* mass) {
  constexpr std::size_t kAnew = 32;
  const double spread = std::max(deviation, grid.least_spread);
  const double h = grid.step / spread;
  const double curvature = deterministic_exp(-h * h);
  const double first = (grid.low - mean) / spread;
  const auto correction = [=](double z) { return 0.5 + h * z / 12.0; };
  double below = normal_below(first) - h * normal_density(first) * correction(first);
  for (std::size_t begin = 0; begin < kGridPoints; begin += kAnew) {
    const double z = (grid.low + static_cast<double>(begin) * grid.step - mean) / spread;
    if (z > kReach) {
      std::fill(mass->at.begin() + begin, mass->at.end(), 0.0);
      std::fill(mass->below.begin() + begin, mass->below.end(), 1.0);
      return;
    }
    double at = h * normal_density(z);
    double factor = deterministic_exp(-h * (z + 0.5 * h));
    for (std::size_t x = begin; x < begin + kAnew; ++x) {
      mass->at[x] = at;
      const double here = z + static_cast<double>(x - begin) * h;
      mass->below[x] = std::min(below + at * correction(here), 1.0);
      below += at;
      at *= factor;
      factor *= curvature;
    }
  }
}

// Shares of the largest means where no sample strays.
std::vector<double> certain_wins(const double* mean, std::size_t count) {
  const double largest = *std::max_element(mean, mean + count);
  std::vector<double> wins(count);
  double winners = 0.0;
  for (std::size_t c = 0; c < count; ++c) winners += mean[c] == largest ? 1.0 : 0.0;
  for (std::size_t c = 0; c < count; ++c) wins[c] = mean[c] == largest ? 1.0 / winners : 0.0;
  return wins;
}

void check(const char* name, const double* values, std::size_t count, double least) {
  for (std::size_t c = 0; c < count; ++c) {
    if (std::isfinite(values[c]) && values[c] >= least) continue;
    throw std::invalid_argument(std::string(name) + "[" + std::to_string(c) +
                                "] must be finite and not below " + std::to_string(least) +
                                ", got " + std::to_string(values[c]));
  }
}

// Beta densities by the distance of a sample from the target, the farthest point first.
class BetaDistances {
 public:
  explicit BetaDistances(double target) {
    const double reach = std::max(target, 1.0 - target);
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      // The middle of a cell, which is never at the end of [0, 1].
      const double distance =
          reach * (static_cast<double>(kGridPoints - x) - 0.5) / static_cast<double>(kGridPoints);
      set(target + distance, &above_[x]);
      set(target - distance, &beneath_[x]);
    }
  }

  void fill(double a, double b, Mass* mass) const {
    Row above, beneath;
    double largest = -std::numeric_limits<double>::infinity();
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      above[x] = log_density(above_[x], a, b);
      beneath[x] = log_density(beneath_[x], a, b);
      largest = std::max({largest, above[x], beneath[x]});
    }
    double total = 0.0;
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      mass->at[x] = density(above[x] - largest) + density(beneath[x] - largest);
      total += mass->at[x];
    }
    double sum = 0.0;
    for (std::size_t x = 0; x < kGridPoints; ++x) {
      mass->at[x] /= total;
      mass->below[x] = sum + 0.5 * mass->at[x];
      sum += mass->at[x];
    }
  }

 private:
  // Logarithms of a point and of its distance from 1; both -infinity outside [0, 1].
  struct Logs {
    double x;
    double rest;
  };

  static void set(double x, Logs* logs) {
    const bool is_inside = x > 0.0 && x < 1.0;
    const double infinity = std::numeric_limits<double>::infinity();
    logs->x = is_inside ? deterministic_log(x) : -infinity;
    logs->rest = is_inside ? deterministic_log(1.0 - x) : -infinity;
  }

  // 0 where it is far below the largest: most of the grid, once there are some hundred rollouts.
  static double density(double log_ratio) {
    constexpr double kLogLeast = -45.0;
    return log_ratio < kLogLeast ? 0.0 : deterministic_exp(log_ratio);
  }

  static double log_density(const Logs& logs, double a, double b) {
    if (std::isinf(logs.x)) return logs.x;
    return (a - 1.0) * logs.x + (b - 1.0) * logs.rest;
  }

  std::array<Logs, kGridPoints> above_;
  std::array<Logs, kGridPoints> beneath_;
};

}  // namespace

std::vector<double> gaussian_wins(const double* mean, const double* deviation, std::size_t count) {
  check("mean", mean, count, -std::numeric_limits<double>::infinity());
  check("deviation", deviation, count, 0.0);
  if (count == 0) return {};
  const Grid bare(mean, deviation, count, 0.0);
  if (bare.step <= 0.0) return certain_wins(mean, count);
  // The wider grid has steps up to 1.06 times as long: two of them at least make a deviation.
  const Grid grid(mean, deviation, count, 2.2 * bare.step);
  return largest_wins(
      count, [&](std::size_t c, Mass* mass) { fill_gaussian(mean[c], deviation[c], grid, mass); },
      [&](std::size_t c) { return mean[c] == mean[c - 1] && deviation[c] == deviation[c - 1]; });
}

std::vector<double> nearest_beta_wins(const double* a, const double* b, std::size_t count,
                                      double target) {
  check("a", a, count, 1.0);
  check("b", b, count, 1.0);
  if (!(target >= 0.0 && target <= 1.0)) {
    throw std::invalid_argument("target must be in [0, 1], got " + std::to_string(target));
  }
  const BetaDistances distances(target);
  return largest_wins(
      count, [&](std::size_t c, Mass* mass) { distances.fill(a[c], b[c], mass); },
      [&](std::size_t c) { return a[c] == a[c - 1] && b[c] == b[c - 1]; });
}

}  // namespace sec_grpo
