#ifndef SEC_GRPO_DETERMINISTIC_EXP_H_
#define SEC_GRPO_DETERMINISTIC_EXP_H_

namespace sec_grpo {

// exp(x) with the same bits from every compiler, standard library and processor (std::exp
// differs between them). Relative error below 2.5e-16 where the result is a normal number.
double deterministic_exp(double x);

}  // namespace sec_grpo

#endif  // SEC_GRPO_DETERMINISTIC_EXP_H_
