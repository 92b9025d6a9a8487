#ifndef SEC_GRPO_THOMPSON_H_
#define SEC_GRPO_THOMPSON_H_

#include <cstddef>
#include <vector>

namespace sec_grpo {

// How likely the sample of each arm is to win, samples being independent: what Thompson sampling
// draws from when every slot of a batch samples anew. Integrated on a grid of kGridPoints, so no
// random numbers are needed; time is proportional to count * kGridPoints.
inline constexpr std::size_t kGridPoints = 512;

// P(the sample of arm c is the largest), samples N(mean[c], deviation[c]^2). A deviation below two
// steps of the grid counts as two; the grid covers what the largest sample reaches within six
// deviations. Throws std::invalid_argument unless all are finite and no deviation is below 0.
std::vector<double> gaussian_wins(const double* mean, const double* deviation, std::size_t count);

// P(the sample of arm c is the nearest to `target`), samples Beta(a[c], b[c]). Throws
// std::invalid_argument unless all a and b are finite and at least 1, and target is in [0, 1].
std::vector<double> nearest_beta_wins(const double* a, const double* b, std::size_t count,
                                      double target);

}  // namespace sec_grpo

#endif  // SEC_GRPO_THOMPSON_H_
