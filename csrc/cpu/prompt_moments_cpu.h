// Moments of the attention probabilities, in the kernels' own types: what the CPU operators are built from.
#pragma once

#include <functional>
#include <optional>

#include <ATen/ATen.h>

#include "../storage.h"

namespace mhicl {

struct Moments {
  at::Tensor moments;   // (N, H, D)
  at::Tensor overlaps;  // (N, H, H), or undefined
  at::Tensor jacobian;  // (N, O, H, D), or undefined
};

// Called for each range of prompts [begin, end) when its moments are there, still in cache, on the thread that made them.
using AfterMoments = std::function<void(const at::Tensor& moments, int64_t begin, int64_t end)>;

// context (N, L, D) of any stride and floating dtype; query (N, D), kq (H, D, D) and directions (H, O, D) in T.
template <class T>
Moments moments_cpu(const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                    const std::optional<at::Tensor>& lengths, bool want_overlaps,
                    const std::optional<at::Tensor>& directions, const AfterMoments& after);

struct MomentsGradient {
  at::Tensor context, query, kq;  // undefined where not needed
};

template <class T>
MomentsGradient moments_backward_cpu(const at::Tensor& grad_moments, const std::optional<at::Tensor>& grad_overlaps,
                                     const at::Tensor& context, const at::Tensor& query, const at::Tensor& kq,
                                     const std::optional<at::Tensor>& lengths, bool needs_context, bool needs_query,
                                     bool needs_kq);

}  // namespace mhicl
