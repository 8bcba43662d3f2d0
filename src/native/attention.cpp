// softmax(Q K^T / sqrt(hd)) V for every head, forward and backward, without ever storing the scores of more than a block of
// queries: keys and values of a head (k compressed rows, or a whole sequence) stay in the cache.
//
// Forward keeps one number a row, log(sum(e^s)); backward makes the probabilities again:
//   dV = P^T dO,  dP = dO V^T,  dS = P (dP - rowsum(dO O)) / sqrt(hd),  dQ = dS K,  dK = dS^T Q.
#include "shim.h"

#include <ATen/native/CPUBlas.h>

#include "blocks.h"

using at::Tensor;
namespace ag = torch::autograd;
using linformer::by_type, linformer::data, linformer::floats, linformer::Mask, linformer::Queries, linformer::Stored, linformer::table;

// The product of BLAS, which libtorch brings along; null if it does not.
extern "C" __attribute__((weak)) void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n, const int* k, const float* alpha,
                                             const float* a, const int* lda, const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace {

constexpr int64_t kBlock = 64;  // queries at a time
constexpr int64_t kMultiple = 32;

// MKL promises the same bits at every call for memory at multiples of 64 bytes, as libtorch's is, and not for other.
template <class T>
struct Aligned {
  using value_type = T;
  Aligned() = default;
  template <class U>
  Aligned(const Aligned<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t{64}); }
  friend bool operator==(const Aligned&, const Aligned&) { return true; }
  friend bool operator!=(const Aligned&, const Aligned&) { return false; }
};
template <class T>
using Scratch = std::vector<T, Aligned<T>>;

int64_t filled(int64_t n) { return (n + kMultiple - 1) / kMultiple * kMultiple; }

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
  int64_t columns() const { return filled(keys); }
  int64_t begin(int64_t task) const { return starts[task / heads]; }
  int64_t end(int64_t task) const { return starts[task / heads + 1]; }
  // Index of the first element of a row of q in the probabilities [B, h, length, keys].
  int64_t first(int64_t task, int64_t row) const {
    const int64_t position = (numbers ? numbers[row] : row) - task / heads * length;
    return (task * length + position) * keys;
  }
  void firsts(int64_t task, int64_t row, int64_t rows, int64_t* out) const {
    for (int64_t i = 0; i < rows; i++) out[i] = first(task, row + i);
  }
  // Offset in a head: of a row of q, and of the keys' first.
  int64_t of_query(int64_t task, int64_t row) const { return row * width + task % heads * head; }
  int64_t of_keys(int64_t task) const { return task / heads * keys * width + task % heads * head; }
  int64_t of_sum(int64_t task, int64_t row) const { return task % heads * starts[batch] + row; }
};

// oneDNN's blocks are of AVX-512.
bool has_brgemm() {
  static const bool has_avx512 = linformer::kernels_named("avx512") != nullptr;
  return has_avx512;
}

// C [rows x n] = A [rows x inner] B [inner x n] with B packed; lda is A's stride.
template <class E>
void product(int64_t rows, int64_t n, int64_t inner, int64_t lda, const Stored<E>* a, const Stored<E>* b, float* c, bool add) {
  constexpr bool is_vnni = !std::is_same_v<E, float>;
  if constexpr (!is_vnni) {
    if (!has_brgemm()) {
      // Column by column: C^T = B^T A^T.
      const int m = static_cast<int>(n), columns = static_cast<int>(rows), k = static_cast<int>(inner), stride = static_cast<int>(lda);
      const float one = 1.0f, beta = add ? 1.0f : 0.0f;
      return sgemm_("N", "N", &m, &columns, &k, &one, b, &m, a, &stride, &beta, c, &m);
    }
  }
  at::native::cpublas::brgemm(rows, n, inner, lda, n, n, add, reinterpret_cast<const E*>(a), reinterpret_cast<const E*>(b), c, is_vnni);
}

template <class E, class Body>
void over_heads(const Shape& s, Body body) {
  at::parallel_for(0, s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) body(task);
    if (has_brgemm()) at::native::cpublas::brgemm_release(!std::is_same_v<E, float>);
  });
}

linformer::Softmax softmax_of(const Shape& s, const bool* keep, const Mask& mask, int64_t task) {
  return {s.scale(), s.keys, s.columns(), keep ? keep + task / s.heads * s.keys : nullptr, mask};
}

template <class E>
void forward_pass(const Shape& s, const Tensor& q, const Tensor& k, const Tensor& v, const bool* keep, const Mask& mask, const Tensor& out,
                  const Tensor& log_sum) {
  using T = Stored<E>;
  const int64_t columns = s.columns();
  over_heads<E>(s, [&](int64_t task) {
    thread_local Scratch<T> keys, values, probabilities;
    thread_local Scratch<float> scores, result;
    keys.resize(s.head * columns), values.resize(columns * s.head), probabilities.resize(kBlock * columns);
    scores.resize(kBlock * columns), result.resize(kBlock * s.head);
    table<E>().pack_transposed(data<E>(k) + s.of_keys(task), s.width, keys.data(), s.head, s.keys, columns);
    table<E>().pack(data<E>(v) + s.of_keys(task), s.width, values.data(), s.keys, s.head, columns);
    const linformer::Softmax softmax = softmax_of(s, keep, mask, task);
    for (int64_t row = s.begin(task); row < s.end(task); row += kBlock) {
      const int64_t rows = std::min(kBlock, s.end(task) - row);
      int64_t firsts[kBlock];
      s.firsts(task, row, rows, firsts);
      product<E>(rows, columns, s.head, s.width, data<E>(q) + s.of_query(task, row), keys.data(), scores.data(), false);
      table<E>().softmax(softmax, scores.data(), probabilities.data(), floats(log_sum) + s.of_sum(task, row), rows, firsts);
      product<E>(rows, s.head, columns, columns, probabilities.data(), values.data(), result.data(), false);
      table<E>().from_float(result.data(), s.head, data<E>(out) + s.of_query(task, row), s.width, rows, s.head);
    }
  });
}

template <class E>
void backward_pass(const Shape& s, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& d_out,
                   const bool* keep, const Mask& mask, const Tensor& log_sum, const linformer::AttentionGradients& gradients) {
  using T = Stored<E>;
  const int64_t columns = s.columns();
  over_heads<E>(s, [&](int64_t task) {
    thread_local Scratch<T> keys, keys_t, values_t, p, d_s, p_t, d_s_t, queries, d_outs;
    thread_local Scratch<float> scores, d_p, d_q, d_k, d_v, dots;
    for (auto* m : {&keys, &keys_t, &values_t}) m->resize(columns * s.head);
    for (auto* m : {&p, &d_s, &p_t, &d_s_t}) m->resize(kBlock * columns);
    for (auto* m : {&queries, &d_outs}) m->resize(kBlock * s.head);
    for (auto* m : {&scores, &d_p}) m->resize(kBlock * columns);
    for (auto* m : {&d_k, &d_v}) m->assign(columns * s.head, 0.0f);
    d_q.resize(kBlock * s.head), dots.resize(kBlock);
    const auto& kernels = table<E>();
    const T *k_head = data<E>(k) + s.of_keys(task), *v_head = data<E>(v) + s.of_keys(task);
    kernels.pack_transposed(k_head, s.width, keys_t.data(), s.head, s.keys, columns);
    kernels.pack_transposed(v_head, s.width, values_t.data(), s.head, s.keys, columns);
    kernels.pack(k_head, s.width, keys.data(), s.keys, s.head, columns);
    const linformer::Softmax softmax = softmax_of(s, keep, mask, task);
    for (int64_t row = s.begin(task); row < s.end(task); row += kBlock) {
      const int64_t rows = std::min(kBlock, s.end(task) - row), rows_filled = filled(rows), place = s.of_query(task, row);
      int64_t firsts[kBlock];
      s.firsts(task, row, rows, firsts);
      const T *q_rows = data<E>(q) + place, *d_out_rows = data<E>(d_out) + place;
      product<E>(rows, columns, s.head, s.width, q_rows, keys_t.data(), scores.data(), false);
      product<E>(rows, columns, s.head, s.width, d_out_rows, values_t.data(), d_p.data(), false);
      kernels.row_dots(d_out_rows, data<E>(out) + place, dots.data(), rows, s.head, s.width);
      kernels.softmax_backward(softmax, scores.data(), d_p.data(), floats(log_sum) + s.of_sum(task, row), dots.data(), p.data(), d_s.data(),
                               rows, firsts);
      if (rows < rows_filled)
        for (auto* m : {&p, &d_s}) std::fill(m->begin() + rows * columns, m->begin() + rows_filled * columns, T{});
      product<E>(rows, s.head, columns, columns, d_s.data(), keys.data(), d_q.data(), false);
      kernels.from_float(d_q.data(), s.head, data<E>(gradients.q) + place, s.width, rows, s.head);
      kernels.transpose(p.data(), p_t.data(), rows_filled, columns);
      kernels.transpose(d_s.data(), d_s_t.data(), rows_filled, columns);
      kernels.pack(q_rows, s.width, queries.data(), rows, s.head, rows_filled);
      kernels.pack(d_out_rows, s.width, d_outs.data(), rows, s.head, rows_filled);
      product<E>(columns, s.head, rows_filled, rows_filled, p_t.data(), d_outs.data(), d_v.data(), true);
      product<E>(columns, s.head, rows_filled, rows_filled, d_s_t.data(), queries.data(), d_k.data(), true);
    }
    kernels.from_float(d_k.data(), s.head, data<E>(gradients.k) + s.of_keys(task), s.width, s.keys, s.head);
    kernels.from_float(d_v.data(), s.head, data<E>(gradients.v) + s.of_keys(task), s.width, s.keys, s.head);
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
  by_type(q, [&](auto element) { forward_pass<decltype(element)>(shape, q, k, v, kept(keep), mask, attended.out, attended.log_sum); });
  return attended;
}

AttentionGradients attend_backward(const Tensor& d_out, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& keep, int64_t heads,
                                   const Mask& mask, const Queries& queries, const Attended& forward) {
  const Shape shape(q, k, heads, queries);
  const AttentionGradients gradients{at::empty_like(q), at::empty_like(k), at::empty_like(v)};
  by_type(q, [&](auto element) {
    backward_pass<decltype(element)>(shape, q, k, v, forward.out, d_out.contiguous(), kept(keep), mask, forward.log_sum, gradients);
  });
  return gradients;
}

}  // namespace linformer

// Whether the blocks' products exist here for this type and width of a head: 2 by oneDNN's blocks, 1 by BLAS, which is slower than
// libtorch's own attention where that can be had, 0 if not.
extern "C" int linformer_attention_is_supported(int is_bf16, int64_t head) {
  LINFORMER_TRY
  if (head % kMultiple != 0) return 0;
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
