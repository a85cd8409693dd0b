// Part of check.cpp: products on matrix units, against doubles with x rounded to bf16.
#pragma once

#if defined(LQ_MMA)

static const u32 T[] = {8, 16, 64};
static const LinearKernel LINEAR_T[] = {linear_t8, linear_t16, linear_t64};
static const GroupedKernel GROUPED_T[] = {grouped_t8, grouped_t16, grouped_t64};
static const GateUpKernel GATE_UP_T[] = {gate_up_t8, gate_up_t16, gate_up_t64};
static const u32 OUTPUTS_T[] = {16, 64, 128}, GATED_T[] = {16, 32, 64};

static std::vector<double> rounded(const std::vector<double>& x) {
    std::vector<double> values;
    for (double value : x) values.push_back(lq_bf16_to_float(lq_bf16_pair(float(value), 0.0f) & 0xffff));
    return values;
}

static void check_bf16() {
    for (int v = -128; v < 128; v++) {
        expect(lq_bf16_to_float(lq_bf16_of_i8(u32(v & 255) << 16) >> 16) == float(v), "bf16 of i8");
        expect(lq_bf16_to_float(lq_bf16_of_i8(v & 255) & 0xffff) == float(v), "bf16 of i8, low");
        u32 byte = v & 255;
        if ((byte & 0x7f) == 0x7f) continue;
        float want = lq_e4m3_to_float(byte);
        expect(lq_bf16_to_float(lq_bf16_of_e4m3(byte << 16) >> 16) == want, "bf16 of E4M3");
        expect(lq_bf16_to_float(lq_bf16_of_e4m3(byte) & 0xffff) == want, "bf16 of E4M3, low");
    }
    for (u32 i = 0; i < 1000; i++) {
        u32 word = random_bits(), high = random_bits() & 0xffff;
        for (u32 j = 0; j < 8; j++) {
            u32 low = lq_slot_of_4(word, j), six = low | lq_slot_of_2(high, j) << 4;
            u32 four = lq_bf16_of_4(word, j / 2) >> (j % 2 * 16) & 0xffff;
            expect(lq_bf16_to_float(four) == float(low), "bf16 of 4 bits");
            u32 of_six = lq_bf16_of_6(word, high, j / 2) >> (j % 2 * 16) & 0xffff;
            expect(lq_bf16_to_float(of_six) == float(int(six) - 32), "bf16 of 6 bits");
        }
    }
}

static void check_linear_tiles(u32 format, u32 rows, u32 heads) {
    u32 cols = below(3) ? random_cols(format) : 768 + 256 * below(3), outputs = 1 + below(below(2) ? 20 : 150);
    std::string what = std::string("tiles ") + FORMATS[format];
    what += " " + std::to_string(rows) + "x" + std::to_string(cols);
    std::vector<Weights> weights;
    for (u32 h = 0; h < heads; h++) weights.emplace_back(format, outputs, cols);
    std::vector<LqMatrix> table;
    for (Weights& w : weights) table.push_back(w.matrix);
    Floats x = random_values(size_t(rows) * heads * cols), bias = random_values(outputs), first;
    for (int variant = 0; variant < 3; variant++) {
        Floats got = in_all_orders(what, [&] {
            Rows from(rows, heads, cols, x), to(rows, heads, outputs);
            grid::Dim size = {parts(outputs, OUTPUTS_T[variant]), parts(rows, T[variant]), heads};
            launch(LINEAR_T[variant], size, 4 * LQ_WARP, from.view(), (const LqMatrix*)table.data(),
                   (const float*)bias.data(), to.view());
            return to.values();
        });
        if (variant == 0) first = got;
        expect_same(got, first, what + " t" + std::to_string(T[variant]));
    }
    if (heads == 1 && cols % 4 == 0) { // rows of x that can be loaded by fours
        Rows to(rows, 1, outputs);
        Floats bare = x;
        LqView from = {bare.data(), cols, cols, rows, 1, cols, 0};
        launch(linear_t16, {parts(outputs, 64), parts(rows, 16), 1}, 4 * LQ_WARP, from, (const LqMatrix*)table.data(),
               (const float*)bias.data(), to.view());
        expect_same(to.values(), first, what + ": aligned");
    }
    std::vector<double> want, magnitudes;
    for (u32 i = 0; i < rows * heads; i++) {
        Product y = multiply(weights[i % heads], rounded(slice(x, size_t(i) * cols, cols)));
        for (u32 o = 0; o < outputs; o++) y.values[o] += bias[o], y.magnitudes[o] += fabs(bias[o]);
        want.insert(want.end(), y.values.begin(), y.values.end());
        magnitudes.insert(magnitudes.end(), y.magnitudes.begin(), y.magnitudes.end());
    }
    // Q4_K's and codes' integers and minima cancel in part: each is larger than the weight.
    expect_close(first, want, magnitudes, format == LQ_Q4_K || format == LQ_CODES ? 1e-5 : 2e-6, what);
}

static void check_expert_tiles(u32 gate_format, u32 up_format, u32 down_format) {
    u32 hidden = 256 * (1 + below(3)), inner = 256, count = 1 + below(6), rows = 1 + below(60);
    u32 top_k = 1 + below(std::min(count, 3u)), slots = rows * top_k;
    std::string what = std::string("expert tiles ") + FORMATS[gate_format] + " " + FORMATS[up_format];
    std::vector<Weights> gate, up, down;
    std::vector<LqMatrix> gates, ups, downs;
    for (u32 e = 0; e < count; e++) {
        gate.emplace_back(gate_format, inner, hidden), up.emplace_back(up_format, inner, hidden);
        down.emplace_back(down_format, hidden, inner);
    }
    for (u32 e = 0; e < count; e++) {
        gates.push_back(gate[e].matrix), ups.push_back(up[e].matrix), downs.push_back(down[e].matrix);
    }
    std::vector<u32> chosen(slots);
    for (u32 slot = 0; slot < slots; slot++) chosen[slot] = (slot / top_k * 3 + slot % top_k) % count;
    Floats x = random_values(size_t(rows) * hidden), first, inner_first;
    for (float& value : x) value *= 0.05f;
    for (int variant = 0; variant < 3; variant++) {
        Floats held;
        Floats got = in_all_orders(what, [&] {
            u32 tiles_max = slots / T[variant] + std::min(slots, count);
            std::vector<u32> sorted(slots), tiles(tiles_max * 4), tile_count(1);
            launch(group_slots, {1}, 256, (const u32*)chosen.data(), sorted.data(), tiles.data(), tile_count.data(),
                   slots, count, T[variant]);
            Rows from(rows, 1, hidden, x), gated(slots, 1, inner), g(slots, 1, inner), u(slots, 1, inner);
            Rows y(slots, 1, hidden);
            LqGroups of_rows = {sorted.data(), tiles.data(), tile_count.data(), top_k, 0}, of_slots = of_rows;
            of_slots.inputs_per_row = 1;
            const LqMatrix *gate_ = gates.data(), *up_ = ups.data(), *down_ = downs.data();
            launch(GATE_UP_T[variant], {parts(inner, GATED_T[variant]), tiles_max}, 4 * LQ_WARP, from.view(), gate_,
                   up_, of_rows, gated.view());
            grid::Dim size = {parts(inner, OUTPUTS_T[variant]), tiles_max};
            launch(GROUPED_T[variant], size, 4 * LQ_WARP, from.view(), gate_, of_rows, g.view());
            launch(GROUPED_T[variant], size, 4 * LQ_WARP, from.view(), up_, of_rows, u.view());
            launch(silu_mul, {slots, 1}, 128, g.view(), u.view(), g.view());
            held = gated.values();
            expect_same(held, g.values(), what + ": gate_up");
            launch(GROUPED_T[variant], {parts(hidden, OUTPUTS_T[variant]), tiles_max}, 4 * LQ_WARP, gated.view(), down_,
                   of_slots, y.view());
            return y.values();
        });
        if (variant == 0) first = got, inner_first = held;
        expect_same(held, inner_first, what + ": gated t" + std::to_string(T[variant]));
        expect_same(got, first, what + " t" + std::to_string(T[variant]));
    }
    std::vector<double> want, magnitudes;
    for (u32 slot = 0; slot < slots; slot++) { // from the rounded values in between, so that the bound is tight
        Product y = multiply(down[chosen[slot]], rounded(slice(inner_first, size_t(slot) * inner, inner)));
        want.insert(want.end(), y.values.begin(), y.values.end());
        magnitudes.insert(magnitudes.end(), y.magnitudes.begin(), y.magnitudes.end());
    }
    expect_close(first, want, magnitudes, 1e-5, what + ": down");
    want.clear(), magnitudes.clear();
    for (u32 slot = 0; slot < slots; slot++) {
        std::vector<double> input = rounded(slice(x, size_t(slot / top_k) * hidden, hidden));
        Product g = multiply(gate[chosen[slot]], input), u = multiply(up[chosen[slot]], input);
        for (u32 i = 0; i < inner; i++) {
            want.push_back(g.values[i] / (1 + exp(-g.values[i])) * u.values[i]);
            magnitudes.push_back((1 + g.magnitudes[i]) * (1 + u.magnitudes[i]));
        }
    }
    expect_close(inner_first, want, magnitudes, 1e-5, what + ": gated");
}

static void check_tiles() {
    check_bf16();
    scale_cols_least = 32;
    for (u32 format = LQ_F16; format <= LQ_CODES; format++) {
        for (u32 rows : {1, 9, 40}) check_linear_tiles(format, rows, 1);
        check_linear_tiles(format, 5, 3);
        check_expert_tiles(format, format, LQ_BF16);
        check_expert_tiles(format, 1 + (format + 3) % 7, format);
    }
    scale_cols_least = 16;
}

#else
static void check_tiles() {}
#endif
