#ifndef SEC_GRPO_TESTS_CHECK_H_
#define SEC_GRPO_TESTS_CHECK_H_

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

// A failed check prints its place and ends the test with exit status 1, in every build type.
#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)

#define CHECK_THROWS(statement, Exception, text)                                              \
  do {                                                                                        \
    std::string check_message = "nothing was thrown";                                         \
    bool check_matches = false;                                                               \
    try {                                                                                     \
      statement;                                                                              \
    } catch (const Exception& error) {                                                        \
      check_message = error.what();                                                           \
      check_matches = check_message.find(text) != std::string::npos;                          \
    }                                                                                         \
    if (!check_matches) {                                                                     \
      std::fprintf(stderr, "%s:%d: expected " #Exception " with \"%s\", got: %s\n", __FILE__, \
                   __LINE__, std::string(text).c_str(), check_message.c_str());               \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (false)

#endif  // SEC_GRPO_TESTS_CHECK_H_
