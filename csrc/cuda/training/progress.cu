#include "progress.h"

#include <algorithm>
#include <cmath>

#include "../../training_params.h"
#include "reduce.cuh"

namespace mhicl::cuda {
namespace {

constexpr int threads_per_block = 256;

template <class T>
constexpr double rounding = sizeof(T) == 4 ? 1e-5 : 1e-12;

template <class T>
int64_t blocks_for(const TrainedParameters<T>& trained) {
  constexpr int64_t a_thread = 4;  // elements, as long as that takes no more than most_measures blocks
  int64_t total = 0;
  for (int i = 0; i < trained.count; ++i) total += trained.sizes[i];
  return std::clamp<int64_t>(total / (a_thread * threads_per_block), 1, most_measures);
}

// The learning rate, or less where it would change a parameter by more than the cap.
__device__ __forceinline__ double flow_step(const UpdateRule& rule, double largest) {
  const bool capped = rule.step_cap > 0 && largest * rule.learning_rate > rule.step_cap;
  return capped ? rule.step_cap / largest : rule.learning_rate;
}

// The step's sizes. Adam's bias corrections are 1 − βᵗ = −expm1(t log β), steps counting from 0.
__device__ __forceinline__ void size_step(const UpdateRule& rule, double largest, Progress& p) {
  const double count = double(p.step) + 1;
  p.rate = p.step_size = rule.learning_rate;
  if (rule.rule == Rule::flow) p.rate = p.step_size = flow_step(rule, largest);
  if (rule.rule == Rule::sgd) p.step_size = rule.learning_rate / (1 - rule.momentum);
  if (rule.rule == Rule::adam) {
    p.rate = rule.learning_rate / -std::expm1(count * std::log(kBeta1));
    p.root = std::sqrt(-std::expm1(count * std::log(kBeta2)));
  }
}

}  // namespace

__global__ void begin_stretch_kernel(Progress* progress, uint32_t step, double flow_time) {
  Progress begun = {};
  begun.step = step;
  begun.finite = true;
  begun.flow_time = flow_time;
  *progress = begun;
}

// measures[block]: of the block's share of the elements.
template <class T>
__global__ void __launch_bounds__(threads_per_block) measure_kernel(Judgement<T> j) {
  const int64_t begin = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  double found[3] = {0, 0, 0};
#pragma unroll
  for (int which = 0; which < most_parameters; ++which) {
    if (which >= j.trained.count) break;
    for (int64_t i = begin; i < j.trained.sizes[which]; i += step) {
      const double g = j.trained.gradients[which][i];
      found[0] += g * g;
      found[1] = std::fmax(found[1], std::fabs(g));
    }
  }
  const int64_t labels = j.dim - j.dim_x;
  for (int64_t i = begin; j.blind_kq && i < j.heads * labels * j.dim_x; i += step) {
    const int64_t c = i % j.dim_x, row = i / j.dim_x % labels, h = i / j.dim_x / labels;
    if (j.blind_kq[(h * j.dim + j.dim_x + row) * j.dim + c] != T(0)) found[2] = 1;  // so that NaN counts
  }
  block_reduce<1>(found, reinterpret_cast<double*>(shared_memory()));
  if (threadIdx.x == 0) j.measures[blockIdx.x] = {found[0], found[1], found[2]};
}

// From all measures to progress, by one block.
template <class T>
__global__ void __launch_bounds__(threads_per_block) judge_kernel(Judgement<T> j, int64_t n_measures) {
  double all[8] = {0, 0, 0, 0, 0, 0, 0, 0};  // Σ g², Σ of the loss's parts, and maxima
  for (int64_t i = threadIdx.x; i < n_measures; i += blockDim.x) {
    all[0] += j.measures[i].squares;
    all[2] = std::fmax(all[2], j.measures[i].largest);
    all[3] = std::fmax(all[3], j.measures[i].labels_in_logits);
  }
  for (int64_t i = threadIdx.x; i < j.loss.n_parts; i += blockDim.x) all[1] += j.loss.parts[i];
  for (int64_t h = threadIdx.x; j.asymmetry && h < j.heads; h += blockDim.x) {
    all[4] = std::fmax(all[4], j.asymmetry[h].kq_apart);
    all[5] = std::fmax(all[5], j.asymmetry[h].kq_largest);
    all[6] = std::fmax(all[6], j.asymmetry[h].ov_apart);
    all[7] = std::fmax(all[7], j.asymmetry[h].ov_largest);
  }
  block_reduce<2>(all, reinterpret_cast<double*>(shared_memory()));
  if (threadIdx.x != 0) return;
  Progress& p = *j.progress;
  p.updates = false;
  if (p.stopped) return;
  const double norm = std::sqrt(all[0]);
  p.last_loss = j.loss.share * (*j.loss.step + all[1]) + j.loss.constant;
  if (p.steps_done == 0) {
    p.first_loss = p.last_loss;
    p.first_gradient_norm = norm;
  }
  p.finite = std::isfinite(p.last_loss) && std::isfinite(norm);
  p.labels_in_logits = all[3] != 0;
  p.asymmetric = all[4] > rounding<T> * all[5] || all[6] > rounding<T> * all[7];
  p.stopped = !p.finite || p.labels_in_logits || p.asymmetric;
  p.updates = !p.stopped && !j.evaluates;
  if (!p.updates) return;
  size_step(j.rule, all[2], p);
  p.flow_time += p.step_size;
  ++p.step;
  ++p.steps_done;
}

// θ ← θ − rate · g; θ ← θ − rate · m with m ← momentum · m + g; or
// θ ← (1 − decay) θ − rate · m / (√v / root + ε), m and v the gradient's running moments.
template <class T>
__global__ void __launch_bounds__(threads_per_block)
    update_kernel(TrainedParameters<T> trained, UpdateRule rule, const Progress* progress) {
  if (!progress->updates) return;
  const int64_t begin = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, step = int64_t{gridDim.x} * blockDim.x;
  const T rate = T(-progress->rate), root = T(progress->root), momentum = T(rule.momentum);
  const T kept = T(1 - rule.learning_rate * rule.weight_decay);
#pragma unroll
  for (int which = 0; which < most_parameters; ++which) {
    if (which >= trained.count) break;
    T *parameter = trained.parameters[which], *first = trained.first[which], *second = trained.second[which];
    const T* gradient = trained.gradients[which];
    for (int64_t i = begin; i < trained.sizes[which]; i += step) {
      const T g = gradient[i];
      if (rule.rule == Rule::adam) {
        const T m = std::fma(T(1 - kBeta1), g - first[i], first[i]);
        const T v = std::fma(T(1 - kBeta2), g * g, T(kBeta2) * second[i]);
        first[i] = m;
        second[i] = v;
        parameter[i] = std::fma(rate, m / (std::sqrt(v) / root + T(kEpsilon)), kept * parameter[i]);
      } else if (first) {
        const T velocity = std::fma(momentum, first[i], g);
        first[i] = velocity;
        parameter[i] = std::fma(rate, velocity, parameter[i]);
      } else {
        parameter[i] = std::fma(rate, g, parameter[i]);
      }
    }
  }
}

cudaError_t begin_stretch(Progress* progress, uint32_t step, double flow_time, cudaStream_t stream) {
  return launch(begin_stretch_kernel, dim3(1), dim3(1), 0, stream, progress, step, flow_time);
}

template <class T>
cudaError_t judge_step(const Judgement<T>& judgement, cudaStream_t stream) {
  const int64_t blocks = blocks_for(judgement.trained);
  const auto room = [](int values) { return reduce_room(threads_per_block, values) * int64_t(sizeof(double)); };
  const cudaError_t error = launch(measure_kernel<T>, dim3(unsigned(blocks)), dim3(threads_per_block), room(3), stream,
                                   judgement);
  if (error != cudaSuccess) return error;
  return launch(judge_kernel<T>, dim3(1), dim3(threads_per_block), room(8), stream, judgement, blocks);
}

template <class T>
cudaError_t update_parameters(const TrainedParameters<T>& trained, const UpdateRule& rule, const Progress* progress,
                              cudaStream_t stream) {
  return launch(update_kernel<T>, dim3(unsigned(blocks_for(trained))), dim3(threads_per_block), 0, stream, trained,
                rule, progress);
}

#define MHICL_PROGRESS(T)                                                                              \
  template cudaError_t judge_step<T>(const Judgement<T>&, cudaStream_t);                               \
  template cudaError_t update_parameters<T>(const TrainedParameters<T>&, const UpdateRule&, const Progress*, \
                                            cudaStream_t);
MHICL_PROGRESS(float)
MHICL_PROGRESS(double)
#undef MHICL_PROGRESS

}  // namespace mhicl::cuda
