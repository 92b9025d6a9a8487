#ifndef SEC_GRPO_ELEMENTARY_H_
#define SEC_GRPO_ELEMENTARY_H_

namespace sec_grpo {

// exp(x) and log(x) with the same bits from every compiler, standard library and processor, unlike
// those of std. Relative error below 2.5e-16 where the result is a normal number.
double deterministic_exp(double x);
double deterministic_log(double x);

}  // namespace sec_grpo

#endif  // SEC_GRPO_ELEMENTARY_H_
