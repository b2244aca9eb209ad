#include "session.h"

#include <ATen/Dispatch.h>

#include "../binding.h"
#include "../step/step.h"
#include "estimate.h"
#include "parameters.h"
#include "symmetry.h"

namespace mhicl::cuda {
namespace {

// Arrays of the caching allocator, kept as long as this lives.
class Memory {
 public:
  explicit Memory(const at::Tensor& like) : options_(like.options().dtype(at::kByte)) {}

  template <class T>
  T* take(int64_t count) {
    held_.push_back(at::empty({count * int64_t(sizeof(T))}, options_));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }
  template <class T>
  T* take_zeros(int64_t count) {
    T* const array = take<T>(count);
    held_.back().zero_();
    return array;
  }

 private:
  const at::TensorOptions options_;
  std::vector<at::Tensor> held_;
};

// The numbers of a task, on the device.
template <class T>
class TaskNumbers {
 public:
  TaskNumbers(const TaskSpec& task, const at::Tensor& like) : task_(task), options_(like.options()) {
    const at::Tensor support = on_host(task.support, {task.tasks, task.dim_x});
    const at::Tensor signal = on_host(task.signal, {task.tasks});
    support_ = support.to(options_.dtype(at::kDouble));
    signal_ = signal.to(options_.dtype(at::kDouble));
    scale_ = (signal.sqrt().unsqueeze(1) * support).to(options_);
    if (!task.factor.empty()) {
      const at::Tensor factor = on_host(task.factor, {task.dim_x, task.dim_x});
      factor_ = factor.to(options_);
      factor_transposed_ = factor.t().contiguous().to(options_);
    }
    if (!task.atoms.empty()) atoms_ = at::tensor(task.atoms, at::kLong).to(options_.dtype(at::kLong));
  }

  DeviceTask<T> pointers() const {
    const auto data = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr; };
    return {.dim_x = task_.dim_x,
            .tasks = task_.tasks,
            .dim = task_.dim(),
            .heads = task_.heads,
            .noise_std = task_.noise_std,
            .support = support_.const_data_ptr<double>(),
            .signal = signal_.const_data_ptr<double>(),
            .coefficient_scale = data(scale_),
            .factor = data(factor_),
            .factor_transposed = data(factor_transposed_),
            .atoms = atoms_.defined() ? atoms_.const_data_ptr<int64_t>() : nullptr};
  }

 private:
  static at::Tensor on_host(const std::vector<double>& numbers, at::IntArrayRef shape) {
    return at::tensor(numbers, at::kDouble).view(shape);
  }

  const TaskSpec& task_;
  const at::TensorOptions options_;
  at::Tensor support_, signal_, scale_, factor_, factor_transposed_, atoms_;
};

UpdateRule rule_of(const TrainingSpec& spec) {
  const Rule rule = spec.optimizer == "flow" ? Rule::flow : spec.optimizer == "sgd" ? Rule::sgd : Rule::adam;
  return {.rule = rule,
          .learning_rate = spec.learning_rate,
          .step_cap = spec.step_cap,
          .momentum = spec.momentum,
          .weight_decay = spec.optimizer == "adamw" ? spec.weight_decay : 0};
}

template <class T>
class SessionOf : public Session {
 public:
  SessionOf(const SessionSpec& spec, const SessionTensors& tensors)
      : spec_(spec), task_(spec_.task, tensors.parameters[0]), memory_(tensors.parameters[0]) {
    for (const at::Tensor& parameter : tensors.parameters) gradients_.push_back(at::zeros_like(parameter));
    progress_ = memory_.take<Progress>(1);
    set_trained(tensors);
    set_weights();
    set_estimate();
    if (conditional()) {
      set_conditional();
    } else {
      set_sampled();
    }
    set_judgement();
  }

  void enqueue_step(cudaStream_t stream) const override {
    if (factored()) C10_CUDA_CHECK(combine(factors_, weights_, stream));
    C10_CUDA_CHECK(prepare_estimate(estimate_, stream));
    if (conditional()) {
      C10_CUDA_CHECK(conditional_step(residual_, call_, stream));
    } else {
      C10_CUDA_CHECK(sampled_step(sampled_, call_, stream));
    }
    C10_CUDA_CHECK(finish_estimate(estimate_, stream));
    if (estimate_.task.atoms) {
      C10_CUDA_CHECK(average_over_symmetries(estimate_.task, estimate_.weights, estimate_.gradient, asymmetry_, stream));
    }
    if (factored()) C10_CUDA_CHECK(pull_back(factors_, estimate_.gradient, stream));
    C10_CUDA_CHECK(judge_step(judgement_, stream));
    if (!spec_.evaluates) C10_CUDA_CHECK(update_parameters(trained_, judgement_.rule, progress_, stream));
  }

 private:
  bool factored() const { return spec_.training.parameterisation == Parameterisation::factored; }
  bool conditional() const { return spec_.training.estimator == "conditional"; }

  void set_trained(const SessionTensors& tensors) {
    trained_.count = int(tensors.parameters.size());
    for (int i = 0; i < trained_.count; ++i) {
      trained_.sizes[i] = tensors.parameters[i].numel();
      trained_.parameters[i] = tensors.parameters[i].mutable_data_ptr<T>();
      trained_.gradients[i] = gradients_[i].mutable_data_ptr<T>();
    }
    for (size_t i = 0; i < tensors.state.size(); ++i) {
      const size_t kind = i / tensors.parameters.size(), which = i % tensors.parameters.size();
      (kind == 0 ? trained_.first : trained_.second)[which] = tensors.state[i].mutable_data_ptr<T>();
    }
  }

  // Combined weights and their gradient: what is trained itself, or room for what is made of it.
  void set_weights() {
    const TaskSpec& task = spec_.task;
    const int64_t kq = task.heads * task.dim() * task.dim(), ov = task.heads * task.tasks * task.dim();
    weights_ = {trained_.parameters[0], trained_.parameters[1]};
    estimate_.gradient = {trained_.gradients[0], trained_.gradients[1]};
    if (factored()) {
      factors_ = {task.heads, spec_.training.width, task.dim(), task.tasks, T(spec_.training.scale), trained_};
      weights_ = {memory_.take<T>(kq), memory_.take<T>(ov)};
      estimate_.gradient = {memory_.take_zeros<T>(kq), memory_.take_zeros<T>(ov)};
    }
    estimate_.weights = {weights_.kq, weights_.ov};
  }

  void set_estimate() {
    const TaskSpec& task = spec_.task;
    const int64_t d = task.dim_x, heads = task.heads;
    EstimateArrays<T>& e = estimate_;
    e.task = task_.pointers();
    e.conditional = conditional();
    e.share = 1 / double(spec_.training.n_prompts);
    e.rows = e.width = conditional() ? d : task.dim();
    e.folds_outputs = e.task.factor && !conditional();
    e.projections = memory_.take<T>(d * heads * e.rows);
    e.outputs = memory_.take<T>(task.tasks * heads * e.width);
    if (!e.task.factor) return;
    e.half = memory_.take<T>(heads * d * d);
    e.whitened = {memory_.take<T>(heads * e.rows * d), memory_.take<T>(heads * task.tasks * d)};
  }

  StepPrompts<T> prompts() const {
    const TaskSpec& task = spec_.task;
    return {.range = {spec_.training.seed, 0, spec_.first_prompt},
            .context_length = task.context_length,
            .dim_x = task.dim_x,
            .tasks = task.tasks,
            .heads = task.heads,
            .noise_std = T(task.noise_std),
            .noisy_target = task.noisy_target};
  }

  void set_sampled() {
    sampled_ = {.prompts = prompts(),
                .projections = estimate_.projections,
                .outputs = estimate_.outputs,
                .coefficient_scale = estimate_.task.coefficient_scale,
                .covariance_factor = estimate_.task.factor};
    set_call(SampledSums<T>::size(sampled_.prompts),
             sampled_workspace_bytes(sampled_, spec_.training.n_prompts, device_limits()));
    estimate_.output_sums = call_.sums + spec_.task.dim_x * spec_.task.heads * spec_.task.dim();
  }

  void set_conditional() {
    const TaskSpec& task = spec_.task;
    const int64_t d = task.dim_x, heads = task.heads, vectors = 1 + heads;
    EstimateArrays<T>& e = estimate_;
    e.residual_weights = memory_.take<T>(heads * vectors * d);
    e.overlap_weights = T(task.noise_std) > T(0) ? memory_.take<T>(heads * heads) : nullptr;
    e.grams = memory_.take<double>(task.tasks * vectors * vectors);
    e.losses = memory_.take<double>(task.tasks);
    residual_ = {.prompts = prompts(),
                 .projections = e.projections,
                 .residual_weights = e.residual_weights,
                 .overlap_weights = e.overlap_weights,
                 .covariate_outputs = e.outputs,
                 .covariance_factor = e.task.factor,
                 .covariance_factor_transposed = e.task.factor_transposed};
    set_call(ResidualSums<T>::size(residual_),
             conditional_workspace_bytes(residual_, spec_.training.n_prompts, device_limits()));
    e.products = call_.sums + d * heads * d;
    e.output_sums = e.products + residual_.pairs() * d;
    if (e.overlap_weights) {
      e.overlaps = e.output_sums;
      e.output_sums += heads * heads;
    }
  }

  void set_call(int64_t sums, int64_t workspace_bytes) {
    TORCH_CHECK_VALUE(workspace_bytes > 0, "a prompt of context_length=", spec_.task.context_length, " with ",
                      spec_.task.dim_x, " covariates, ", spec_.task.tasks, " tasks and ", spec_.task.heads,
                      " heads finds no room in the GPU's shared memory: run on the CPU");
    call_ = {.n_prompts = spec_.training.n_prompts,
             .steps_done = &progress_->step,
             .limits = device_limits(),
             .tf32 = spec_.tf32,
             .workspace = memory_.take<char>(workspace_bytes),
             .sums = memory_.take<double>(sums),
             .loss = memory_.take<double>(1)};
    estimate_.sums = call_.sums;
  }

  void set_judgement() {
    const TaskSpec& task = spec_.task;
    const bool noisy = conditional() && task.noisy_target;  // drawn prompts have their noise in the loss already
    if (estimate_.task.atoms) asymmetry_ = memory_.take<HeadAsymmetry>(task.heads);
    judgement_ = {.trained = trained_,
                  .blind_kq = conditional() ? weights_.kq : nullptr,
                  .heads = task.heads,
                  .dim = task.dim(),
                  .dim_x = task.dim_x,
                  .asymmetry = asymmetry_,
                  .loss = {.step = call_.loss,
                           .parts = estimate_.losses,
                           .n_parts = conditional() ? task.tasks : 0,
                           .share = estimate_.share,
                           .constant = noisy ? task.noise_std * task.noise_std * double(task.tasks) : 0},
                  .rule = rule_of(spec_.training),
                  .evaluates = spec_.evaluates,
                  .measures = memory_.take<Measure>(most_measures),
                  .progress = progress_};
  }

  const SessionSpec spec_;
  const TaskNumbers<T> task_;
  Memory memory_;
  TrainedParameters<T> trained_ = {};
  Factors<T> factors_ = {};
  DeviceWeights<T> weights_ = {};
  EstimateArrays<T> estimate_ = {};
  SampledParams<T> sampled_ = {};
  ResidualParams<T> residual_ = {};
  StepCall<T> call_ = {};
  HeadAsymmetry* asymmetry_ = nullptr;
  Judgement<T> judgement_ = {};
};

}  // namespace

void Session::begin(int64_t step, double flow_time, cudaStream_t stream) const {
  C10_CUDA_CHECK(begin_stretch(progress_, uint32_t(step), flow_time, stream));
}

Progress Session::read_progress(cudaStream_t stream) const {
  Progress progress;
  C10_CUDA_CHECK(cudaMemcpyAsync(&progress, progress_, sizeof progress, cudaMemcpyDeviceToHost, stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  return progress;
}

std::unique_ptr<Session> make_session(const SessionSpec& spec, const SessionTensors& tensors) {
  std::unique_ptr<Session> session;
  AT_DISPATCH_FLOATING_TYPES(tensors.parameters[0].scalar_type(), "training", [&] {
    session = std::make_unique<SessionOf<scalar_t>>(spec, tensors);
  });
  return session;
}

}  // namespace mhicl::cuda
