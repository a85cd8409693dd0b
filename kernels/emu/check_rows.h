// Part of check.cpp: conversions, row-wise ops, the router, and kernels that the emulator must not let pass.
#pragma once

static void check_halves() {
    for (u32 bits = 0; bits < 0x10000; bits++) {
        float value = lq_f16_to_float(u16(bits));
        double exact = ldexp((bits & 1023) + (bits >> 10 & 31 ? 1024.0 : 0.0), int(std::max(bits >> 10 & 31, 1u)) - 25);
        if ((bits >> 10 & 31) == 31) {
            expect((bits & 1023) ? std::isnan(value) : std::isinf(value), "f16 beyond the finite");
            continue;
        }
        expect(value == (bits & 0x8000 ? -exact : exact), "f16 " + std::to_string(bits));
        expect(lq_float_to_f16(value) == bits, "to f16 and back " + std::to_string(bits));
        if ((bits & 0x7fff) >= 0x7bff) continue;
        // Halfway to the next goes to the even one, and just beside it to the nearer.
        float next = lq_f16_to_float(u16(bits + 1)), middle = (value + next) / 2;
        expect(lq_float_to_f16(middle) == bits + (bits & 1), "halfway from f16 " + std::to_string(bits));
        expect(lq_float_to_f16(nextafterf(middle, value)) == bits, "below halfway " + std::to_string(bits));
        expect(lq_float_to_f16(nextafterf(middle, next)) == bits + 1, "above halfway " + std::to_string(bits));
    }
    expect(lq_float_to_f16(1e9f) == 0x7bff && lq_float_to_f16(-INFINITY) == 0xfbff, "f16 is held in range");
    expect((lq_float_to_f16(NAN) & 0x7fff) > 0x7c00, "NaN stays NaN in f16");
    expect(std::isnan(lq_e4m3_to_float(0x7f)) && std::isnan(lq_e4m3_to_float(0xff)), "NaN of E4M3");
    expect(lq_e4m3_to_float(0x7e) == 448.0f && lq_e4m3_to_float(0x81) == -0.001953125f, "the ends of E4M3");
}

// ---- kernels that are wrong ----

static void half_skips_the_barrier(int* out) {
    if (threadIdx.x < 32) lq_sync();
    out[threadIdx.x] = 1;
}
static void two_barriers(int* out) {
    if (threadIdx.x % 2) {
        lq_sync();
    } else {
        lq_sync();
    }
    out[threadIdx.x] = 1;
}
static void part_of_a_warp_sums(float* out) {
    float value[1] = {1.0f};
    if (threadIdx.x % LQ_WARP < 5) lq_warp_sums(value);
    out[threadIdx.x] = value[0];
}
static void writes_past_its_array(float* out) {
    LQ_SHARED(float, values, 100);
    values[threadIdx.x] = 1.0f;
    lq_sync();
    out[threadIdx.x] = values[0];
}
static void too_much_shared(float* out) {
    LQ_SHARED(float, values, 13000);
    values[threadIdx.x] = 1.0f;
    out[threadIdx.x] = values[threadIdx.x];
}
static void reads_before_it_is_written(float* out) {
    LQ_SHARED(float, values, 128);
    values[threadIdx.x] = float(threadIdx.x);
    out[threadIdx.x] = values[(threadIdx.x + 1) % 128];
}
static void right(float* out) {
    LQ_SHARED(float, values, 128);
    values[threadIdx.x] = float(threadIdx.x);
    lq_sync();
    out[threadIdx.x] = values[(threadIdx.x + 1) % 128];
}

/// Each is refused, in words that name the reason; and the emulator goes on as if nothing had been.
static void check_emulator() {
    std::vector<int> ints(128);
    Floats floats(128);
    auto check = [&](int result, const char* reason) {
        expect(result != 0 && strstr(error_text, reason), std::string("expected '") + reason + "': " + error_text);
        expect(try_launch(right, {3}, 128, floats.data()) == 0 && floats[127] == 0.0f, "the next kernel runs");
    };
    check(try_launch(half_skips_the_barrier, {1}, 128, ints.data()), "deadlock");
    check(try_launch(two_barriers, {1}, 128, ints.data()), "different barriers");
    check(try_launch(part_of_a_warp_sums, {2}, 128, floats.data()), "deadlock");
    check(try_launch(too_much_shared, {1}, 128, floats.data()), "more shared memory");
    check(try_launch(right, {1}, 100, floats.data()), "whole warps");
    check(try_launch(right, {1, 0}, 128, floats.data()), "empty grid");
#if !defined(GRID_ASAN)
    check(try_launch(writes_past_its_array, {1}, 128, floats.data()), "out of bounds");
#endif
    u32 wrong = 0;
    for (const Order& each : ORDERS) {
        order = each;
        try_launch(reads_before_it_is_written, {1}, 128, floats.data());
        for (u32 i = 0; i < 128; i++) wrong += floats[i] != float((i + 1) % 128);
    }
    order = ORDERS[0];
    expect(wrong > 0, "a missing barrier shows");
}

// ---- row-wise ops ----

static void check_rows(u32 rows, u32 heads, u32 len) {
    std::string what = " [" + std::to_string(rows) + ", " + std::to_string(heads) + ", " + std::to_string(len) + "]";
    size_t count = size_t(rows) * heads * len;
    Floats x = random_values(count), y = random_values(count), weight = random_values(len);
    Floats table = random_values(size_t(50) * len);
    std::vector<u32> positions(rows), zeros(rows, 0);
    for (u32& position : positions) position = below(50);
    LqStep step = {zeros.data(), positions.data(), zeros.data(), zeros.data(), rows, 1, 1, 0};
    auto run = [&](const char* name, auto act) {
        return in_all_orders(name + what, [&] {
            Rows from(rows, heads, len, x), to(rows, heads, len, y);
            act(from.view(), to.view());
            return to.values();
        });
    };
    grid::Dim size = {rows, heads, 1};
    u32 threads = len > 1024 ? 256 : 64;
    Floats norm = run("rms_norm", [&](LqView from, LqView to) {
        launch(rms_norm, size, threads, from, (const float*)weight.data(), to, 1e-5f);
    });
    std::vector<double> want(count), ones(count, 4.0);
    for (size_t i = 0; i < count; i += len) {
        double squares = 0;
        for (u32 j = 0; j < len; j++) squares += double(x[i + j]) * x[i + j];
        for (u32 j = 0; j < len; j++) want[i + j] = x[i + j] / sqrt(squares / len + 1e-5f) * weight[j];
    }
    expect_close(norm, want, ones, 1e-6, "rms_norm" + what);
    for (u32 half = 0; half < 2; half++) {
        Floats turned = run("rope", [&](LqView from, LqView to) {
            launch(rope, size, 64, step, from, (const float*)table.data(), to, half);
        });
        for (size_t i = 0; i < count; i++) {
            u32 j = i % len, pairs = len / 2, pair = half ? j % pairs : j / 2;
            bool second = half ? j >= pairs : j % 2;
            size_t start = i - j, a = start + (half ? pair : 2 * pair), b = half ? a + pairs : a + 1;
            const float* angles = &table[positions[i / (heads * len)] * size_t(len)];
            double cosine = angles[pair], sine = angles[pairs + pair];
            want[i] = second ? x[a] * sine + x[b] * cosine : x[a] * cosine - x[b] * sine;
        }
        expect_close(turned, want, ones, 1e-6, "rope" + what);
    }
    Floats sum = run("add", [&](LqView from, LqView to) { launch(add, size, 128, from, to); });
    for (size_t i = 0; i < count; i++) want[i] = x[i] + y[i];
    expect_close(sum, want, ones, 1e-6, "add" + what);
    expect_same(run("copy", [&](LqView from, LqView to) { launch(copy, size, 128, from, to); }), x, "copy" + what);
    std::vector<u32> turned(rows);
    for (u32 r = 0; r < rows; r++) turned[r] = (r + 1) % rows;
    Floats gathered = run("gather_rows", [&](LqView from, LqView to) {
        launch(gather_rows, size, 128, from, (const u32*)turned.data(), to);
    });
    std::rotate(x.begin(), x.begin() + heads * len, x.end());
    expect_same(gathered, x, "gather_rows" + what);
    Floats filled(count);
    launch(fill, {parts(u32(count), 256)}, 256, filled.data(), u64(count), 2.5f);
    expect_same(filled, Floats(count, 2.5f), "fill" + what);
    // Blocks of the cache turn places: all are read before any is written.
    std::vector<u16> cells(2 * rows * 6), held(cells.size()), before;
    for (u16& cell : cells) cell = u16(random_bits());
    before = cells;
    std::vector<u32> from_blocks(rows);
    for (u32 r = 0; r < rows; r++) from_blocks[r] = r;
    u64 layer = rows * 6;
    const u32 *from_ = from_blocks.data(), *to_ = turned.data();
    launch(kv_read_blocks, {rows, 2}, 128, (const u16*)cells.data(), from_, held.data(), layer, 6u);
    launch(kv_write_blocks, {rows, 2}, 128, cells.data(), to_, (const u16*)held.data(), layer, 6u);
    for (u32 i = 0; i < cells.size(); i++) {
        u32 l = i / layer, block = i % layer / 6;
        expect(cells[l * layer + turned[block] * 6 + i % 6] == before[i], "kv blocks" + what);
    }
}

// ---- the router ----

/// The best of `values` that are not NaN-marked, lowest first among equals; marks it.
static u32 take_best(std::vector<float>& values, std::vector<bool>& gone) {
    u32 best = ~0u;
    for (u32 i = 0; i < values.size(); i++) {
        if (!gone[i] && (best == ~0u || values[i] > values[best])) best = i;
    }
    gone[best] = true;
    return best;
}

static void check_route(u32 number) {
    u32 groups = 1 + below(8), size = 1 + below(40), rows = 1 + below(5);
    LqRouteSpec spec = {groups * size, 1, number % 2, number % 3 ? groups : 0, 1 + below(groups), number % 3 == 2,
                        number / 2 % 2, 2.5f};
    spec.top_k = 1 + below(std::min(8u, spec.groups ? spec.top_groups * size : spec.experts));
    Floats logits = random_values(size_t(rows) * spec.experts), bias = random_values(spec.experts);
    if (number == 0) std::fill(logits.begin(), logits.end(), 0.25f);
    if (number % 4 == 0) std::fill(bias.begin(), bias.end(), 0.0f);
    std::vector<u32> experts(rows * spec.top_k);
    std::string what = "route " + std::to_string(number);
    Floats got = in_all_orders(what, [&] {
        Rows from(rows, 1, spec.experts, logits);
        Floats weights(rows * spec.top_k);
        const float* biases = number % 4 ? bias.data() : nullptr;
        launch(route, {rows}, LQ_WARP, from.view(), biases, experts.data(), weights.data(), spec);
        return weights;
    });
    for (u32 row = 0; row < rows; row++) {
        std::vector<float> scores(spec.experts), choices(spec.experts), of_groups(groups);
        const float* of_row = &logits[row * spec.experts];
        double total = 0, most = *std::max_element(of_row, of_row + spec.experts);
        for (u32 e = 0; e < spec.experts; e++) total += exp(of_row[e] - most);
        for (u32 e = 0; e < spec.experts; e++) {
            double logit = of_row[e];
            scores[e] = float(spec.sigmoid ? 1 / (1 + exp(-logit)) : exp(logit - most) / total);
            choices[e] = scores[e] + bias[e];
        }
        std::vector<bool> gone(spec.experts, spec.groups != 0), group_gone(groups, false);
        for (u32 g = 0; spec.groups && g < groups; g++) {
            std::vector<float> sorted(choices.begin() + g * size, choices.begin() + (g + 1) * size);
            std::sort(sorted.rbegin(), sorted.rend());
            of_groups[g] = sorted[0] + (spec.top2_sum && size > 1 ? sorted[1] : 0.0f);
        }
        for (u32 i = 0; spec.groups && i < spec.top_groups; i++) {
            u32 best = take_best(of_groups, group_gone);
            for (u32 e = 0; e < size; e++) gone[best * size + e] = false;
        }
        float sum = 0;
        std::vector<u32> chosen(spec.top_k);
        for (u32& expert : chosen) sum += scores[expert = take_best(choices, gone)];
        for (u32 slot = 0; slot < spec.top_k; slot++) {
            float weight = scores[chosen[slot]] / (spec.normalise && spec.top_k > 1 ? sum + 1e-20f : 1.0f) * spec.scale;
            // Scores so close that the last bit of exp decides may change places.
            float other = choices[experts[row * spec.top_k + slot]] - choices[chosen[slot]];
            expect(fabs(other) < 1e-6f, what + ": another expert");
            expect(fabs(got[row * spec.top_k + slot] - weight) < 2e-5f, what + ": another weight");
        }
    }
}
