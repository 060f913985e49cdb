// bfloat16: the upper half of a float32.
#pragma once

#include <cstdint>

namespace diptych {

using bf16 = std::uint16_t;

}  // namespace diptych
