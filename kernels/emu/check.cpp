// The kernels in the emulator against plain double arithmetic, at generated shapes; and the emulator against kernels
// that are wrong. Each case runs in several orders and its bits must not change, nor with the variant of a kernel (R,
// Q, rows or splits). All memory is allocated to the byte, so the address sanitizer finds every access out of bounds.
// README.md says how to build and run it.
#include "lingqu.cu"

#include <algorithm>
#include <string>
#include <tuple>

// ---- cases ----

static u64 random_state = 0x243f6a8885a308d3ull;
static u32 random_bits() { // Marsaglia's xorshift
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return u32(random_state >> 32);
}
static u32 below(u32 bound) { return random_bits() % bound; }
static float unit() { return float(random_bits() >> 8) / (1 << 23) - 1.0f; }

using Floats = std::vector<float>;
static Floats random_values(size_t count) {
    Floats values(count);
    for (float& value : values) value = unit() + unit() + unit();
    return values;
}

static u32 failures = 0, checks = 0;
static void expect(bool ok, const std::string& what) {
    checks++;
    if (!ok && ++failures < 40) printf("FAILED %s\n", what.c_str());
}

/// Within `tolerance` of the magnitudes.
static void expect_close(const Floats& got, const std::vector<double>& want, const std::vector<double>& magnitudes,
                         double tolerance, const std::string& what) {
    double worst = got.size() == want.size() ? 0.0 : INFINITY;
    for (size_t i = 0; i < got.size() && i < want.size(); i++) {
        double error = fabs(got[i] - want[i]) / (magnitudes[i] + 1e-30);
        worst = error <= worst ? worst : (std::isnan(error) ? INFINITY : error);
    }
    expect(worst <= tolerance, what + ": off by " + std::to_string(worst / tolerance) + " of the tolerance");
}

static void expect_same(const Floats& got, const Floats& want, const std::string& what) {
    expect(got.size() == want.size() && !memcmp(got.data(), want.data(), got.size() * 4), what + ": other bits");
}

struct Order {
    u32 order, os_threads;
};
static Order order = {0, 1};
static const Order ORDERS[] = {{0, 1}, {1, 1}, {77, 2}};
static char error_text[300];

template <class... Params, class... Args>
static int try_launch(void (*kernel)(Params...), grid::Dim grid_size, u32 threads, Args... args) {
    const unsigned g[3] = {grid_size.x, grid_size.y, grid_size.z}, b[3] = {threads, 1, 1};
    std::tuple<std::remove_cv_t<Params>...> held(args...);
    return std::apply(
        [&](auto&... each) {
            void* pointers[] = {(void*)&each...};
            return grid::launch(kernel, {g, b, order.order, order.os_threads, error_text, sizeof error_text}, pointers);
        },
        held);
}

template <class... Params, class... Args>
static void launch(void (*kernel)(Params...), grid::Dim grid_size, u32 threads, Args... args) {
    if (try_launch(kernel, grid_size, threads, args...)) expect(false, error_text);
}

/// Runs `compute` in all orders; the bits must agree.
template <class Compute>
static Floats in_all_orders(const std::string& what, Compute compute) {
    Floats first;
    for (const Order& each : ORDERS) {
        order = each;
        Floats got = compute();
        if (first.empty()) first = got;
        expect_same(got, first, what + ", order " + std::to_string(each.order));
    }
    order = ORDERS[0];
    return first;
}

/// A view [rows, heads, len] with columns of NaN around it.
struct Rows {
    u32 rows, heads, len, stride, row_stride, offset;
    Floats memory;
    Rows(u32 rows, u32 heads, u32 len, u32 gap = 3)
        : rows(rows), heads(heads), len(len), stride(len + gap), row_stride(heads * stride + 5), offset(gap),
          memory(size_t(rows) * row_stride, NAN) {}
    Rows(u32 rows, u32 heads, u32 len, const Floats& values) : Rows(rows, heads, len) {
        for (size_t i = 0; i < values.size(); i++) at(i) = values[i];
    }
    float& at(size_t i) {
        return memory[i / (heads * len) * row_stride + offset + i / len % heads * stride + i % len];
    }
    LqView view() { return {memory.data() + offset, row_stride, stride, rows, heads, len, 0}; }
    Floats values() {
        Floats values(size_t(rows) * heads * len);
        for (size_t i = 0; i < values.size(); i++) values[i] = at(i);
        size_t held = std::count_if(memory.begin(), memory.end(), [](float v) { return !std::isnan(v); });
        expect(held <= values.size(), "nothing beside the view is written");
        return values;
    }
};

// ---- weights ----

static const char* FORMATS[] = {"F32", "F16", "BF16", "FP8", "Q8_0", "Q4_K", "Q6_K", "codes"};

static u32 parts(u32 count, u32 size) { return (count + size - 1) / size; }

static u32 scale_cols_least = 16; // of FP8; of codes, too, up to 32

struct Weights {
    std::vector<u8> planes[4];
    LqMatrix matrix;
    Floats values; // [rows, cols]
    Weights(u32 format, u32 rows, u32 cols);
};

static u16 random_half() { return u16(0x1800 + below(0x1400) + (below(2) << 15)); }

Weights::Weights(u32 format, u32 rows, u32 cols) : values(size_t(rows) * cols) {
    u64 padded = (cols + 7) / 8 * 8, n = rows * padded;
    u32 rows_per_scale = 24, cols_per_scale = scale_cols_least << below(2), scale_cols;
    if (format == LQ_CODES) cols_per_scale = std::min(cols_per_scale, 32u);
    scale_cols = parts(cols, cols_per_scale);
    u64 sizes[8][4] = {{n * 4}, {n * 2}, {n * 2}, {n, (rows + 23) / 24 * u64(scale_cols) * 4}, {n, n / 32 * 2},
                       {n / 2, n / 256 * 16}, {n / 2, n / 4, n / 16, n / 256 * 2}, {n, n / cols_per_scale * 8}};
    for (int i = 0; i < 4; i++) {
        planes[i].resize(sizes[format][i]);
        for (u8& byte : planes[i]) byte = u8(random_bits());
    }
    auto halves = [&](int plane, u64 i) { return reinterpret_cast<u16*>(planes[plane].data()) + i; };
    auto half = [&](int plane, u64 i) { return lq_f16_to_float(*halves(plane, i)); };
    for (u64 i = 0; i < n; i++) {
        u64 row = i / padded, col = i % padded;
        // Where the K formats have value i: README.md, "Order of the K formats".
        bool k = format == LQ_Q4_K || format == LQ_Q6_K;
        u64 word = i / 128 * 16 + i % 16 / 4 * 4 + i % 128 / 32;
        u32 slot = i % 4 + i % 32 / 16 * 4, at_4 = slot % 2 * 4 + slot / 2, at_2 = slot % 2 * 4 + slot / 2;
        u8* low = &planes[0][k ? word * 4 + at_4 / 2 : i];
        int nibble = *low >> (at_4 % 2 * 4) & 15;
        float value = col < cols ? unit() : 0.0f;
        if (format == LQ_F32) memcpy(&planes[0][i * 4], &value, 4);
        if (format == LQ_F16) *halves(0, i) = lq_float_to_f16(value), value = half(0, i);
        if (format == LQ_BF16) {
            *halves(0, i) = u16(lq_bits_of_float(value) >> 16);
            value = lq_float_of_bits(u32(*halves(0, i)) << 16);
        }
        if (format == LQ_FP8) {
            if (col >= cols || (*low & 0x7f) == 0x7f) *low = 0;
            u64 at = row / rows_per_scale * scale_cols + col / cols_per_scale;
            float scale = 0.001f * float(1 + at % 7);
            if (col < cols) memcpy(&planes[1][at * 4], &scale, 4);
            int exponent = *low >> 3 & 15, mantissa = *low & 7;
            value = float(exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9)) * scale;
            value = *low & 0x80 ? -value : value;
        }
        if (format == LQ_Q8_0) {
            if (i % 32 == 0) *halves(1, i / 32) = random_half();
            value = half(1, i / 32) * float(i8(*low));
        }
        if (format == LQ_Q4_K) {
            if (i % 256 == 0) *halves(1, i / 256 * 8) = random_half(), *halves(1, i / 256 * 8 + 1) = random_half();
            const u8* scales = &planes[1][i / 256 * 16 + 4];
            u32 g = i % 256 / 32; // as in crates/tensor/src/quant/q4_k.rs
            u32 scale = g < 4 ? scales[g] & 63 : (scales[4 + g] & 15) | scales[g - 4] >> 6 << 4;
            u32 min = g < 4 ? scales[4 + g] & 63 : scales[4 + g] >> 4 | scales[g] >> 6 << 4;
            value = half(1, i / 256 * 8) * float(scale) * float(nibble) - half(1, i / 256 * 8 + 1) * float(min);
        }
        if (format == LQ_Q6_K) {
            if (i % 256 == 0) *halves(3, i / 256) = random_half();
            int q = nibble | (planes[1][word * 2 + at_2 / 4] >> (at_2 % 4 * 2) & 3) << 4;
            value = half(3, i / 256) * float(i8(planes[2][i / 16])) * float(q - 32);
        }
        if (format == LQ_CODES) {
            float scale[2] = {0.001f * float(1 + i / cols_per_scale % 7), unit() * 0.01f};
            u8* held = &planes[1][i / cols_per_scale * 8];
            if (i % cols_per_scale == 0) memcpy(held, scale, 8);
            memcpy(scale, held, 8);
            value = scale[0] * float(i8(*low)) - scale[1];
        }
        if (col < cols) values[row * cols + col] = value;
    }
    matrix = {{}, format, rows, cols, rows_per_scale, cols_per_scale, {}};
    for (int i = 0; i < 4; i++) matrix.planes[i] = planes[i].empty() ? nullptr : planes[i].data();
}

struct Product {
    std::vector<double> values, magnitudes; // [outputs]
};
static Product multiply(const Weights& w, const std::vector<double>& x) {
    Product product;
    u32 cols = w.matrix.cols;
    for (u32 row = 0; row < w.matrix.rows; row++) {
        double sum = 0, squares = 0;
        for (u32 i = 0; i < cols; i++) {
            double term = double(w.values[row * cols + i]) * x[i];
            sum += term, squares += term * term;
        }
        product.values.push_back(sum);
        product.magnitudes.push_back(sqrt(squares) + fabs(sum));
    }
    return product;
}
static std::vector<double> slice(const Floats& x, size_t start, size_t count) {
    return std::vector<double>(x.begin() + start, x.begin() + start + count);
}

using LinearKernel = void (*)(LqView, const LqMatrix*, const float*, LqView);
using GroupedKernel = void (*)(LqView, const LqMatrix*, LqGroups, LqView);
using GateUpKernel = void (*)(LqView, const LqMatrix*, const LqMatrix*, LqGroups, LqView);
static const u32 R[] = {1, 4, 8};
static const LinearKernel LINEAR[] = {linear_r1, linear_r4, linear_r8};
static const GroupedKernel GROUPED[] = {grouped_r1, grouped_r4, grouped_r8};
static const GateUpKernel GATE_UP[] = {gate_up_r1, gate_up_r4, gate_up_r8};

static u32 random_cols(u32 format) {
    const u32 odd[] = {1, 7, 33, 130, 259, 4100};
    if (format == LQ_Q8_0 || format == LQ_CODES) return 32 * (1 + below(9));
    return format <= LQ_FP8 ? odd[below(6)] : 256 * (1 + below(17));
}

static void check_linear(u32 format, u32 rows, u32 heads) {
    u32 cols = random_cols(format), outputs = 1 + below(40);
    std::string what = std::string("linear ") + FORMATS[format] + " " + std::to_string(cols);
    std::vector<Weights> weights;
    for (u32 h = 0; h < heads; h++) weights.emplace_back(format, outputs, cols);
    std::vector<LqMatrix> table;
    for (Weights& w : weights) table.push_back(w.matrix);
    Floats x = random_values(size_t(rows) * heads * cols), bias = random_values(outputs), first;
    for (int variant = 0; variant < 3; variant++) {
        Floats got = in_all_orders(what, [&] {
            Rows from(rows, heads, cols, x), to(rows, heads, outputs);
            launch(LINEAR[variant], {parts(outputs, 16), parts(rows, R[variant]), heads}, 4 * LQ_WARP, from.view(),
                   (const LqMatrix*)table.data(), (const float*)bias.data(), to.view());
            return to.values();
        });
        if (variant == 0) first = got;
        expect_same(got, first, what + " r" + std::to_string(R[variant]));
    }
    std::vector<double> want, magnitudes;
    for (u32 i = 0; i < rows * heads; i++) {
        Product y = multiply(weights[i % heads], slice(x, size_t(i) * cols, cols));
        for (u32 o = 0; o < outputs; o++) y.values[o] += bias[o], y.magnitudes[o] += fabs(bias[o]);
        want.insert(want.end(), y.values.begin(), y.values.end());
        magnitudes.insert(magnitudes.end(), y.magnitudes.begin(), y.magnitudes.end());
    }
    expect_close(first, want, magnitudes, 2e-6, what);
    if (heads > 1) return;
    std::vector<u32> tokens(rows), zeros(rows, 0);
    for (u32& token : tokens) token = below(outputs);
    Rows embedded(rows, 1, cols);
    LqStep step = {tokens.data(), zeros.data(), zeros.data(), zeros.data(), rows, 1, 1, 0};
    launch(embed, {rows}, 128, step, (const LqMatrix*)table.data(), embedded.view());
    Floats exact;
    for (u32 token : tokens) {
        auto row = weights[0].values.begin() + size_t(token) * cols;
        exact.insert(exact.end(), row, row + cols);
    }
    expect_same(embedded.values(), exact, std::string("embed ") + FORMATS[format]);
}

struct Expert {
    Weights gate, up, down;
};

static void check_experts(u32 gate_format, u32 up_format, u32 down_format) {
    u32 hidden = 256 * (1 + below(2)), inner = 256, count = 1 + below(6), rows = 1 + below(30);
    u32 top_k = 1 + below(std::min(count, 3u)), slots = rows * top_k;
    std::string what = std::string("experts ") + FORMATS[gate_format] + " " + FORMATS[up_format];
    std::vector<Expert> experts;
    std::vector<LqMatrix> gates, ups, downs;
    for (u32 e = 0; e < count; e++) {
        experts.push_back({{gate_format, inner, hidden}, {up_format, inner, hidden}, {down_format, hidden, inner}});
        gates.push_back(experts[e].gate.matrix), ups.push_back(experts[e].up.matrix);
        downs.push_back(experts[e].down.matrix);
    }
    std::vector<u32> chosen(slots);
    for (u32 slot = 0; slot < slots; slot++) chosen[slot] = (slot / top_k * 3 + slot % top_k) % count;
    Floats x = random_values(size_t(rows) * hidden), weights = random_values(slots), first;
    for (float& value : x) value *= 0.05f;
    for (int variant = 0; variant < 3; variant++) {
        Floats got = in_all_orders(what, [&] {
            u32 tiles_max = slots / R[variant] + std::min(slots, count);
            std::vector<u32> sorted(slots), tiles(tiles_max * 4), tile_count(1);
            launch(group_slots, {1}, 256, (const u32*)chosen.data(), sorted.data(), tiles.data(), tile_count.data(),
                   slots, count, R[variant]);
            Rows from(rows, 1, hidden, x), gated(slots, 1, inner), same(slots, 1, inner), up(slots, 1, inner);
            Rows y(slots, 1, hidden), to(rows, 1, hidden);
            LqGroups of_rows = {sorted.data(), tiles.data(), tile_count.data(), top_k, 0}, of_slots = of_rows;
            of_slots.inputs_per_row = 1;
            const LqMatrix *gate = gates.data(), *ups_ = ups.data(), *down = downs.data();
            launch(GATE_UP[variant], {parts(inner, 8), tiles_max}, 4 * LQ_WARP, from.view(), gate, ups_, of_rows,
                   gated.view());
            grid::Dim inner_size = {parts(inner, 16), tiles_max}, hidden_size = {parts(hidden, 16), tiles_max};
            launch(GROUPED[variant], inner_size, 4 * LQ_WARP, from.view(), gate, of_rows, same.view());
            launch(GROUPED[variant], inner_size, 4 * LQ_WARP, from.view(), ups_, of_rows, up.view());
            launch(silu_mul, {slots, 1}, 128, same.view(), up.view(), same.view());
            expect_same(gated.values(), same.values(), what + ": gate_up");
            launch(GROUPED[variant], hidden_size, 4 * LQ_WARP, gated.view(), down, of_slots, y.view());
            launch(combine, {rows, parts(hidden, 128)}, 128, y.view(), (const float*)weights.data(), to.view(), top_k);
            return to.values();
        });
        if (variant == 0) first = got;
        expect_same(got, first, what + " r" + std::to_string(R[variant]));
    }
    std::vector<double> want(size_t(rows) * hidden), magnitudes(want.size());
    for (u32 slot = 0; slot < slots; slot++) {
        const Expert& expert = experts[chosen[slot]];
        std::vector<double> input = slice(x, size_t(slot / top_k) * hidden, hidden), gated(inner);
        Product g = multiply(expert.gate, input), u = multiply(expert.up, input);
        for (u32 i = 0; i < inner; i++) gated[i] = g.values[i] / (1 + exp(-g.values[i])) * u.values[i];
        Product y = multiply(expert.down, gated);
        for (u32 i = 0; i < hidden; i++) {
            want[size_t(slot / top_k) * hidden + i] += weights[slot] * y.values[i];
            magnitudes[size_t(slot / top_k) * hidden + i] += fabs(weights[slot]) * y.magnitudes[i];
        }
    }
    expect_close(first, want, magnitudes, 1e-4, what);
}

// ---- attention ----

using RowsKernel = void (*)(LqStep, LqView, LqKv, LqView, float, u32, u32);
using SplitsKernel = void (*)(LqStep, LqView, LqKv, float*, float, u32, u32, u32);
struct AttentionKernels {
    u32 queries;
    RowsKernel rows;
    SplitsKernel splits;
};
static const std::vector<AttentionKernels> PLAIN = {
    {4, attention_rows_q4, attention_splits_q4},
    {8, attention_rows_q8, attention_splits_q8},
    {16, attention_rows_q16, attention_splits_q16},
};
#if defined(LQ_MMA)
static const std::vector<AttentionKernels> FLASH = {
    {16, flash_rows_q16, flash_splits_q16},
    {64, flash_rows_q64, flash_splits_q64},
};
#else
static const std::vector<AttentionKernels> FLASH;
#endif

/// Sequences of the given lengths of which the last `fresh` positions are this step's rows.
static void check_attention(bool flash, bool latent, u32 per_kv, u32 k_dim, u32 v_dim, std::vector<u32> lengths,
                            u32 fresh) {
    u32 kv_heads = latent ? 1 : 2, heads = kv_heads * per_kv, block_tokens = 16, rows = 0, blocks = 0, blocks_max = 0;
    std::string what = std::string(flash ? "flash " : "attention ") + (latent ? "latent" : "separate");
    what += " x" + std::to_string(per_kv);
    LqKv kv = {nullptr, latent ? k_dim : kv_heads * (k_dim + v_dim), kv_heads, k_dim, v_dim,
               latent ? 0 : kv_heads * k_dim, latent ? 0 : v_dim};
    for (u32 length : lengths) {
        blocks += parts(length, block_tokens), blocks_max = std::max(blocks_max, parts(length, block_tokens));
    }
    std::vector<u32> positions, sequence_of, tables(lengths.size() * blocks_max, 0), tokens;
    for (u32 s = 0, next = blocks; s < lengths.size(); s++) {
        for (u32 b = 0; b < parts(lengths[s], block_tokens); b++) tables[s * blocks_max + b] = --next;
    }
    // All positions come by kv_append, those before the last `fresh` with NaN to follow in the block.
    std::vector<u16> cells(size_t(blocks) * block_tokens * kv.entry_values, 0x7e00);
    kv.cells = cells.data();
    auto steps = [&](bool all) {
        positions.clear(), sequence_of.clear();
        for (u32 s = 0; s < lengths.size(); s++) {
            for (u32 p = all ? 0 : lengths[s] - std::min(fresh, lengths[s]); p < lengths[s]; p++) {
                positions.push_back(p), sequence_of.push_back(s);
            }
        }
        rows = u32(positions.size());
        return LqStep{nullptr, positions.data(), sequence_of.data(), tables.data(), rows, block_tokens, blocks_max, 0};
    };
    LqStep step = steps(true);
    Floats k = random_values(size_t(rows) * kv_heads * k_dim), v = random_values(size_t(rows) * kv_heads * v_dim);
    Rows keys(rows, kv_heads, k_dim, k), values(rows, kv_heads, v_dim, v);
    LqView no_values = {};
    launch(kv_append, {rows}, 128, step, kv, keys.view(), latent ? no_values : values.view());
    step = steps(false);
    Floats q = random_values(size_t(rows) * heads * k_dim), first;
    float scale = 0.15f;
    u32 splits = *std::max_element(positions.begin(), positions.end()) / LQ_SPLIT + 1;
    if (flash && FLASH.empty()) return;
    for (const AttentionKernels& kernels : flash ? FLASH : PLAIN) {
        u32 heads_per_block = std::min(per_kv, kernels.queries), rows_per_block = kernels.queries / heads_per_block;
        grid::Dim size = {parts(rows, rows_per_block), kv_heads * parts(per_kv, heads_per_block), 1};
        Floats merged = in_all_orders(what, [&] {
            Rows from(rows, heads, k_dim, q), to(rows, heads, v_dim);
            launch(kernels.rows, size, 128, step, from.view(), kv, to.view(), scale, rows_per_block, heads_per_block);
            return to.values();
        });
        if (first.empty()) first = merged;
        expect_same(merged, first, what + " q" + std::to_string(kernels.queries));
        Floats apart = in_all_orders(what, [&] {
            Rows from(rows, heads, k_dim, q), to(rows, heads, v_dim);
            Floats partial(size_t(rows) * heads * splits * (v_dim + 2), NAN);
            launch(kernels.splits, {size.x, size.y, splits}, 128, step, from.view(), kv, partial.data(), scale,
                   rows_per_block, heads_per_block, splits);
            launch(attention_merge, {rows, heads}, 128, step, (const float*)partial.data(), to.view(), splits);
            return to.values();
        });
        expect_same(apart, first, what + ": splits, q" + std::to_string(kernels.queries));
    }
    auto of_q = [&](float value) { return flash ? lq_f16_to_float(lq_float_to_f16(value)) : value; };
    std::vector<double> want;
    for (u32 i = 0; i < rows * heads; i++) {
        u32 row = i / heads, group = i % heads / per_kv, seen = positions[row] + 1;
        std::vector<double> scores(seen), out(v_dim);
        double most = -INFINITY, sum = 0;
        auto entry = [&](u32 p) {
            u32 block = tables[sequence_of[row] * blocks_max + p / block_tokens];
            return cells.data() + (size_t(block) * block_tokens + p % block_tokens) * kv.entry_values;
        };
        for (u32 p = 0; p < seen; p++) {
            for (u32 d = 0; d < k_dim; d++) {
                float key = lq_f16_to_float(entry(p)[group * k_dim + d]);
                scores[p] += scale * double(of_q(q[size_t(i) * k_dim + d])) * key;
            }
            most = std::max(most, scores[p]);
        }
        for (u32 p = 0; p < seen; p++) {
            double weight = exp(scores[p] - most);
            if (flash) { // rounded as it is when the largest score is that of its split
                u32 start = p / LQ_SPLIT * LQ_SPLIT, end = std::min(start + LQ_SPLIT, seen);
                double of_most = *std::max_element(scores.begin() + start, scores.begin() + end);
                weight = lq_f16_to_float(lq_float_to_f16(float(exp(scores[p] - of_most)))) * exp(of_most - most);
            }
            sum += weight;
            const u16* value = entry(p) + kv.v_offset + group * kv.v_head_stride;
            for (u32 d = 0; d < v_dim; d++) out[d] += weight * lq_f16_to_float(value[d]);
        }
        for (double value : out) want.push_back(value / sum);
    }
    expect_close(first, want, std::vector<double>(want.size(), 1.0), flash ? 1e-4 : 2e-5, what);
}

#include "check_rows.h"
#include "check_sample.h"
#include "check_tiles.h"

static void check_attentions() {
    for (bool flash : {false, true}) {
        check_attention(flash, false, 1, 16, 33, {5, 1, 40}, 40);
        check_attention(flash, false, 4, 65, 64, {300, 12, 270}, 9);
        check_attention(flash, false, 7, 24, 16, {700, 1, 257, 256}, 5);
        check_attention(flash, true, 4, 72, 64, {300, 20}, flash ? 60 : 300);
        check_attention(flash, true, 20, 17, 16, {513, 3, 512, 90}, 3);
    }
    check_attention(true, true, 70, 96, 64, {270, 40}, 2);
}

int main() {
    check_halves();
    check_emulator();
    for (int i = 0; i < 12; i++) check_rows(1 + below(9), 1 + below(3), 2 + below(300) * 2);
    check_rows(2, 1, 3000);
    for (int i = 0; i < 60; i++) check_route(i);
    for (u32 slots : {0, 1, 7, 64, 300, 3000}) {
        check_group_slots(slots, 1 + below(20), 8);
        check_group_slots(slots, 1024, 1 + below(64));
    }
    for (u32 kind = 0; kind < 6; kind++) {
        for (u32 vocabulary : {1, 50, 300, 4096, 5000, 20000}) {
            check_top_logits(1 + below(3), vocabulary, 1 + below(std::min(64u, vocabulary)), kind);
        }
    }
    for (u32 format = 0; format < 8; format++) {
        for (u32 rows : {1, 3, 9, 17}) check_linear(format, rows, 1);
        check_linear(format, 5, 3);
        check_experts(format, format, LQ_F16);
        check_experts(format, (format + 3) % 8, format);
    }
    check_tiles();
    check_attentions();
    printf("warp %d: %u checks, %u failed\n", LQ_WARP, checks, failures);
    return failures != 0;
}
