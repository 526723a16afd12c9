// Launches of Triton's kernels as norm/backends/triton_launches.py describes them. Included by cuda_node.cpp.

// cuLaunchKernel of the GPU's driver, and what gives torch's current stream. Tests put functions of their own in their
// place.
using LaunchKernel = int (*)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                             void **);
using CurrentStream = int (*)(int32_t device, void **stream);
static LaunchKernel launch_kernel;
static CurrentStream current_stream;
static const int NO_CONTEXT = 201; // CUDA_ERROR_INVALID_CONTEXT

// Where a step runs: until its end, the device is the current one.
struct Queue {
    c10::Device device;
    c10::DeviceGuard guard;
    void *stream = nullptr;
    explicit Queue(c10::Device d) : device(d), guard(d) {
        TORCH_CHECK(current_stream(d.index(), &stream) == 0, "torch has no current stream for ", d);
    }
};

// What a kernel is given: the address of the tensor at a position, or a number.
struct Argument {
    int position; // negative: a number
    int64_t bits;
};

// A compiled kernel, its grid and its arguments, where only the addresses of tensors change from call to call.
struct Launch {
    static constexpr size_t MOST = 32;
    void *function;
    unsigned grid[3], threads, shared_bytes;
    std::vector<Argument> arguments;

    // From (function, grid of three, threads, bytes of shared memory, [(position, bits), …]).
    explicit Launch(PyObject *described) {
        unsigned long long handle;
        PyObject *list;
        require(PyArg_ParseTuple(described, "K(III)IIO!", &handle, &grid[0], &grid[1], &grid[2], &threads, &shared_bytes,
                                 &PyList_Type, &list));
        function = reinterpret_cast<void *>(handle);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
            long long bits;
            int position;
            require(PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iL", &position, &bits));
            arguments.push_back({position, bits});
        }
        TORCH_CHECK(arguments.size() <= MOST, "a kernel has more than ", MOST, " arguments");
    }

    // tensors: the addresses of the kernel's tensors by position, null for none.
    void run(const Queue &queue, std::initializer_list<void *> tensors) const {
        int64_t values[MOST];
        void *places[MOST];
        for (size_t i = 0; i < arguments.size(); i++) {
            const Argument &a = arguments[i];
            TORCH_INTERNAL_ASSERT(a.position < (int)tensors.size(), "cuda_node.cpp knows fewer tensors of a kernel");
            values[i] = a.position < 0 ? a.bits : reinterpret_cast<int64_t>(tensors.begin()[a.position]);
            places[i] = values + i;
        }
        int status = start(queue, places);
        if (status == NO_CONTEXT) { // this thread has not used the GPU yet; torch's own work sets it up
            at::empty({1}, queue.device).zero_();
            status = start(queue, places);
        }
        TORCH_CHECK(status == 0, "cuLaunchKernel gave error ", status, " for a kernel of a synchronized layer");
    }

    int start(const Queue &queue, void **places) const {
        return launch_kernel(function, grid[0], grid[1], grid[2], threads, 1, 1, shared_bytes, queue.stream, places, nullptr);
    }
};

using Launches = std::vector<Launch>;

// Everything that decides what a step launches.
struct Key {
    std::string bytes; // the name of the step, then numbers

    template <typename... Numbers> Key &with(Numbers... numbers) {
        (bytes.append(reinterpret_cast<const char *>(&numbers), sizeof numbers), ...);
        return *this;
    }

    // Triton compiles anew for another dtype, and for addresses that 16 divides.
    Key &with_tensor(const Tensor &t) {
        if (!t.defined()) return with('-');
        return with(t.scalar_type(), reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0);
    }
};

// The launches that are known, for all threads.
class Memory {
    static constexpr size_t MOST = 4096; // then it starts anew
    std::mutex mutex;
    std::unordered_map<std::string, std::shared_ptr<const Launches>> known;

  public:
    std::shared_ptr<const Launches> find(const Key &key) {
        std::lock_guard<std::mutex> alone(mutex);
        auto found = known.find(key.bytes);
        return found == known.end() ? nullptr : found->second;
    }

    void keep(const Key &key, std::shared_ptr<const Launches> launches) {
        std::lock_guard<std::mutex> alone(mutex);
        if (known.size() >= MOST) known.clear();
        known[key.bytes] = std::move(launches);
    }

    void clear() {
        std::lock_guard<std::mutex> alone(mutex);
        known.clear();
    }
};

static Memory memory;

// Has a step done by norm.backends.triton_launches, which says what it launched. Python must be usable. arguments: a new
// reference to the tuple.
static variable_list learn(const Key &key, const char *step, PyObject *arguments) {
    Held given(arguments);
    require(arguments);
    Held function = function_of("syncnorm.norm.backends.triton_launches", "learn");
    require(function.object);
    Held answer(PyObject_CallFunction(function.object, "sO", step, arguments));
    require(answer.object);
    PyObject *results, *launches;
    require(PyArg_ParseTuple(answer.object, "O!O", &PyTuple_Type, &results, &launches));
    if (launches != Py_None) {
        auto described = std::make_shared<Launches>();
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(launches); i++) described->emplace_back(PyTuple_GET_ITEM(launches, i));
        memory.keep(key, std::move(described));
    }
    variable_list tensors;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(results); i++)
        tensors.push_back(THPVariable_Unpack(PyTuple_GET_ITEM(results, i)));
    return tensors;
}
