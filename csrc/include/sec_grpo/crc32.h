#ifndef SEC_GRPO_CRC32_H_
#define SEC_GRPO_CRC32_H_

#include <cstddef>
#include <cstdint>

namespace sec_grpo {

// The CRC-32 of zlib and PNG (polynomial 0xEDB88320, reflected).
std::uint32_t crc32(const void* data, std::size_t size);

}  // namespace sec_grpo

#endif  // SEC_GRPO_CRC32_H_
