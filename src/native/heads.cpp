// Multi-head self-attention from the layer's input to the heads' outputs, compress first (paper, equation 7):
//   o_i = softmax(X Wq_i (E X Wk_i)^T / sqrt(hd)) F X Wv_i, biases after the compression.
// Without E it is full attention; without F, values are compressed by E: E X is made once. Of some rows of X alone: queries and
// outputs are theirs, keys and values everyone's.
#include "shim.h"

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::Mask, linformer::WeightPointers;

namespace {

// E X for every sequence: e [k, L], x [B, L, d] -> [B, k, d].
Tensor compress(const Tensor& e, const Tensor& x) { return at::bmm(e.unsqueeze(0).expand({x.size(0), e.size(0), e.size(1)}), x); }

struct Heads : ag::Function<Heads> {
  struct Plan {
    Tensor q, k, v;  // weights in the type of x
    Tensor e, f;     // [k, L] in the type of x, or undefined
    Tensor keep;     // [B, L] bool, or undefined
    Tensor numbers;  // [M] int64: the rows b L + position that are wanted, or undefined: all
    int64_t heads;
    Mask mask;
  };

  // x [B, L, d]; weights [d, d], biases [d] in fp32, projections [k, n] (their first L columns are used) -> [B, L, d], or
  // of some rows [M, d].
  static Tensor forward(ag::AutogradContext* context, const Tensor& x_in, const Tensor&, const Tensor& b_q, const Tensor&, const Tensor& b_k,
                        const Tensor&, const Tensor& b_v, const std::optional<Tensor>& e, const std::optional<Tensor>& f, const Plan* plan) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor x = x_in.contiguous();
    const auto type = x.scalar_type();
    // Zero at padding: a projection must not see it. Full attention masks the keys instead.
    const Tensor real = plan->keep.defined() && plan->e.defined() ? x * plan->keep.unsqueeze(-1).to(type) : x;
    const Tensor x_k = plan->e.defined() ? compress(plan->e, real) : x;
    const Tensor x_v = plan->f.defined() ? compress(plan->f, real) : x_k;
    const Tensor asked = plan->numbers.defined() ? x.view({-1, x.size(2)}).index_select(0, plan->numbers) : x;
    const Tensor q = at::linear(asked, plan->q, b_q.to(type)), k = at::linear(x_k, plan->k, b_k.to(type)), v = at::linear(x_v, plan->v, b_v.to(type));
    const Tensor mask_of_keys = plan->e.defined() ? Tensor() : plan->keep;
    const auto attended = linformer::attend(q, k, v, mask_of_keys, plan->heads, plan->mask, {x.size(1), plan->numbers});
    context->save_for_backward({asked, real, x_k, x_v, q, k, v, attended.out, attended.log_sum, plan->q, plan->k, plan->v, plan->e, plan->f, plan->keep,
                                plan->numbers});
    context->saved_data["heads"] = plan->heads;
    context->saved_data["n"] = e ? e->size(1) : 0;
    linformer::save(context, plan->mask);
    return attended.out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto s = context->get_saved_variables();
    const Tensor &asked = s[0], &real = s[1], &x_k = s[2], &x_v = s[3], &e = s[12], &f = s[13], &keep = s[14], &numbers = s[15];
    const auto d = linformer::attend_backward(d_outs[0], s[4], s[5], s[6], e.defined() ? Tensor() : keep, context->saved_data["heads"].toInt(),
                                              linformer::saved_mask(context), {real.size(1), numbers}, {s[7], s[8]});
    const int64_t width = real.size(2), n = context->saved_data["n"].toInt();
    const auto rows = [&](const Tensor& t) { return t.reshape({-1, width}); };
    const Tensor d_q = rows(d.q), d_k = rows(d.k), d_v = rows(d.v);
    Tensor d_x = at::mm(d_q, s[9]);
    if (numbers.defined()) d_x = linformer::spread_rows(d_x, numbers, real.size(0) * real.size(1));
    Tensor d_e, d_f;
    if (!e.defined()) {
      at::addmm_out(d_x, d_x, d_k, s[10]);
      at::addmm_out(d_x, d_x, d_v, s[11]);
    } else {
      Tensor d_x_k = at::mm(d_k, s[10]);
      if (f.defined()) {
        d_f = uncompress(f, at::mm(d_v, s[11]), real, keep, n, d_x, context->needs_input_grad(8));
      } else {
        at::addmm_out(d_x_k, d_x_k, d_v, s[11]);
      }
      d_e = uncompress(e, d_x_k, real, keep, n, d_x, context->needs_input_grad(7));
    }
    const auto weight = [&](const Tensor& d_y, const Tensor& input) { return linformer::weight_gradient(d_y, rows(input)); };
    return {d_x.view(real.sizes()),   weight(d_q, asked), linformer::column_sums(d_q), weight(d_k, x_k), linformer::column_sums(d_k), weight(d_v, x_v),
            linformer::column_sums(d_v), d_e,                d_f,                         Tensor()};
  }

  // From the gradient of E X, d_rows [B k, d]: adds that of X to d_x [B L, d] and gives that of E [k, n] in fp32.
  static Tensor uncompress(const Tensor& e, const Tensor& d_rows, const Tensor& x, const Tensor& keep, int64_t n, Tensor& d_x, bool wanted) {
    const int64_t batch = x.size(0), length = x.size(1), width = x.size(2), k = e.size(0);
    const Tensor d = d_rows.view({batch, k, width}), into = d_x.view({batch, length, width});
    if (keep.defined()) {
      into.add_(at::bmm(e.t().unsqueeze(0).expand({batch, length, k}), d).mul_(keep.unsqueeze(-1)));
    } else {
      for (int64_t i = 0; i < batch; i++) {
        Tensor part = into[i];
        at::addmm_out(part, part, e.t(), d[i]);
      }
    }
    if (!wanted) return Tensor();
    const Tensor d_e = at::bmm(d, x.transpose(1, 2)).sum(0, false, at::kFloat);
    return n == length ? d_e : at::constant_pad_nd(d_e, {0, n - length});
  }
};

}  // namespace

extern "C" void* linformer_heads(void* x, const WeightPointers* q, void* b_q, const WeightPointers* k, void* b_k, const WeightPointers* v, void* b_v,
                                 const WeightPointers* e, const WeightPointers* f, void* keep, void* numbers, int64_t heads, const Mask* mask) {
  LINFORMER_TRY
  using linformer::in_type, linformer::tensor_at;
  const Tensor& input = tensor_at(x);
  const auto type = input.scalar_type();
  const auto columns = [&](const WeightPointers* w) { return w ? in_type(*w, type).narrow(1, 0, input.size(1)) : Tensor(); };
  const auto parameter = [](const WeightPointers* w) { return w ? std::optional<Tensor>(tensor_at(w->parameter)) : std::nullopt; };
  const Tensor kept = keep ? tensor_at(keep).contiguous() : Tensor();
  const Tensor rows = numbers ? linformer::row_numbers(tensor_at(numbers), input.size(0) * input.size(1)) : Tensor();
  const Heads::Plan plan{in_type(*q, type), in_type(*k, type), in_type(*v, type), columns(e), columns(f), kept, rows, heads, *mask};
  return new Tensor(Heads::apply(input, tensor_at(q->parameter), tensor_at(b_q), tensor_at(k->parameter), tensor_at(b_k), tensor_at(v->parameter),
                                 tensor_at(b_v), parameter(e), parameter(f), &plan));
  LINFORMER_CATCH(nullptr)
}
