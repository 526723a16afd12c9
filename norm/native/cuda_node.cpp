// Forward and backward of the synchronized layer on a GPU as one node of torch's graph. It launches the kernels that
// Triton compiled and calls the process group, without Python between its pieces; see norm/backends/triton_launches.py.
// It holds neither formula nor grid: the first time, each step is done by norm/backends/cuda_triton.py, and from then on
// the same is launched from here. Whatever it does not take (None is returned), and every second derivative, is left to
// norm.backends. It needs no header of CUDA.

#include "tensors.cpp"
#include <c10/core/DeviceGuard.h>
#include <mutex>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <unordered_map>

namespace syncnorm {

#include "launches.cpp"

static double **clock_s; // where exchanges add their seconds, while somebody measures

// How the rows travel: by a process group, or not at all where this worker is the only one.
struct Exchange {
    std::optional<std::string> group; // its name

    explicit Exchange(PyObject *name) {
        if (name == Py_None) return;
        const char *characters = PyUnicode_AsUTF8(name);
        require(characters);
        group = characters;
    }

    // Whether the process group is gone, and others can't be met.
    bool is_over() const {
        try {
            return group && !c10d::resolve_process_group(*group);
        } catch (const c10::Error &) {
            return true;
        }
    }
};

// One whose rows stay on the GPU.
struct DeviceCall : SyncCall {
    Exchange exchange;
    DeviceCall(PyObject *request, PyObject *name) : SyncCall(request), exchange(name) {}

    // The rows of all workers (W, F). The device's stream waits for them, not the host.
    Tensor gather(Tensor row, const char *direction) {
        if (!exchange.group) return row.unsqueeze(0);
        if (*clock_s) return measured(row, direction);
        at::RecordFunction range(at::RecordScope::FUNCTION); // timing.EXCHANGE in traces of torch.profiler
        if (range.isActive()) range.before("norm::exchange");
        auto members = c10d::resolve_process_group(*exchange.group);
        Tensor rows = at::empty({members->getSize(), row.numel()}, row.options()), flat = rows.view(-1);
        members->_allgather_base(flat, row)->wait();
        return rows;
    }

    // The same, with its time taken by norm/distributed/timing.py.
    Tensor measured(const Tensor &row, const char *direction) {
        WithPython python;
        Held function = function_of("syncnorm.norm.backends.fused", "rows_of_node");
        require(function.object);
        Held rows(PyObject_CallFunction(function.object, "NOOs", THPVariable_Wrap(row), group.object, layer.object, direction));
        require(rows.object);
        return THPVariable_Unpack(rows.object);
    }
};

// The four steps of cuda_triton.py, for one x. See there for what they take and return.
struct Steps {
    const Tensor &x;
    Layout l;
    Queue queue;
    at::TensorOptions wide, narrow; // of statistics, and of the tables that kernels read beside x

    explicit Steps(const Tensor &t) : x(t), l(t), queue(t.device()) {
        wide = x.options().dtype(at::kDouble);
        narrow = x.options().dtype(affine_type(x));
    }

    Key key(const char *step) const {
        return Key{step}.with(x.device().index(), l.N, l.C, l.L, l.by_rows).with_tensor(x);
    }

    // The only row of what several programs found, by a second kernel where there are several.
    Tensor merged(const Launches &launches, const Tensor &rows) const {
        if (launches.size() == 1) return rows.select(0, 0);
        Tensor total = at::empty({rows.size(1)}, wide);
        launches.at(1).run(queue, {rows.data_ptr(), total.data_ptr()});
        return total;
    }

    Tensor measure() const {
        Key k = key("measure");
        if (auto known = memory.find(k)) {
            Tensor rows = at::empty({known->at(0).grid[1], 2 * l.C + 1}, wide);
            known->at(0).run(queue, {x.data_ptr(), rows.data_ptr()});
            return merged(*known, rows);
        }
        WithPython python;
        return learn(k, "measure", Py_BuildValue("(N)", THPVariable_Wrap(x)))[0];
    }

    // (output, row of all workers)
    variable_list finish_forward(const Tensor &rows, const Inputs &in, PyObject *request, double eps) const {
        Tensor w = flat(in.weight), b = flat(in.bias);
        const Statistics &s = in.running;
        Tensor mean = or_none(s.mean), var = or_none(s.var), good = or_none(s.num_batches), bad = or_none(s.num_non_finite);
        Key k = key("finish_forward").with(rows.size(0), eps, s.step);
        for (const Tensor *t : {&w, &b, &mean, &var, &good, &bad}) k.with_tensor(*t);
        if (auto known = memory.find(k)) {
            Tensor table = at::empty({3, l.C}, narrow), merged = at::empty({2 * l.C + 1}, wide), y = at::empty_like(x);
            known->at(0).run(queue, {rows.data_ptr(), merged.data_ptr(), table.data_ptr(), address(w), address(b),
                                    address(mean), address(var), address(good), address(bad)});
            known->at(1).run(queue, {x.data_ptr(), y.data_ptr(), table.data_ptr()});
            s.bump_versions();
            return {y, merged};
        }
        WithPython python;
        return learn(k, "finish_forward",
                     Py_BuildValue("(NNO)", THPVariable_Wrap(x), THPVariable_Wrap(rows), request));
    }

    Tensor gradient_sums(const Tensor &dy, const Tensor &row) const {
        Key k = key("gradient_sums").with_tensor(dy);
        if (auto known = memory.find(k)) {
            Tensor sums = at::empty({known->at(0).grid[1], 2 * l.C}, wide);
            known->at(0).run(queue, {x.data_ptr(), dy.data_ptr(), row.data_ptr(), sums.data_ptr()});
            return merged(*known, sums);
        }
        WithPython python;
        return learn(k, "gradient_sums",
                     Py_BuildValue("(NNN)", THPVariable_Wrap(x), THPVariable_Wrap(dy), THPVariable_Wrap(row)))[0];
    }

    // Gradients of (x, weight, bias).
    variable_list finish_backward(const Tensor &dy, const Tensor &row, const Tensor &local, const Tensor &rows, double eps,
                                  const Tensor &weight) const {
        Tensor w = weight.defined() ? weight.contiguous() : weight;
        Key k = key("finish_backward").with(rows.size(0), eps).with_tensor(dy).with_tensor(w);
        if (auto known = memory.find(k)) {
            Tensor table = at::empty({4, l.C}, narrow), dx = at::empty_like(x);
            Tensor affine = at::empty({2, l.C}, narrow), by_weight = affine.select(0, 0), by_bias = affine.select(0, 1);
            known->at(0).run(queue, {row.data_ptr(), local.data_ptr(), rows.data_ptr(), table.data_ptr(), address(w),
                                    by_weight.data_ptr(), by_bias.data_ptr()});
            known->at(1).run(queue, {x.data_ptr(), dy.data_ptr(), dx.data_ptr(), table.data_ptr()});
            return {dx, by_weight, by_bias};
        }
        WithPython python;
        return learn(k, "finish_backward",
                     Py_BuildValue("(NNNNNdN)", THPVariable_Wrap(x), THPVariable_Wrap(dy), THPVariable_Wrap(row),
                                   THPVariable_Wrap(local), THPVariable_Wrap(rows), eps, THPVariable_Wrap(weight)));
    }

    static Tensor or_none(const MaybeTensor &t) { return t ? *t : Tensor(); }
    static Tensor flat(const MaybeTensor &t) { return t ? t->contiguous() : Tensor(); }
};

struct DeviceBatchNorm : Function<DeviceBatchNorm> {
    static Tensor forward(AutogradContext *ctx, const Tensor &x, MaybeTensor weight, MaybeTensor bias, DeviceCall *call,
                          const Inputs *in, PyObject *request) {
        at::AutoDispatchBelowADInplaceOrView below;
        Tensor y;
        {
            WithoutPython lockless;
            Steps steps(x);
            call->local = steps.measure();
            Tensor rows = call->gather(call->local, "forward");
            variable_list found = steps.finish_forward(rows, *in, request, call->eps);
            y = found[0];
            call->merged = found[1];
        }
        ctx->save_for_backward({x, weight.value_or(Tensor()), bias.value_or(Tensor())});
        auto kept = c10::intrusive_ptr<torch::CustomClassHolder>::reclaim_copy(call);
        ctx->saved_data["call"] = c10::IValue::make_capsule(std::move(kept));
        return y;
    }

    static variable_list backward(AutogradContext *ctx, variable_list gradients) {
        variable_list saved = ctx->get_saved_variables();
        auto kept = ctx->saved_data["call"].toCapsule();
        DeviceCall &call = static_cast<DeviceCall &>(*kept);
        const Tensor &x = saved[0], &dy = gradients[0];
        Needed needed(ctx, saved[1], saved[2]);
        bool is_ours = !at::GradMode::is_enabled() && is_plain(x) && is_plain(dy) && is_dense(x);
        variable_list found = is_ours && !call.exchange.is_over() ? by_kernels(call, saved, dy, needed)
                                                                  : call.differentiable(saved, dy, needed);
        found.resize(6);
        return found;
    }

    static variable_list by_kernels(DeviceCall &call, const variable_list &saved, const Tensor &given, Needed needed) {
        at::AutoDispatchBelowADInplaceOrView below;
        const Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
        auto format = x.is_contiguous() ? at::MemoryFormat::Contiguous : by_rows_format(x);
        Tensor dy = in_format(given, format, x.scalar_type());
        Steps steps(x);
        Tensor local = steps.gradient_sums(dy, call.merged);
        Tensor rows = needed.x ? call.gather(local, "backward") : local.unsqueeze(0);
        variable_list found = steps.finish_backward(dy, call.merged, local, rows, call.eps, weight);
        return {needed.x ? found[0] : Tensor(), needed.weight ? in_type_of(found[1], weight) : Tensor(),
                needed.bias ? in_type_of(found[2], bias) : Tensor()};
    }
};

// --- the module ------------------------------------------------------------------------------------------------------

static bool is_known(at::ScalarType type) {
    return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

// Whether the kernels may write to the running statistics, if there are any: they know the dtypes and are on that device.
static bool are_known(const Statistics &running, c10::Device device) {
    if (!running.mean) return true;
    for (const MaybeTensor *t : {&running.mean, &running.var, &running.num_batches, &running.num_non_finite})
        if ((*t)->device() != device) return false;
    return is_known(running.mean->scalar_type()) && is_known(running.var->scalar_type());
}

// batch_norm(x, request, name of the process group or None) -> (output, row of this worker, row of the group), or None
// where a tensor is not for the kernels. request: interface.Request in training.
static PyObject *batch_norm(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    Inputs in;
    if (!in.read(arguments[0], arguments[1]) || !is_known(in.x->scalar_type()) || !are_known(in.running, in.x->device()))
        Py_RETURN_NONE;
    auto call = c10::make_intrusive<DeviceCall>(arguments[1], arguments[2]);
    const Inputs *given = &in;
    Tensor y = DeviceBatchNorm::apply(*in.x, in.weight, in.bias, call.get(), given, arguments[1]);
    return call->with(y);
    END_HANDLE_TH_ERRORS
}

// launch(described launch, tensor, tensor): one kernel of two tensors.
static PyObject *launch(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    const Tensor &first = THPVariable_Unpack(arguments[1]), &second = THPVariable_Unpack(arguments[2]);
    Launch(arguments[0]).run(Queue(first.device()), {first.data_ptr(), second.data_ptr()});
    Py_RETURN_NONE;
    END_HANDLE_TH_ERRORS
}

// bind(addresses of a LaunchKernel, of a CurrentStream, and of the address of the clock of exchanges, a tensor of the kind
// of device). What was learned before is forgotten.
static PyObject *bind(PyObject *, PyObject *const *arguments, Py_ssize_t) {
    HANDLE_TH_ERRORS
    launch_kernel = reinterpret_cast<LaunchKernel>(PyLong_AsVoidPtr(arguments[0]));
    current_stream = reinterpret_cast<CurrentStream>(PyLong_AsVoidPtr(arguments[1]));
    clock_s = static_cast<double **>(PyLong_AsVoidPtr(arguments[2]));
    if (PyErr_Occurred()) throw python_error();
    plain_keys = THPVariable_Unpack(arguments[3]).key_set();
    memory.clear();
    Py_RETURN_NONE;
    END_HANDLE_TH_ERRORS
}

static PyMethodDef methods[] = {
    {"bind", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(bind)), METH_FASTCALL, nullptr},
    {"launch", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(launch)), METH_FASTCALL, nullptr},
    {"batch_norm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(batch_norm)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "syncnorm_cuda_node", nullptr, -1, methods};

} // namespace syncnorm

PyMODINIT_FUNC PyInit_syncnorm_cuda_node() { return PyModule_Create(&syncnorm::definition); }
