// What the nodes share: Python's objects, tensors, and gradients. Included by node.cpp and cuda_node.cpp.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>

namespace syncnorm {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

static c10::DispatchKeySet plain_keys; // of a dense tensor in the memory of the device that nothing wraps

// --- Python objects --------------------------------------------------------------------------------------------------

// Within it, this thread may use Python, whether it holds the interpreter's lock or not.
struct WithPython {
    PyGILState_STATE state = PyGILState_Ensure();
    ~WithPython() { PyGILState_Release(state); }
};

// Within it, other threads may use Python.
struct WithoutPython {
    PyThreadState *state = PyEval_SaveThread();
    ~WithoutPython() { PyEval_RestoreThread(state); }
};

// A reference to a Python object that may be let go by any thread.
struct Held {
    PyObject *object;
    explicit Held(PyObject *given) : object(given) {}
    Held(const Held &) = delete;
    Held &operator=(const Held &) = delete;
    ~Held() {
        if (!object || !Py_IsInitialized()) return;
        WithPython python;
        Py_DECREF(object);
    }
};

// Raises the Python exception that is set.
static void require(bool is_there) {
    if (is_there) return;
    python_error error;
    error.persist();
    throw error;
}

static bool is_plain(const Tensor &t) { return t.key_set() == plain_keys; }

// What `object` holds, nothing for None; false for tensors that the kernels can't read.
static bool unpack(PyObject *object, MaybeTensor &out) {
    if (object == Py_None) return true;
    if (!THPVariable_CheckExact(object)) return false;
    out = THPVariable_Unpack(object);
    return is_plain(*out);
}

// --- tensors ---------------------------------------------------------------------------------------------------------

// Of the weight and bias that the kernels read with x.
static at::ScalarType affine_type(const Tensor &x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// What the kernels read in the place of a weight or bias.
static Tensor readable(const MaybeTensor &t, at::ScalarType type) {
    if (!t || !t->defined()) return {};
    return t->scalar_type() == type && t->is_contiguous() ? *t : t->to(type).contiguous();
}

static void *address(const Tensor &t) { return t.defined() ? t.data_ptr() : nullptr; }

static at::MemoryFormat by_rows_format(const Tensor &x) {
    return x.dim() == 4 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::ChannelsLast3d;
}

// Whether x is dense as rows and not as planes too: channels_last, with several channels and positions.
static bool is_by_rows(const Tensor &x) {
    return (x.dim() == 4 || x.dim() == 5) && !x.is_contiguous() && x.is_contiguous(by_rows_format(x));
}

static bool is_dense(const Tensor &x) { return x.is_contiguous() || is_by_rows(x); }

// How x (N, C, *) lies in memory: as planes (N, C, L), or as rows (N * L, C).
struct Layout {
    long N, C, L;
    int by_rows;
    explicit Layout(const Tensor &x) : N(x.size(0)), C(x.size(1)), L(x.numel() / (N * C)) {
        by_rows = L == 1 || !x.is_contiguous();
    }
};

static Tensor in_format(const Tensor &t, at::MemoryFormat format, at::ScalarType type) {
    Tensor dense = t.contiguous(format);
    return dense.scalar_type() == type ? dense : dense.to(type);
}

static Tensor in_type_of(const Tensor &gradient, const Tensor &t) {
    return gradient.scalar_type() == t.scalar_type() ? gradient : gradient.to(t.scalar_type());
}

// --- gradients -------------------------------------------------------------------------------------------------------

// Which of x, weight and bias need a gradient.
struct Needed {
    bool x, weight, bias;
    Needed(AutogradContext *ctx, const Tensor &w, const Tensor &b) {
        x = ctx->needs_input_grad(0);
        weight = w.defined() && ctx->needs_input_grad(1);
        bias = b.defined() && ctx->needs_input_grad(w.defined() ? 2 : 1);
    }
    PyObject *as_tuple() const { return Py_BuildValue("(iii)", x, weight, bias); }
};

// A function of norm.backends. Python must be usable.
static Held function_of(const char *module, const char *name) {
    Held found(PyImport_ImportModule(module));
    require(found.object);
    return Held(PyObject_GetAttrString(found.object, name));
}

// (x, weight, bias), as Python has them. Python must be usable.
static PyObject *as_tuple(const Tensor &x, const Tensor &weight, const Tensor &bias) {
    return Py_BuildValue("(NNN)", THPVariable_Wrap(x), THPVariable_Wrap(weight), THPVariable_Wrap(bias));
}

// The gradients (x, weight, bias) that a function in Python returned, each a tensor or None.
static variable_list from_python(PyObject *result) {
    require(result);
    Held found(PySequence_Fast(result, "gradients must be a sequence"));
    Py_DECREF(result);
    require(found.object);
    variable_list gradients(4);
    for (int i = 0; i < 3; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(found.object, i);
        if (item != Py_None) gradients[i] = THPVariable_Unpack(item);
    }
    return gradients;
}

// --- batch normalization ---------------------------------------------------------------------------------------------

// Running statistics that kernels may write to, or none.
struct Statistics {
    double step = 0; // the weight of the new batch; -1: the cumulative average
    MaybeTensor mean, var, num_batches, num_non_finite;

    // From interface.Running; false where PyTorch's operators have to move them.
    bool read(PyObject *running, int64_t C) {
        if (running == Py_None) return true;
        PyObject *momentum = PyTuple_GET_ITEM(running, 0);
        step = momentum == Py_None ? -1 : PyFloat_AsDouble(momentum);
        if (PyErr_Occurred()) throw python_error();
        if (step < 0 && momentum != Py_None) return false;
        MaybeTensor *places[] = {&mean, &var, &num_batches, &num_non_finite};
        for (int i = 0; i < 4; i++) {
            if (!unpack(PyTuple_GET_ITEM(running, 1 + i), *places[i]) || !*places[i]) return false;
            Tensor &t = **places[i];
            bool is_known = i > 1 ? t.scalar_type() == at::kLong : at::isFloatingType(t.scalar_type());
            if (!is_known || t.numel() != (i > 1 ? 1 : C) || !t.is_contiguous()) return false;
        }
        return true;
    }

    // Autograd must see that they changed, as for any operation in place.
    void bump_versions() const {
        for (const MaybeTensor *t : {&mean, &var, &num_batches, &num_non_finite})
            if (*t) (*t)->unsafeGetTensorImpl()->bump_version();
    }
};

// The tensors of a call of batch normalization in training.
struct Inputs {
    MaybeTensor x, weight, bias;
    Statistics running;

    // From x and interface.Request; false where one of them is not for kernels.
    bool read(PyObject *given, PyObject *request) {
        if (!unpack(given, x) || x->dim() < 2 || x->numel() == 0 || !is_dense(*x)) return false;
        int64_t C = x->size(1);
        return unpack(PyTuple_GET_ITEM(request, 0), weight) && (!weight || weight->numel() == C) &&
               unpack(PyTuple_GET_ITEM(request, 1), bias) && (!bias || bias->numel() == C) &&
               running.read(PyTuple_GET_ITEM(request, 6), C);
    }
};

// What every call of a synchronized layer keeps for its backward.
struct SyncCall : torch::CustomClassHolder {
    double eps;
    Held group, layer; // the layer weakly, so that a layer that keeps its output is let go with it
    Tensor local, merged;

    explicit SyncCall(PyObject *request)
        : eps(PyFloat_AsDouble(PyTuple_GET_ITEM(request, 2))), group(Py_NewRef(PyTuple_GET_ITEM(request, 3))),
          layer(weak(PyTuple_GET_ITEM(request, 4))) {
        if (PyErr_Occurred()) throw python_error();
    }

    static PyObject *weak(PyObject *layer) {
        return layer == Py_None ? Py_NewRef(layer) : PyWeakref_NewRef(layer, nullptr);
    }

    // The gradients of the reference composition, with which create_graph and vmap work.
    variable_list differentiable(const variable_list &saved, const Tensor &dy, Needed needed) {
        WithPython python;
        Held function = function_of("syncnorm.norm.backends.fused", "gradients_of_node");
        require(function.object);
        return from_python(PyObject_CallFunction(
            function.object, "NNNdOONN", as_tuple(saved[0], saved[1], saved[2]), THPVariable_Wrap(dy), needed.as_tuple(),
            eps, group.object, layer.object, THPVariable_Wrap(local), THPVariable_Wrap(merged)));
    }

    // What `batch_norm` of a node returns to Python.
    PyObject *with(const Tensor &y) const {
        return Py_BuildValue("(NNN)", THPVariable_Wrap(y), THPVariable_Wrap(local), THPVariable_Wrap(merged));
    }
};

} // namespace syncnorm
