// Batch normalization with the exchange through shared memory, included by node.cpp. See norm/backends/fused.py and
// cpu_compiled.py, which do the same from Python, with the same bits.

struct Meeting { // as in kernels.c
    char *base;
    long rank, W, capacity;
    uint64_t round;
    double slice_s;
};
static long (*exchange_row)(Meeting *, const void *, const double *, long);
static const double *(*arrived_rows)(Meeting *);
static long (*row_stride)(Meeting *);
static double **clock_s; // where exchanges add their seconds, while somebody measures

static double now_s() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// The rows of all workers.
struct Rows {
    const double *first;
    long W = 1, stride = 0;
};

// ExchangeOfLayer of shared_memory.py, or None where this worker is the only one.
struct Exchange {
    Meeting *meeting = nullptr;
    int64_t *headers[2] = {nullptr, nullptr};
    Held object;

    explicit Exchange(PyObject *given) : object(Py_NewRef(given)) {
        if (given == Py_None) return;
        meeting = static_cast<Meeting *>(PyLong_AsVoidPtr(PyTuple_GET_ITEM(given, 0)));
        for (int i = 0; i < 2; i++)
            headers[i] = static_cast<int64_t *>(PyLong_AsVoidPtr(PyTuple_GET_ITEM(given, 1 + i)));
        if (PyErr_Occurred()) throw python_error();
    }

    // Whether the process group is gone, and others can't be met.
    bool is_over() const { return meeting && !meeting->base; }

    // One exchange. Waiting longer than half a second, and saying why others don't come, is left to Python.
    Rows gather(const double *row, long length, bool is_backward) {
        if (!meeting) return {row};
        at::RecordFunction range(at::RecordScope::FUNCTION); // timing.EXCHANGE in traces of torch.profiler
        if (range.isActive()) range.before("norm::exchange");
        double began = now_s();
        int64_t *header = headers[is_backward];
        header[1]++; // the number of the call; see call_headers.py
        long status = exchange_row(meeting, header, row, length);
        if (status != 0) settle(is_backward, status);
        if (*clock_s) **clock_s += now_s() - began;
        return {arrived_rows(meeting), meeting->W, row_stride(meeting)};
    }

    void settle(bool is_backward, long status) {
        WithPython python;
        Held function = function_of("syncnorm.norm.distributed.shared_memory", "settle");
        require(function.object);
        Held done(PyObject_CallFunction(function.object, "Osl", object.object, is_backward ? "backward" : "forward", status));
        require(done.object);
    }
};

static void *numbers(const MaybeTensor &t) { return t ? t->data_ptr() : nullptr; }

static int64_t *counter(const MaybeTensor &t) { return static_cast<int64_t *>(numbers(t)); }

// One that exchanges through shared memory.
struct Call : SyncCall {
    Exchange exchange;
    Call(PyObject *request, PyObject *given) : SyncCall(request), exchange(given) {}
};

// Whether the kernels know their dtypes.
static bool are_known(const Statistics &running) {
    if (!running.mean) return true;
    at::ScalarType type = running.mean->scalar_type();
    return (type == at::kFloat || type == at::kDouble) && running.var->scalar_type() == type;
}

struct SyncBatchNorm : Function<SyncBatchNorm> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, MaybeTensor weight, MaybeTensor bias, Call *call,
                          Statistics *running) {
        at::AutoDispatchBelowADInplaceOrView below;
        Layout l(x);
        const Kernels *kernels = kernels_of(x);
        Tensor w = readable(weight, affine_type(x)), b = readable(bias, affine_type(x)), y = at::empty_like(x);
        call->local = at::empty({2 * l.C + 1}, at::kDouble);
        Tensor work = at::empty({6 * l.C + 1}, at::kDouble); // the merged row, then the table
        {
            WithoutPython lockless;
            int threads = at::get_num_threads();
            double *row = call->local.data_ptr<double>();
            kernels->measure(x.data_ptr(), l.N, l.C, l.L, l.by_rows, threads, row);
            Rows rows = call->exchange.gather(row, 2 * l.C + 1, false);
            kernels->finish_forward(x.data_ptr(), y.data_ptr(), l.N, l.C, l.L, l.by_rows, threads, rows.first, rows.W,
                                    rows.stride, work.data_ptr<double>(), call->eps, address(w), address(b),
                                    x.scalar_type() == at::kDouble, running->step, numbers(running->mean),
                                    numbers(running->var), running->mean && running->mean->scalar_type() == at::kDouble,
                                    counter(running->num_batches), counter(running->num_non_finite));
        }
        running->bump_versions();
        call->merged = work.narrow(0, 0, 2 * l.C + 1);
        ctx->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor())});
        auto kept = c10::intrusive_ptr<torch::CustomClassHolder>::reclaim_copy(call);
        ctx->saved_data["call"] = c10::IValue::make_capsule(std::move(kept));
        return y;
    }

    static variable_list backward(AutogradContext *ctx, variable_list gradients) {
        variable_list saved = ctx->get_saved_variables();
        auto kept = ctx->saved_data["call"].toCapsule();
        Call &call = static_cast<Call &>(*kept);
        const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2], &dy = gradients[0];
        Needed needed(ctx, weight, bias);
        bool is_ours = !at::GradMode::is_enabled() && is_plain(x) && is_plain(dy) && is_dense(x);
        variable_list found = is_ours && !call.exchange.is_over() ? by_kernels(call, x, dy, weight, bias, needed)
                                                                  : call.differentiable(saved, dy, needed);
        found.resize(5);
        return found;
    }

    static variable_list by_kernels(Call &call, const Tensor &x, const Tensor &dy, const Tensor &weight,
                                    const Tensor &bias, Needed needed) {
        at::AutoDispatchBelowADInplaceOrView below;
        Layout l(x);
        const Kernels *kernels = kernels_of(x);
        auto format = x.is_contiguous() ? at::MemoryFormat::Contiguous : by_rows_format(x);
        Tensor given = in_format(dy, format, x.scalar_type()), w = readable(weight, affine_type(x));
        Tensor dx = at::empty_like(x), by_weight = at::empty({l.C}, affine_type(x)), by_bias = at::empty_like(by_weight);
        std::vector<double> work(8 * l.C); // of this worker, of all workers, and the table
        double *local = work.data(), *merged = call.merged.data_ptr<double>();
        int threads = at::get_num_threads();
        kernels->gradient_sums(x.data_ptr(), given.data_ptr(), l.N, l.C, l.L, l.by_rows, threads, merged + 1, local);
        Rows rows = needed.x ? call.exchange.gather(local, 2 * l.C, true) : Rows{local};
        kernels->finish_backward(x.data_ptr(), given.data_ptr(), dx.data_ptr(), l.N, l.C, l.L, l.by_rows, threads, merged,
                                 local, rows.first, rows.W, rows.stride, local + 2 * l.C, call.eps, address(w),
                                 x.scalar_type() == at::kDouble, by_weight.data_ptr(), by_bias.data_ptr());
        return {needed.x ? dx : Tensor(), needed.weight ? in_type_of(by_weight, weight) : Tensor(),
                needed.bias ? in_type_of(by_bias, bias) : Tensor()};
    }
};

// batch_norm(x, request, exchange) -> (output, row of this worker, row of the group), or None where a tensor is not for
// the kernels. request: interface.Request in training; exchange: see `Exchange`.
static PyObject *batch_norm(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    Inputs in;
    if (!in.read(arguments[0], arguments[1]) || !kernels_of(*in.x) || !are_known(in.running)) Py_RETURN_NONE;
    auto call = c10::make_intrusive<Call>(arguments[1], arguments[2]);
    Tensor y = SyncBatchNorm::apply(*in.x, in.weight, in.bias, call.get(), &in.running);
    return call->with(y);
    END_HANDLE_TH_ERRORS
}
