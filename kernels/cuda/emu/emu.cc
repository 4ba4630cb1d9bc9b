// The scheduler: see emu.h.
#include "emu.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"

namespace emu {

thread_local uint3 thread, block, block_size;
thread_local uint8_t* shared;
thread_local size_t shared_bytes;

namespace {

constexpr uint32_t WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10;

enum class State { Runs, AtBarrier, InWarp, Ended };

// An asynchronous copy that is under way.
struct Copy {
    uint8_t* to;
    const uint8_t* from;
    uint32_t bytes;
    bool exists;
    uint32_t group;
};

struct Thread {
    Fiber fiber;
    State state;
    const char* place;  // where it waits
    Collective run;     // for what, and what it brought
    void* mine;
    bool vote;
    std::vector<Copy> copies;
    uint32_t group;  // of its next copy
};

// The block that runs on this thread of the host.
struct Block {
    void (*kernel)(const void*) = nullptr;
    const void* args = nullptr;
    std::vector<Thread> threads;
    Fiber host;
    uint32_t current = 0;
    bool vote = false;
    std::string error;
    std::mt19937 random;
    sigjmp_buf fault;
    bool is_running = false;
};

thread_local Block now;

void resume(uint32_t index) {
    now.current = index;
    thread = {index, 0, 0};
    switch_fiber(now.host, now.threads[index].fiber);
}

// Back to the scheduler, until it resumes this thread.
void wait(State state, const char* place) {
    Thread& self = now.threads[now.current];
    self.state = state;
    self.place = place;
    switch_fiber(self.fiber, now.host);
}

void run_thread() {
    now.kernel(now.args);
    wait(State::Ended, nullptr);
    abort();
}

const char* name(const char* place) { return place ? place : "its end"; }

bool fail(const char* what, const Thread& a, const Thread& b) {
    now.error = std::string(what) + ": threads wait at " + name(a.place) + " and at " + name(b.place);
    return false;
}

bool same_place(const Thread& a, const Thread& b) {
    if (a.state == State::InWarp && a.run != b.run) return false;
    return a.place == b.place || (a.place && b.place && strcmp(a.place, b.place) == 0);
}

// Ends the grid, from within a thread.
[[noreturn]] void die(const char* what) {
    now.is_running = false;
    now.error = what;
    siglongjmp(now.fault, 1);
}

// Runs a warp until all of it waits at one barrier or has ended.
bool run_warp(Thread* warp, uint32_t first, const std::vector<uint32_t>& order) {
    for (;;) {
        for (uint32_t lane : order) {
            if (warp[lane].state == State::Runs) resume(first + lane);
        }
        const bool in_warp = warp[0].state == State::InWarp;
        for (uint32_t lane = 1; lane < WARP; lane++) {
            const bool together = warp[lane].state == warp[0].state && same_place(warp[lane], warp[0]);
            if (!together) return fail("a warp that diverges", warp[0], warp[lane]);
        }
        if (!in_warp) return true;
        void* lanes[WARP];
        for (uint32_t lane = 0; lane < WARP; lane++) lanes[lane] = warp[lane].mine;
        if (const char* wrong = warp[0].run(lanes)) {
            now.error = wrong;
            return false;
        }
        for (uint32_t lane = 0; lane < WARP; lane++) warp[lane].state = State::Runs;
    }
}

bool have_copies_ended() {
    const auto ended = [](const Thread& t) { return t.copies.empty(); };
    if (std::all_of(now.threads.begin(), now.threads.end(), ended)) return true;
    now.error = "a thread ends while its copies are under way";
    return false;
}

bool run_block() {
    const uint32_t num_warps = block_size.x / WARP;
    std::vector<uint32_t> warps(num_warps), lanes(WARP);
    std::iota(warps.begin(), warps.end(), 0);
    std::iota(lanes.begin(), lanes.end(), 0);
    for (;;) {
        std::shuffle(warps.begin(), warps.end(), now.random);
        std::shuffle(lanes.begin(), lanes.end(), now.random);
        for (uint32_t warp : warps) {
            if (!run_warp(&now.threads[warp * WARP], warp * WARP, lanes)) return false;
        }
        bool vote = false;
        for (const Thread& t : now.threads) {
            const Thread& first = now.threads[0];
            if (t.state != first.state || !same_place(t, first)) return fail("a barrier that diverges", first, t);
            vote = vote || t.vote;
        }
        if (now.threads[0].state == State::Ended) return have_copies_ended();
        now.vote = vote;
        for (Thread& t : now.threads) t.state = State::Runs;
    }
}

// Device memory: mapped pages between two that must not be touched.
struct Allocation {
    uint8_t *mapping, *start;
    size_t mapped, bytes;
};

constexpr uint8_t SLACK = 0xa5;
constexpr size_t ALIGNMENT = 16;

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

Allocation allocate(size_t bytes, bool at_end) {
    const size_t inner = round_up(bytes ? bytes : 1, page_bytes()), mapped = inner + 2 * page_bytes();
    void* mapping = mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return {};
    uint8_t* inside = static_cast<uint8_t*>(mapping) + page_bytes();
    if (mprotect(inside, inner, PROT_READ | PROT_WRITE) != 0) return {};
    uint8_t* start = at_end ? inside + inner - round_up(bytes, ALIGNMENT) : inside;
    memset(inside, SLACK, start - inside);
    // What nobody wrote reads as NaN.
    memset(start, 0xff, bytes);
    memset(start + bytes, SLACK, inside + inner - start - bytes);
    return {static_cast<uint8_t*>(mapping), start, mapped, bytes};
}

// Whether nobody wrote beside the allocation, where that is still mapped.
bool is_intact(const Allocation& a) {
    const uint8_t *inside = a.mapping + page_bytes(), *end = a.mapping + a.mapped - page_bytes();
    const auto is_slack = [](uint8_t byte) { return byte == SLACK; };
    return std::all_of(inside, const_cast<const uint8_t*>(a.start), is_slack) &&
           std::all_of(const_cast<const uint8_t*>(a.start + a.bytes), end, is_slack);
}

struct sigaction before[2];

void on_fault(int signal, siginfo_t* info, void* context) {
    if (now.is_running) {
        now.is_running = false;
        char text[128];
        snprintf(text, sizeof text, "thread %u of block (%u, %u) touches %p, which is no memory of its own",
                 thread.x, block.x, block.y, info->si_addr);
        now.error = text;
        siglongjmp(now.fault, 1);
    }
    const struct sigaction& old = before[signal == SIGBUS];
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(signal, info, context);
    sigaction(signal, &old, nullptr);  // happens again, without us
}

void catch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &before[0]);
        sigaction(SIGBUS, &action, &before[1]);
    });
}

void start_threads() {
    // Kept for the next block: a fiber that ended is started anew on the same stack.
    static thread_local std::vector<uint8_t*> stacks;
    while (stacks.size() < block_size.x) {
        void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) abort();
        stacks.push_back(static_cast<uint8_t*>(stack));
    }
    now.threads.resize(block_size.x);
    for (uint32_t i = 0; i < block_size.x; i++) {
        now.threads[i] = {};
        now.threads[i].fiber = new_fiber(stacks[i], STACK_BYTES, run_thread);
    }
}

bool run_blocks(const uint32_t grid[2]) {
    std::vector<uint64_t> blocks(uint64_t(grid[0]) * grid[1]);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), now.random);
    for (uint64_t index : blocks) {
        block = {static_cast<uint32_t>(index % grid[0]), static_cast<uint32_t>(index / grid[0]), 0};
        memset(shared, 0xff, shared_bytes);
        start_threads();
        if (!run_block()) return false;
    }
    return true;
}

// A fault ends the grid, here; what its threads held is lost.
bool run_grid(const uint32_t grid[2]) {
    if (sigsetjmp(now.fault, 1) != 0) return false;
    now.is_running = true;
    const bool ok = run_blocks(grid);
    now.is_running = false;
    return ok;
}

}  // namespace

void collective(Collective run, void* mine, const char* place) {
    now.threads[now.current].run = run;
    now.threads[now.current].mine = mine;
    wait(State::InWarp, place);
}

void warp_barrier(const char* place) {
    collective([](void* const*) -> const char* { return nullptr; }, nullptr, place);
}

bool barrier(bool vote, const char* place) {
    now.threads[now.current].vote = vote;
    wait(State::AtBarrier, place);
    return now.vote;
}

void copy_async(void* to, const void* from, uint32_t bytes, bool exists) {
    Thread& self = now.threads[now.current];
    uint8_t* start = static_cast<uint8_t*>(to);
    if (start < shared || start + bytes > shared + shared_bytes) die("an asynchronous copy beside shared memory");
    if ((uintptr_t(to) | uintptr_t(from)) % bytes != 0) die("an asynchronous copy that is not aligned");
    memset(to, 0xff, bytes);
    self.copies.push_back({start, static_cast<const uint8_t*>(from), bytes, exists, self.group});
}

void end_copies() { now.threads[now.current].group++; }

void wait_copies(uint32_t pending) {
    Thread& self = now.threads[now.current];
    const auto is_pending = [&](const Copy& copy) { return copy.group + pending >= self.group; };
    for (const Copy& copy : self.copies) {
        if (is_pending(copy)) continue;
        if (copy.exists) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    const auto rest = std::partition(self.copies.begin(), self.copies.end(), is_pending);
    self.copies.erase(rest, self.copies.end());
}

}  // namespace emu

extern "C" {

void* keepwell_emu_alloc(size_t bytes, uint32_t seed) {
    const emu::Allocation a = emu::allocate(bytes, seed % 2 == 0);
    return a.mapping ? new emu::Allocation(a) : nullptr;
}

uint8_t* keepwell_emu_address(void* allocation) { return static_cast<emu::Allocation*>(allocation)->start; }

// Frees it. Returns whether nobody wrote beside it.
bool keepwell_emu_free(void* allocation) {
    emu::Allocation* a = static_cast<emu::Allocation*>(allocation);
    const bool intact = emu::is_intact(*a);
    munmap(a->mapping, a->mapped);
    delete a;
    return intact;
}

// Runs `kernel` on a grid. Returns whether all went well, or else says in `error` what did not.
bool keepwell_emu_run(void (*kernel)(const void*), const void* args, const uint32_t grid[2], uint32_t threads,
                      size_t bytes_of_shared, uint32_t seed, char* error, size_t error_bytes) {
    using namespace emu;
    catch_faults();
    if (threads == 0 || threads > 1024 || threads % WARP != 0 || bytes_of_shared > (48 << 10)) {
        snprintf(error, error_bytes, "%u threads with %zu bytes of shared memory", threads, bytes_of_shared);
        return false;
    }
    now.kernel = kernel;
    now.args = args;
    now.random.seed(seed);
    now.error.clear();
    block_size = {threads, 1, 1};
    const Allocation memory = allocate(bytes_of_shared, true);
    shared = memory.start;
    shared_bytes = bytes_of_shared;
    bool ok = run_grid(grid);
    if (ok && !is_intact(memory)) {
        now.error = "wrote beyond shared memory";
        ok = false;
    }
    munmap(memory.mapping, memory.mapped);
    if (!ok) snprintf(error, error_bytes, "%s", now.error.c_str());
    return ok;
}
}
