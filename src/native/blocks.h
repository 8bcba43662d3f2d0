// The parts that the blocks are made of: each works below autograd, on CPU tensors in fp32 or bf16. Parameters that are
// added or multiplied element by element (biases, LayerNorm) are fp32 whatever the rows are.
#pragma once
#include <torch/csrc/autograd/custom_function.h>

#include "rows.h"

namespace linformer {

// A weight as it crosses the C face: the fp32 parameter, its bf16 copy (empty until it is first asked for), and the version
// of the parameter that was copied (int64 [1]).
struct WeightPointers {
  void *parameter, *copy, *version;
};

// The weight in the type of the activations; the copy is made anew when the parameter has changed since.
at::Tensor in_type(const WeightPointers& weight, at::ScalarType type);

struct Normed {
  at::Tensor out, sum, mean, rstd;
};
// out = LayerNorm(sum), sum = residual + dropout(y + bias), over the last dimension. y's memory is taken for the sum; bias and
// residual may be undefined, and so may numbers [rows] int64: those of the rows in the tensor that the mask is of.
Normed drop_add_norm(const at::Tensor& y, const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& gamma, const at::Tensor& beta,
                     double eps, const Mask& mask, const at::Tensor& numbers = {});

struct NormGradients {
  at::Tensor residual, y;  // one tensor when nothing is dropped
  at::Tensor gamma, beta, bias;
};
NormGradients drop_add_norm_backward(const at::Tensor& d_out, const at::Tensor& sum, const at::Tensor& gamma, const at::Tensor& mean,
                                     const at::Tensor& rstd, const Mask& mask, const at::Tensor& numbers = {});

// GELU(h + bias), h [rows, f], into `out`, which may be h's memory, and gives it.
at::Tensor bias_gelu(const at::Tensor& h, const at::Tensor& bias, const at::Tensor& out);
// Gives the gradient of the bias. d_h may be d_out's memory; `out`, if defined (it may be h's memory), receives GELU(h + bias).
at::Tensor bias_gelu_backward(const at::Tensor& h, const at::Tensor& bias, const at::Tensor& d_out, const at::Tensor& d_h, const at::Tensor& out);

// d_y^T x, the gradient of a weight [out, in] from d_y [rows, out] and x [rows, in]: in fp32 where AMX made it, else in their type.
at::Tensor weight_gradient(const at::Tensor& d_y, const at::Tensor& x);

// [rows, width] -> [width] in fp32: the gradient of a bias.
at::Tensor column_sums(const at::Tensor& x);

// Rows of d [M, width] at their numbers [M] among `count` rows, zeros elsewhere: the way back of index_select.
at::Tensor spread_rows(const at::Tensor& d, const at::Tensor& numbers, int64_t count);
// Numbers of rows below `count`, contiguous: an error if they do not ascend.
at::Tensor row_numbers(const at::Tensor& numbers, int64_t count);

// Which queries there are: all rows of the sequences of `length`, or those whose `numbers` (b length + position) are given.
struct Queries {
  int64_t length;
  at::Tensor numbers;
};

struct Attended {
  at::Tensor out, log_sum;
};
// softmax(Q K^T / sqrt(hd)) V: q [B, L, d] or of some rows [M, d], k and v [B, m, d], keep [B, m] bool or undefined.
Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& keep, int64_t heads, const Mask& mask,
                const Queries& queries);

struct AttentionGradients {
  at::Tensor q, k, v;
};
AttentionGradients attend_backward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& keep,
                                   int64_t heads, const Mask& mask, const Queries& queries, const Attended& forward);

// Dropout between a block's forward and backward pass.
void save(torch::autograd::AutogradContext* context, const Mask& mask);
Mask saved_mask(const torch::autograd::AutogradContext* context);

}  // namespace linformer
