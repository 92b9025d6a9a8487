#include "check.h"
#include "sec_grpo/crc32.h"

int main() {
  // The check value of CRC-32/ISO-HDLC, and lengths around the four-byte step.
  CHECK(sec_grpo::crc32("123456789", 9) == 0xCBF43926u);
  CHECK(sec_grpo::crc32("", 0) == 0u);
  CHECK(sec_grpo::crc32("a", 1) == 0xE8B7BE43u);
  CHECK(sec_grpo::crc32("abc", 3) == 0x352441C2u);
}
