// c10d, the engine under PyTorch's DistributedDataParallel: TCPStore, the Gloo process group and the Reducer.
#include "shim.h"

#include <ATen/ATen.h>
#include <c10/util/Logging.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_set>

using at::Tensor;
using c10::intrusive_ptr;
using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// gloo's own headers are replaced by gloo_headers/: another layout would be another libtorch.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "ProcessGroupGloo has another layout than libtorch 2.11.0's");

namespace {
double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }

struct Store {
  intrusive_ptr<c10d::Store> store;
};

struct Group {
  intrusive_ptr<c10d::ProcessGroup> group;
  int rank, size;

  void all_gather(Tensor output, Tensor input) const { group->_allgather_base(output, input)->wait(); }

  // Sums a contiguous tensor over the ranks in the order of the ranks, ((0 + 1) + 2) + ..., in place: what one process gets that
  // adds up the same parts one after the other, to the last bit. Every rank sums the part that it is sent by all
  // and hands it to all: as many bytes on the wire as a ring.
  void ordered_sum(const Tensor& tensor) {
    at::NoGradGuard no_grad;
    const Tensor flat = tensor.view({-1});
    const int64_t count = flat.numel(), part = count / size, body = part * size;
    if (body > 0) {
      Tensor whole = flat.narrow(0, 0, body);
      if (scratch.numel() < body || scratch.scalar_type() != flat.scalar_type()) scratch = at::empty({body}, flat.options());
      Tensor rows = scratch.narrow(0, 0, body);
      std::vector<int64_t> none;
      group->alltoall_base(rows, whole, none, none)->wait();
      all_gather(whole, sum_of_rows(rows.view({size, part})));
    }
    if (count > body) {
      const Tensor tail = flat.narrow(0, body, count - body);
      const Tensor rows = at::empty({size, count - body}, flat.options());
      all_gather(rows.view({-1}), tail.contiguous());
      tail.copy_(sum_of_rows(rows));
    }
  }

 private:
  Tensor scratch;

  static Tensor sum_of_rows(const Tensor& rows) {
    Tensor sum = rows[0];
    for (int64_t i = 1; i < rows.size(0); i++) sum.add_(rows[i]);
    return sum;
  }
};

// What the communication of one backward pass cost.
struct Times {
  double busy = 0;     // seconds in which gradients were on the way
  double exposed = 0;  // of these: after the last gradient was known
  int64_t bytes = 0;   // of gradients
};

// Reduces buckets one after the other in a thread of its own, so that all ranks do it in one order.
class Worker {
 public:
  explicit Worker(std::shared_ptr<Group> group) : group_(std::move(group)), thread_([this] { run(); }) {}

  ~Worker() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    ready_.notify_all();
    thread_.join();
  }

  intrusive_ptr<c10::ivalue::Future> submit(const Tensor& bucket) {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back({bucket, future});
      submitted_ = Clock::now();
    }
    ready_.notify_all();
    return future;
  }

  Times take_times() {
    std::lock_guard<std::mutex> lock(mutex_);
    Times times = times_;
    times.exposed = std::max(0.0, seconds(finished_ - submitted_));
    times_ = {};
    finished_ = submitted_ = {};
    return times;
  }

 private:
  struct Job {
    Tensor bucket;
    intrusive_ptr<c10::ivalue::Future> future;
  };

  std::shared_ptr<Group> group_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Job> jobs_;
  bool stop_ = false;
  Times times_;
  Clock::time_point submitted_, finished_;
  std::thread thread_;  // last: it uses all the others

  void run() {
    for (;;) {
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ready_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      const auto begun = Clock::now();
      std::exception_ptr error;
      try {
        group_->ordered_sum(job.bucket);
      } catch (...) {
        error = std::current_exception();
      }
      {
        std::lock_guard<std::mutex> lock(mutex_);
        finished_ = Clock::now();
        times_.busy += seconds(finished_ - begun);
        times_.bytes += job.bucket.nbytes();
      }
      if (error)
        job.future->setError(error);
      else
        job.future->markCompleted(job.bucket);
    }
  }
};

// Sums instead of the Reducer's mean: the loss is divided by the targets of all ranks beforehand. On a GPU the process group's
// own all-reduce on its own stream takes the worker's place.
class SumHook : public c10d::CommHookInterface {
 public:
  SumHook(std::shared_ptr<Group> group, std::shared_ptr<Worker> worker) : group_(std::move(group)), worker_(std::move(worker)) {}

  intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override {
    if (bucket.getBuffer().is_cpu()) return worker_->submit(bucket.getBuffer());
    std::vector<Tensor> tensors{bucket.getBufferRef()};
    return group_->group->allreduce(tensors)->getFuture();
  }

  Tensor parseHookResult(const c10::IValue& result) override { return c10d::detail::parseCppCommHookResult(result); }

 private:
  std::shared_ptr<Group> group_;
  std::shared_ptr<Worker> worker_;
};

struct Reducer {
  std::shared_ptr<Worker> worker;
  std::shared_ptr<c10d::Reducer> reducer;
};

std::vector<Tensor> list(void** tensors, int count) {
  std::vector<Tensor> out;
  out.reserve(count);
  for (int i = 0; i < count; i++) out.push_back(*static_cast<Tensor*>(tensors[i]));
  return out;
}

c10d::Store& store_of(void* store) { return *static_cast<Store*>(store)->store; }
Group& group_of(void* group) { return **static_cast<std::shared_ptr<Group>*>(group); }
}  // namespace

// c10d tells of every attempt to connect; what matters comes as an error. Its flight recorder, one per process, writes to a map
// outside its own lock: two threads that communicate at once would crash in it. What the user has set stays.
static void settle_environment() {
  static const bool done = [] {
    setenv("TORCH_CPP_LOG_LEVEL", "ERROR", 0);
    setenv("TORCH_FR_BUFFER_SIZE", "0", 0);
    c10::initLogging();
    return true;
  }();
  (void)done;
}

// A client of the store at host:port, which also serves it if `serve`. `port` 0 takes a free one, which is written back.
extern "C" void* linformer_store_open(const char* host, int* port, int serve, int64_t timeout_ms) {
  LINFORMER_TRY
  settle_environment();
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(*port);
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = Milliseconds(timeout_ms);
  auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
  *port = store->getPort();
  return new Store{store};
  LINFORMER_CATCH(nullptr)
}

// The store itself, an `intrusive_ptr<c10d::Store>*`, for nccl.cpp.
extern "C" void* linformer_store_shared(void* store) { return &static_cast<Store*>(store)->store; }

extern "C" void linformer_store_free(void* store) { delete static_cast<Store*>(store); }

extern "C" int linformer_store_set(void* store, const char* key, const uint8_t* value, int64_t size) {
  LINFORMER_TRY
  store_of(store).set(key, std::vector<uint8_t>(value, value + size));
  return 0;
  LINFORMER_CATCH(-1)
}

// Waits for a key up to the time limit; its value lives until the next call on this thread.
extern "C" const uint8_t* linformer_store_get(void* store, const char* key, int64_t timeout_ms, int64_t* size) {
  LINFORMER_TRY
  static thread_local std::vector<uint8_t> value;
  store_of(store).wait({key}, Milliseconds(timeout_ms));
  value = store_of(store).get(key);
  *size = static_cast<int64_t>(value.size());
  value.push_back(0);
  return value.data();
  LINFORMER_CATCH(nullptr)
}

// 1: the key is there, 0: it is not.
extern "C" int linformer_store_check(void* store, const char* key) {
  LINFORMER_TRY
  return store_of(store).check({key}) ? 1 : 0;
  LINFORMER_CATCH(-1)
}

// Adds to a counter; what it is then, or a negative number.
extern "C" int64_t linformer_store_add(void* store, const char* key, int64_t value) {
  LINFORMER_TRY
  return store_of(store).add(key, value);
  LINFORMER_CATCH(-1)
}

// `device` is an address of this machine, or the name of an interface if `by_interface`.
extern "C" void* linformer_group_new(void* store, const char* prefix, int rank, int size, const char* device, int by_interface,
                                     int64_t timeout_ms) {
  LINFORMER_TRY
  auto below = c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), static_cast<Store*>(store)->store);
  auto options = c10d::ProcessGroupGloo::Options::create(Milliseconds(timeout_ms));
  options->devices.push_back(by_interface ? c10d::ProcessGroupGloo::createDeviceForInterface(device)
                                          : c10d::ProcessGroupGloo::createDeviceForHostname(device));
  auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(below, rank, size, options);
  auto group = c10::make_intrusive<c10d::ProcessGroup>(below, rank, size);
  group->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::GLOO, intrusive_ptr<c10d::Backend>(gloo));
  group->setDefaultBackend(c10d::ProcessGroup::GLOO);
  auto shared = std::make_shared<Group>();
  shared->group = group;
  shared->rank = rank;
  shared->size = size;
  return new std::shared_ptr<Group>(shared);
  LINFORMER_CATCH(nullptr)
}

// Takes an `intrusive_ptr<c10d::Backend>*` that nccl.cpp made: tensors on GPUs go through it.
extern "C" int linformer_group_add_cuda(void* group, void* backend) {
  LINFORMER_TRY
  const std::unique_ptr<intrusive_ptr<c10d::Backend>> taken(static_cast<intrusive_ptr<c10d::Backend>*>(backend));
  group_of(group).group->setBackend(c10::DeviceType::CUDA, c10d::ProcessGroup::NCCL, *taken);
  return 0;
  LINFORMER_CATCH(-1)
}

extern "C" void linformer_group_free(void* group) { delete static_cast<std::shared_ptr<Group>*>(group); }

// output `[size * m]` receives the input `[m]` of every rank in the order of the ranks.
extern "C" int linformer_group_all_gather(void* group, void* output, void* input) {
  LINFORMER_TRY
  group_of(group).all_gather(*static_cast<Tensor*>(output), *static_cast<Tensor*>(input));
  return 0;
  LINFORMER_CATCH(-1)
}

extern "C" int linformer_group_ordered_sum(void* group, void* tensor) {
  LINFORMER_TRY
  group_of(group).ordered_sum(*static_cast<Tensor*>(tensor));
  return 0;
  LINFORMER_CATCH(-1)
}

extern "C" int linformer_group_broadcast(void* group, void* tensor, int root) {
  LINFORMER_TRY
  at::NoGradGuard no_grad;
  std::vector<Tensor> tensors{static_cast<Tensor*>(tensor)->detach()};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  group_of(group).group->broadcast(tensors, options)->wait();
  return 0;
  LINFORMER_CATCH(-1)
}

// Which of the leaves the graph behind `root` reaches: reached[i] is set to 0 or 1.
extern "C" int linformer_graph_reaches(void* root, void** leaves, int count, uint8_t* reached) {
  LINFORMER_TRY
  std::unordered_set<torch::autograd::Node*> seen;
  std::vector<torch::autograd::Node*> left;
  if (auto node = static_cast<Tensor*>(root)->grad_fn()) left.push_back(node.get());
  while (!left.empty()) {
    auto* node = left.back();
    left.pop_back();
    if (!seen.insert(node).second) continue;
    for (const auto& edge : node->next_edges())
      if (edge.function) left.push_back(edge.function.get());
  }
  for (int i = 0; i < count; i++) {
    const auto leaf = torch::autograd::impl::try_get_grad_accumulator(*static_cast<Tensor*>(leaves[i]));
    reached[i] = leaf && seen.count(leaf.get());
  }
  return 0;
  LINFORMER_CATCH(-1)
}

// Buckets of about `bucket_bytes` in the reverse order of the parameters, the first one smaller: about the order in which
// gradients become known. Gradients live in the buckets.
extern "C" void* linformer_reducer_new(void* group, void** parameters, int count, int64_t first_bytes, int64_t bucket_bytes) {
  LINFORMER_TRY
  auto shared = *static_cast<std::shared_ptr<Group>*>(group);
  std::vector<Tensor> all = list(parameters, count), backwards(all.rbegin(), all.rend());
  auto buckets = std::get<0>(c10d::compute_bucket_assignment_by_size(
      backwards, {static_cast<size_t>(first_bytes), static_cast<size_t>(bucket_bytes)}));
  for (auto& bucket : buckets)
    for (auto& index : bucket) index = all.size() - 1 - index;
  auto reducer = std::make_unique<Reducer>();
  reducer->worker = std::make_shared<Worker>(shared);
  reducer->reducer = std::make_shared<c10d::Reducer>(all, buckets, shared->group, std::vector<bool>(all.size(), false), bucket_bytes,
                                                     /*find_unused_parameters=*/false, /*gradient_as_bucket_view=*/true,
                                                     std::unordered_map<size_t, std::string>{}, first_bytes,
                                                     /*skip_all_reduce_unused_params=*/false, /*use_python_reducer=*/false,
                                                     std::vector<int64_t>{});
  reducer->reducer->register_comm_hook(std::make_unique<SumHook>(shared, reducer->worker));
  return reducer.release();
  LINFORMER_CATCH(nullptr)
}

extern "C" void linformer_reducer_free(void* reducer) {
  try {
    delete static_cast<Reducer*>(reducer);
  } catch (...) {
    // Its own destructor may throw; there is nothing left to save.
  }
}

// The next backward pass reduces the gradients, and what stood in them before.
extern "C" int linformer_reducer_prepare(void* reducer) {
  LINFORMER_TRY
  static_cast<Reducer*>(reducer)->reducer->prepare_for_backward({});
  return 0;
  LINFORMER_CATCH(-1)
}

// Seconds on the wire, of these exposed, and bytes, since the last call.
extern "C" int linformer_reducer_times(void* reducer, double* out) {
  LINFORMER_TRY
  const Times times = static_cast<Reducer*>(reducer)->worker->take_times();
  out[0] = times.busy;
  out[1] = times.exposed;
  out[2] = static_cast<double>(times.bytes);
  return 0;
  LINFORMER_CATCH(-1)
}
