// Runs the kernels on the host, so that they are tested without a GPU. Each thread of a block is a fiber, which goes on
// until it must wait for others: at a barrier or at an operation of its warp. Blocks run one after another on an OS
// thread, on several if asked. What it finds: a barrier or warp operation that not all reach, shared memory written out
// of bounds (with the address sanitizer: read, too), and, by running in several orders, a missing barrier. What it
// cannot find: weak memory order, and how fast anything is.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__) && !defined(GRID_UCONTEXT)
#define GRID_SWITCH 1 // a switch of a few instructions; elsewhere (or if asked) the C library's, which is slower
#else
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GRID_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GRID_ASAN 1
#endif
#endif
#if defined(GRID_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace grid {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

#if defined(GRID_ASAN)
constexpr size_t STACK_BYTES = 256 << 10;
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif
constexpr size_t SHARED_BYTES_MAX = 48 << 10; // what every device has without being asked
constexpr size_t GUARD_BYTES = 256;
constexpr unsigned char GUARD = 0xa5;
constexpr unsigned WARP_VALUES_MAX = 32;

struct Fiber {
#if defined(GRID_SWITCH)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    char* stack = nullptr;
    void* fake_stack = nullptr;
    Dim thread;
    unsigned lane = 0, warp = 0;
    const unsigned* waits_for = nullptr; // a generation that must change before it goes on
    unsigned generation = 0;
    bool done = false;
};

/// Where threads meet: a block's barrier or a warp's operation.
struct Meeting {
    unsigned arrived = 0, generation = 0, line = 0;
};

struct Warp {
    Meeting meeting;
    float values[WARP_VALUES_MAX][LQ_WARP];
    unsigned indices[LQ_WARP];
    // Results outlive the next meeting's start, for lanes that have not read them yet.
    float results[2][WARP_VALUES_MAX];
    unsigned result_index[2];
    unsigned long long peers[2][LQ_WARP];
    // Fragments of a matrix product, in registers of 32 bits, and what becomes of the accumulators.
    uint32_t fragments[LQ_WARP][6];
    float accumulators[LQ_WARP][4], products[2][LQ_WARP][4];
};

struct SharedArray {
    size_t offset, bytes;
};

/// One OS thread's block.
struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<SharedArray> arrays; // by site
    char* shared = nullptr;          // all shared memory, with guards between the arrays
    size_t shared_used = 0;
    Meeting barrier;
    unsigned threads = 0, live = 0;
    void (*body)(void*) = nullptr;
    void* argument = nullptr;
    Fiber scheduler;
    const void* scheduler_stack = nullptr;
    size_t scheduler_stack_bytes = 0;
    Dim at, block, grid;
    const char* failure = nullptr;
    ~Block() {
        for (Fiber& fiber : fibers) free(fiber.stack);
        free(shared);
    }
};

#define GRID_LOCAL static thread_local __attribute__((tls_model("initial-exec")))
GRID_LOCAL Block* current_block = nullptr;
GRID_LOCAL Fiber* current_fiber = nullptr;

// ---- fibers ----

#if defined(GRID_SWITCH)
extern "C" void grid_switch(void** from, void* to);
asm(R"(.text
.p2align 4
.globl grid_switch
.hidden grid_switch
.type grid_switch,@function
grid_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp,(%rdi)
    mov %rsi,%rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size grid_switch,.-grid_switch
)");
static inline void jump(Fiber& from, Fiber& to) {
    grid_switch(&from.stack_pointer, to.stack_pointer);
}
#else
static inline void jump(Fiber& from, Fiber& to) {
    swapcontext(&from.context, &to.context);
}
#endif

static void to_scheduler(bool for_good) {
    Block& block = *current_block;
    Fiber& fiber = *current_fiber;
#if defined(GRID_ASAN)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, block.scheduler_stack,
                                   block.scheduler_stack_bytes);
#endif
    (void)for_good;
    jump(fiber, block.scheduler);
#if defined(GRID_ASAN)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

static void to_fiber(Block& block, Fiber& fiber) {
    current_fiber = &fiber;
#if defined(GRID_ASAN)
    __sanitizer_start_switch_fiber(&block.scheduler.fake_stack, fiber.stack, STACK_BYTES);
#endif
    jump(block.scheduler, fiber);
#if defined(GRID_ASAN)
    __sanitizer_finish_switch_fiber(block.scheduler.fake_stack, nullptr, nullptr);
#endif
}

/// Gives up the block: no fiber of it goes on.
[[noreturn]] static void fail(const char* failure) {
    current_block->failure = failure;
    for (;;) to_scheduler(false);
}

static void fiber_main() {
#if defined(GRID_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, &current_block->scheduler_stack, &current_block->scheduler_stack_bytes);
#endif
    current_block->body(current_block->argument);
    current_fiber->done = true;
    current_block->live--;
    to_scheduler(true);
    abort();
}

static bool arm(Fiber& fiber) {
    if (!fiber.stack) fiber.stack = static_cast<char*>(aligned_alloc(64, STACK_BYTES));
    if (!fiber.stack) return false;
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.fake_stack = nullptr;
#if defined(GRID_ASAN)
    __asan_unpoison_memory_region(fiber.stack, STACK_BYTES); // frames of a block that was given up
#endif
#if defined(GRID_SWITCH)
    void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES) - 2; // as after a call: 16 n + 8
    *top = reinterpret_cast<void*>(fiber_main);
    for (int i = 0; i < 6; i++) *--top = nullptr;
    fiber.stack_pointer = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#endif
    return true;
}

// ---- meetings ----

/// Arrives; true for the last of `expected`, who must call `release`.
static inline bool arrive(Meeting& meeting, unsigned expected, unsigned line, const char* elsewhere) {
    if (meeting.arrived == 0) {
        meeting.line = line;
    } else if (meeting.line != line) {
        fail(elsewhere);
    }
    return ++meeting.arrived == expected;
}

static inline void release(Meeting& meeting) {
    meeting.arrived = 0;
    meeting.generation++;
}

static inline void wait(Meeting& meeting) {
    current_fiber->waits_for = &meeting.generation;
    current_fiber->generation = meeting.generation;
    to_scheduler(false);
    current_fiber->waits_for = nullptr;
}

static inline void sync_threads(unsigned line) {
    Meeting& barrier = current_block->barrier;
    if (arrive(barrier, current_block->threads, line, "threads of a block meet at different barriers")) {
        release(barrier);
    } else {
        wait(barrier);
    }
}

/// Lanes give what they have; the last of them calls `reduce(warp, parity)`. Gives the parity of the results.
template <class Reduce>
inline unsigned warp_meeting(Warp& warp, unsigned line, Reduce reduce) {
    unsigned parity = warp.meeting.generation & 1;
    if (arrive(warp.meeting, LQ_WARP, line, "lanes of a warp meet at different operations")) {
        reduce(warp, parity);
        release(warp.meeting);
    } else {
        wait(warp.meeting);
    }
    return parity;
}

inline Warp& warp_of_fiber() {
    return current_block->warps[current_fiber->warp];
}

/// As the shuffles do it: at each step lane l takes l xor mask.
inline float butterfly_sum(const float* lanes) {
    float sums[LQ_WARP];
    memcpy(sums, lanes, sizeof sums);
    for (unsigned mask = LQ_WARP / 2; mask > 0; mask /= 2) {
        for (unsigned lane = 0; lane < mask; lane++) sums[lane] += sums[lane + mask];
    }
    return sums[0];
}

// ---- shared memory ----

static inline size_t padded(size_t bytes) {
    return (bytes + 15) / 16 * 16;
}

static void poison_guard(Block& block, size_t offset, size_t bytes) {
    memset(block.shared + offset, GUARD, bytes);
#if defined(GRID_ASAN)
    __asan_poison_memory_region(block.shared + offset, bytes);
#endif
}

/// The array declared at `site`: the first thread of a block to come by makes it.
static inline void* shared_array(unsigned site, size_t bytes) {
    Block& block = *current_block;
    if (block.arrays.size() <= site) block.arrays.resize(site + 1, SharedArray{0, 0});
    SharedArray& array = block.arrays[site];
    if (array.bytes == 0) {
        size_t end = block.shared_used + padded(bytes);
        if (end + GUARD_BYTES > 2 * SHARED_BYTES_MAX) fail("more shared memory than a block may have");
        array = {block.shared_used, bytes};
        memset(block.shared + array.offset, 0xff, bytes); // NaN: never zero by luck
        poison_guard(block, array.offset + bytes, end - array.offset - bytes + GUARD_BYTES);
        block.shared_used = end + GUARD_BYTES;
    }
    if (array.bytes != bytes) fail("a shared array of two sizes");
    return block.shared + array.offset;
}

template <class T>
inline T* shared(unsigned site, size_t count) {
    return static_cast<T*>(shared_array(site, count * sizeof(T)));
}

static bool open_shared(Block& block) {
    constexpr size_t bytes = 2 * SHARED_BYTES_MAX;
    if (!block.shared) block.shared = static_cast<char*>(aligned_alloc(64, bytes));
    if (!block.shared) return false;
#if defined(GRID_ASAN)
    __asan_unpoison_memory_region(block.shared, bytes);
#endif
    for (SharedArray& array : block.arrays) array.bytes = 0;
    block.shared_used = 0;
    return true;
}

static const char* check_guards(Block& block) {
    size_t total = 0;
    for (const SharedArray& array : block.arrays) {
        if (array.bytes == 0) continue;
        total += padded(array.bytes);
        size_t from = array.offset + array.bytes, to = array.offset + padded(array.bytes) + GUARD_BYTES;
#if defined(GRID_ASAN)
        __asan_unpoison_memory_region(block.shared + from, to - from);
#endif
        for (size_t i = from; i < to; i++) {
            if (static_cast<unsigned char>(block.shared[i]) != GUARD) return "shared memory written out of bounds";
        }
    }
    return total > SHARED_BYTES_MAX ? "more shared memory than a block may have" : nullptr;
}

// ---- a grid ----

struct Launch {
    Dim grid, block;
    unsigned order;
    void (*body)(void*);
    void* argument;
    std::vector<unsigned> fiber_order;
    std::vector<uint64_t> block_order; // empty: ascending
    std::atomic<uint64_t> next{0};
    std::atomic<bool> failed{false};
    std::atomic_flag error_taken = ATOMIC_FLAG_INIT;
    char* error;
    size_t error_bytes;
};

template <class Index>
void arrange(std::vector<Index>& order, size_t count, unsigned kind) {
    order.resize(count);
    for (size_t i = 0; i < count; i++) order[i] = static_cast<Index>(kind == 1 ? count - 1 - i : i);
    uint64_t state = kind * 0x9e3779b97f4a7c15ull + 88172645463325252ull;
    for (size_t i = count; kind > 1 && i > 1; i--) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17; // Marsaglia's xorshift
        std::swap(order[i - 1], order[state % i]);
    }
}

static void report(Launch& launch, const Block& block, const char* failure) {
    launch.failed = true;
    if (launch.error_taken.test_and_set() || launch.error_bytes == 0) return;
    unsigned at_barrier = 0, at_warp = 0;
    for (unsigned i = 0; i < block.threads; i++) {
        const Fiber& fiber = block.fibers[i];
        if (!fiber.done && fiber.waits_for == &block.barrier.generation) at_barrier++;
        if (!fiber.done && fiber.waits_for && fiber.waits_for != &block.barrier.generation) at_warp++;
    }
    snprintf(launch.error, launch.error_bytes,
             "%s: block (%u, %u, %u) of %u threads, %u at a barrier, %u at an operation of their warp, %u ended",
             failure, block.at.x, block.at.y, block.at.z, block.threads, at_barrier, at_warp,
             block.threads - block.live);
}

static const char* run_block(Block& block, const Launch& launch) {
    block.live = block.threads;
    block.barrier = Meeting();
    block.failure = nullptr;
    for (Warp& warp : block.warps) warp.meeting = Meeting();
    if (!open_shared(block)) return "no memory for shared memory";
    for (unsigned i = 0; i < block.threads; i++) {
        if (!arm(block.fibers[i])) return "no memory for stacks";
    }
    while (block.live > 0) {
        bool moved = false;
        for (unsigned i : launch.fiber_order) {
            Fiber& fiber = block.fibers[i];
            if (fiber.done || (fiber.waits_for && *fiber.waits_for == fiber.generation)) continue;
            moved = true;
            to_fiber(block, fiber);
            if (block.failure) return block.failure;
        }
        if (!moved) return "deadlock: not all threads come to where the others wait";
    }
    return check_guards(block);
}

/// Blocks not in use: their stacks are worth keeping from launch to launch.
struct Spare {
    std::mutex mutex;
    std::vector<std::unique_ptr<Block>> blocks;
    std::unique_ptr<Block> take() {
        std::lock_guard<std::mutex> guard(mutex);
        if (blocks.empty()) return std::make_unique<Block>();
        std::unique_ptr<Block> block = std::move(blocks.back());
        blocks.pop_back();
        return block;
    }
    void give(std::unique_ptr<Block> block) {
        std::lock_guard<std::mutex> guard(mutex);
        blocks.push_back(std::move(block));
    }
};
static Spare spare;

static void work(Launch* launch) {
    std::unique_ptr<Block> taken = spare.take();
    Block& block = *taken;
    current_block = &block;
    Dim size = launch->block;
    block.threads = size.x * size.y * size.z;
    if (block.fibers.size() < block.threads) block.fibers.resize(block.threads);
    block.warps.resize((block.threads + LQ_WARP - 1) / LQ_WARP);
    block.body = launch->body;
    block.argument = launch->argument;
    block.block = size;
    block.grid = launch->grid;
    for (unsigned i = 0; i < block.threads; i++) {
        block.fibers[i].thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        block.fibers[i].lane = i % LQ_WARP;
        block.fibers[i].warp = i / LQ_WARP;
    }
    uint64_t x = launch->grid.x, y = launch->grid.y, blocks = x * y * launch->grid.z;
    for (uint64_t k; (k = launch->next++) < blocks && !launch->failed;) {
        uint64_t at = launch->block_order.empty() ? k : launch->block_order[k];
        block.at = {unsigned(at % x), unsigned(at / x % y), unsigned(at / x / y)};
        if (const char* failure = run_block(block, *launch)) report(*launch, block, failure);
    }
    current_block = nullptr;
    spare.give(std::move(taken));
}

struct Request {
    const unsigned* grid;
    const unsigned* block;
    unsigned order, os_threads;
    char* error;
    size_t error_bytes;
};

static int run(const Request& request, void (*body)(void*), void* argument) {
    Launch launch;
    launch.grid = {request.grid[0], request.grid[1], request.grid[2]};
    launch.block = {request.block[0], request.block[1], request.block[2]};
    launch.order = request.order;
    launch.body = body;
    launch.argument = argument;
    launch.error = request.error;
    launch.error_bytes = request.error_bytes;
    size_t threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
    if (threads == 0 || threads > 1024 || size_t(launch.grid.x) * launch.grid.y * launch.grid.z == 0) {
        snprintf(request.error, request.error_bytes, "an empty grid, or %zu threads in a block", threads);
        return 1;
    }
    if (threads % LQ_WARP != 0) {
        snprintf(request.error, request.error_bytes, "%zu threads are not whole warps of %d", threads, LQ_WARP);
        return 1;
    }
    uint64_t blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    arrange(launch.fiber_order, threads, launch.order);
    if (launch.order != 0) arrange(launch.block_order, blocks, launch.order);
    uint64_t worth = blocks / 4; // starting a thread costs as much as a few blocks
    unsigned count = request.os_threads > worth ? unsigned(worth) : request.os_threads;
    std::vector<std::thread> others;
    for (unsigned i = 1; i < count; i++) others.emplace_back(work, &launch);
    work(&launch);
    for (std::thread& other : others) other.join();
    return launch.failed ? 1 : 0;
}

template <class... Args, size_t... I>
int call(void (*kernel)(Args...), const Request& request, void** arguments, std::index_sequence<I...>) {
    struct Call {
        void (*kernel)(Args...);
        void** arguments;
    } call{kernel, arguments};
    auto body = [](void* pointer) {
        Call* call = static_cast<Call*>(pointer);
        (void)call;
        call->kernel(*static_cast<std::remove_cv_t<Args>*>(call->arguments[I])...);
    };
    return run(request, body, &call);
}

template <class... Args>
int launch(void (*kernel)(Args...), const Request& request, void** arguments) {
    return call(kernel, request, arguments, std::index_sequence_for<Args...>{});
}

} // namespace grid

#define threadIdx (grid::current_fiber->thread)
#define blockIdx (grid::current_block->at)
#define blockDim (grid::current_block->block)
#define gridDim (grid::current_block->grid)

#define GRID_EXPORT(kernel)                                                                                            \
    extern "C" __attribute__((visibility("default"))) int lq_launch_##kernel(                                          \
        const unsigned grid_size[3], const unsigned block_size[3], unsigned, void** arguments, unsigned order,         \
        unsigned os_threads, char* error, unsigned long error_bytes) {                                                 \
        grid::Request request = {grid_size, block_size, order, os_threads, error, error_bytes};                        \
        return grid::launch(kernel, request, arguments);                                                               \
    }

extern "C" __attribute__((visibility("default"))) unsigned lq_emu_warp() {
    return LQ_WARP;
}

// ---- what portable.h leaves to the device ----

static inline void lq_sync(unsigned line = __builtin_LINE()) {
    grid::sync_threads(line);
}

template <int N>
inline void lq_warp_sums(float (&values)[N], unsigned line = __builtin_LINE()) {
    static_assert(N <= grid::WARP_VALUES_MAX, "values of one operation");
    grid::Warp& warp = grid::warp_of_fiber();
    for (int i = 0; i < N; i++) warp.values[i][grid::current_fiber->lane] = values[i];
    unsigned parity = grid::warp_meeting(warp, line, [](grid::Warp& warp, unsigned parity) {
        for (int i = 0; i < N; i++) warp.results[parity][i] = grid::butterfly_sum(warp.values[i]);
    });
    for (int i = 0; i < N; i++) values[i] = warp.results[parity][i];
}

inline float lq_warp_max(float value, unsigned line = __builtin_LINE()) {
    grid::Warp& warp = grid::warp_of_fiber();
    warp.values[0][grid::current_fiber->lane] = value;
    unsigned parity = grid::warp_meeting(warp, line, [](grid::Warp& warp, unsigned parity) {
        float most = warp.values[0][0];
        for (int lane = 1; lane < LQ_WARP; lane++) most = warp.values[0][lane] > most ? warp.values[0][lane] : most;
        warp.results[parity][0] = most;
    });
    return warp.results[parity][0];
}

inline void lq_warp_best(float& value, unsigned& index, unsigned line = __builtin_LINE()) {
    grid::Warp& warp = grid::warp_of_fiber();
    warp.values[0][grid::current_fiber->lane] = value;
    warp.indices[grid::current_fiber->lane] = index;
    unsigned parity = grid::warp_meeting(warp, line, [](grid::Warp& warp, unsigned parity) {
        float most = warp.values[0][0];
        unsigned at = warp.indices[0];
        for (int lane = 1; lane < LQ_WARP; lane++) {
            float other = warp.values[0][lane];
            if (other > most || (other == most && warp.indices[lane] < at)) most = other, at = warp.indices[lane];
        }
        warp.results[parity][0] = most;
        warp.result_index[parity] = at;
    });
    value = warp.results[parity][0];
    index = warp.result_index[parity];
}

inline unsigned long long lq_warp_peers(unsigned value, unsigned line = __builtin_LINE()) {
    grid::Warp& warp = grid::warp_of_fiber();
    warp.indices[grid::current_fiber->lane] = value;
    unsigned parity = grid::warp_meeting(warp, line, [](grid::Warp& warp, unsigned parity) {
        for (int lane = 0; lane < LQ_WARP; lane++) {
            warp.peers[parity][lane] = 0;
            for (int i = 0; i < LQ_WARP; i++) {
                warp.peers[parity][lane] |= (unsigned long long)(warp.indices[i] == warp.indices[lane]) << i;
            }
        }
    });
    return warp.peers[parity][grid::current_fiber->lane];
}

inline void lq_warp_sync(unsigned line = __builtin_LINE()) {
    grid::warp_meeting(grid::warp_of_fiber(), line, [](grid::Warp&, unsigned) {});
}
