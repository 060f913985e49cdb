// What kernels know of threads.
#pragma once

#include <cstddef>
#include <functional>

namespace diptych {

// Call a function for each number below a count, on as many threads as there are.
using Parallel = std::function<void(std::size_t n_tasks, const std::function<void(std::size_t)>& task)>;

}  // namespace diptych
