// softmax(Q K^T / sqrt(hd)) V for every head, forward and backward, without ever storing the scores of more than a block of
// queries: keys and values of a head (k compressed rows, or a whole sequence) stay in the cache.
//
// Forward keeps one number a row, log(sum(e^s)); backward makes the probabilities again:
//   dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(dO O)) / sqrt(hd),  dQ = dS K,  dK = dS^T Q.
#include "shim.h"

#include <type_traits>

#include "attention_products.h"
#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::data, linformer::floats, linformer::Mask, linformer::Packed, linformer::Queries, linformer::Scratch, linformer::Strided,
    linformer::table;

namespace {

// A task is one head of one sequence.
struct Shape {
  int64_t batch, keys, heads, head, width, length;
  const int64_t* numbers;       // of the rows of q among all B x length; null: all are there
  std::vector<int64_t> starts;  // [B + 1]: where the rows of each sequence begin in q

  Shape(const Tensor& q, const Tensor& k, int64_t h, const Queries& queries)
      : batch(k.size(0)), keys(k.size(1)), heads(h), head(k.size(2) / h), width(k.size(2)), length(queries.length),
        numbers(linformer::integers(queries.numbers)), starts(batch + 1) {
    const int64_t* end = numbers ? numbers + queries.numbers.numel() : nullptr;
    for (int64_t b = 0; b <= batch; b++) starts[b] = numbers ? std::lower_bound(numbers, end, b * length) - numbers : b * length;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head)); }
  int64_t columns() const { return linformer::filled(keys); }
  int64_t begin(int64_t task) const { return starts[task / heads]; }
  int64_t end(int64_t task) const { return starts[task / heads + 1]; }
  // Index of the first element of a row of q in the probabilities [B, h, length, keys].
  int64_t first(int64_t task, int64_t row) const {
    const int64_t position = (numbers ? numbers[row] : row) - task / heads * length;
    return (task * length + position) * keys;
  }
  void firsts(int64_t task, int64_t row, int64_t rows, std::vector<int64_t>& out) const {
    out.resize(rows);
    for (int64_t i = 0; i < rows; i++) out[i] = first(task, row + i);
  }
  // Offset in a head: of a row of q, and of the keys' first.
  int64_t of_query(int64_t task, int64_t row) const { return row * width + task % heads * head; }
  int64_t of_keys(int64_t task) const { return task / heads * keys * width + task % heads * head; }
  int64_t of_sum(int64_t task, int64_t row) const { return task % heads * starts[batch] + row; }
};

template <class Products, class Body>
void over_heads(const Shape& s, Body body) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) body(task, Products(s.keys, s.head, s.width));
    Products::release();
  });
}

// Calls body(row, rows) for the queries of a task, block by block.
template <class Products, class Body>
void over_blocks(const Shape& s, int64_t task, Body body) {
  const int64_t block = Products::block(s.columns()), end = s.end(task);
  for (int64_t row = s.begin(task); row < end; row += block) body(row, std::min(block, end - row));
}

// Room for the scores of a block, and for what they become: in fp32 the same memory, which the kernels of the softmax allow.
template <class Products>
struct Scores {
  using T = typename Products::T;
  Scratch<float> scores;
  Scratch<T> own;

  float* room(const Shape& s) {
    scores.resize(Products::block(s.columns()) * s.columns());
    return scores.data();
  }
  T* becomes() {
    if constexpr (std::is_same_v<T, float>) return scores.data();
    else return own.resize(scores.size()), own.data();
  }
};

linformer::Softmax softmax_of(const Shape& s, const bool* keep, const Mask& mask, int64_t task) {
  return {s.scale(), s.keys, s.columns(), keep ? keep + task / s.heads * s.keys : nullptr, mask};
}

template <class Products>
void forward_pass(const Shape& s, const Tensor& q, const Tensor& k, const Tensor& v, const bool* keep, const Mask& mask, const Tensor& out,
                  const Tensor& log_sum) {
  using E = typename Products::Element;
  over_heads<Products>(s, [&](int64_t task, Products products) {
    thread_local Scores<Products> made;
    thread_local std::vector<int64_t> firsts;
    float* scores = made.room(s);
    auto* probabilities = made.becomes();
    products.start_forward(data<E>(k) + s.of_keys(task), data<E>(v) + s.of_keys(task));
    const linformer::Softmax softmax = softmax_of(s, keep, mask, task);
    over_blocks<Products>(s, task, [&](int64_t row, int64_t rows) {
      const int64_t place = s.of_query(task, row);
      s.firsts(task, row, rows, firsts);
      products.scores(rows, data<E>(q) + place, scores);
      table<E>().softmax(softmax, scores, probabilities, floats(log_sum) + s.of_sum(task, row), rows, firsts.data());
      products.output(rows, probabilities, data<E>(out) + place);
    });
  });
}

template <class Products>
void backward_pass(const Shape& s, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& d_out,
                   const bool* keep, const Mask& mask, const Tensor& log_sum, const linformer::AttentionGradients& gradients) {
  using E = typename Products::Element;
  over_heads<Products>(s, [&](int64_t task, Products products) {
    thread_local Scores<Products> of_scores, of_gradients;
    thread_local Scratch<float> dots;
    thread_local std::vector<int64_t> firsts;
    float *scores = of_scores.room(s), *d_p = of_gradients.room(s);
    auto *p = of_scores.becomes(), *d_s = of_gradients.becomes();
    dots.resize(Products::block(s.columns()));
    const int64_t keys = s.of_keys(task);
    products.start_backward(data<E>(k) + keys, data<E>(v) + keys, data<E>(gradients.k) + keys, data<E>(gradients.v) + keys);
    const linformer::Softmax softmax = softmax_of(s, keep, mask, task);
    over_blocks<Products>(s, task, [&](int64_t row, int64_t rows) {
      const int64_t place = s.of_query(task, row);
      const auto *q_rows = data<E>(q) + place, *d_out_rows = data<E>(d_out) + place;
      s.firsts(task, row, rows, firsts);
      products.scores(rows, q_rows, scores);
      products.d_probabilities(rows, d_out_rows, d_p);
      table<E>().row_dots(d_out_rows, data<E>(out) + place, dots.data(), rows, s.head, s.width);
      table<E>().softmax_backward(softmax, scores, d_p, floats(log_sum) + s.of_sum(task, row), dots.data(), p, d_s, rows, firsts.data());
      products.d_queries(rows, d_s, data<E>(gradients.q) + place);
      products.add_to_gradients(rows, p, d_s, q_rows, d_out_rows);
    });
    products.finish_backward();
  });
}

// oneDNN's blocks are of AVX-512.
bool has_brgemm() {
  static const bool has_avx512 = linformer::kernels_named("avx512") != nullptr;
  return has_avx512;
}

template <class Class>
struct Chosen {
  using Products = Class;
};

// Calls body with the class whose products suit this tensor and processor.
template <class Body>
void by_products(const Tensor& q, Body body) {
  linformer::by_type(q, [&](auto element) {
    using E = decltype(element);
    if constexpr (std::is_same_v<E, float>)
      if (!has_brgemm()) return body(Chosen<Strided>{});
    body(Chosen<Packed<E>>{});
  });
}

const bool* kept(const Tensor& keep) { return keep.defined() ? keep.const_data_ptr<bool>() : nullptr; }

struct Attention : ag::Function<Attention> {
  // q [B, L, d], k and v [B, keys, d], keep [B, keys] bool or none -> [B, L, d].
  static Tensor forward(ag::AutogradContext* context, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                        const std::optional<Tensor>& keep_in, int64_t heads, const Mask* mask) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const Tensor q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
    const Tensor keep = keep_in ? keep_in->contiguous() : Tensor();
    const auto attended = linformer::attend(q, k, v, keep, heads, *mask, {q.size(1), Tensor()});
    context->save_for_backward({q, k, v, keep, attended.out, attended.log_sum});
    context->saved_data["heads"] = heads;
    linformer::save(context, *mask);
    return attended.out;
  }

  static ag::variable_list backward(ag::AutogradContext* context, ag::variable_list d_outs) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto saved = context->get_saved_variables();
    const auto d = linformer::attend_backward(d_outs[0], saved[0], saved[1], saved[2], saved[3], context->saved_data["heads"].toInt(),
                                              linformer::saved_mask(context), {saved[0].size(1), Tensor()}, {saved[4], saved[5]});
    return {d.q, d.k, d.v, Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

namespace linformer {

Attended attend(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keep, int64_t heads, const Mask& mask, const Queries& queries) {
  const Shape shape(q, k, heads, queries);
  const Attended attended{at::empty_like(q), at::empty({heads * shape.starts[shape.batch]}, at::kFloat)};
  by_products(q, [&](auto chosen) {
    forward_pass<typename decltype(chosen)::Products>(shape, q, k, v, kept(keep), mask, attended.out, attended.log_sum);
  });
  return attended;
}

AttentionGradients attend_backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keep, int64_t heads,
                                   const Mask& mask, const Queries& queries, const Attended& forward) {
  const Shape shape(q, k, heads, queries);
  const AttentionGradients gradients{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  by_products(q, [&](auto chosen) {
    backward_pass<typename decltype(chosen)::Products>(shape, q, k, v, forward.out, d_out.contiguous(), kept(keep), mask, forward.log_sum, gradients);
  });
  return gradients;
}

}  // namespace linformer

// Whether the blocks' products exist here for this type and width of a head: 2 by oneDNN's blocks, 1 by BLAS, for dropout alone: without it
// libtorch's own attention was faster, 0 if not.
extern "C" int linformer_attention_is_supported(int is_bf16, int64_t head) {
  LINFORMER_TRY
  if (head % linformer::kMultiple != 0) return 0;
  if (is_bf16) return has_brgemm() && at::native::cpublas::could_pack(at::kBFloat16) ? 2 : 0;
  return has_brgemm() ? 2 : sgemm_ != nullptr;
  LINFORMER_CATCH(0)
}

extern "C" void* linformer_attention(void* q, void* k, void* v, void* keep, int64_t heads, const Mask* mask) {
  LINFORMER_TRY
  const auto tensor = linformer::tensor_at;
  return new Tensor(Attention::apply(tensor(q), tensor(k), tensor(v), linformer::tensor_or_none(keep), heads, mask));
  LINFORMER_CATCH(nullptr)
}
