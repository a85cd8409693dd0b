// Part of check.cpp: grouping of slots, and what sampling needs of logits.
#pragma once

static void check_group_slots(u32 slots, u32 expert_count, u32 tile_rows) {
    std::string what = "group_slots " + std::to_string(slots) + " " + std::to_string(expert_count);
    std::vector<u32> experts(slots);
    for (u32& expert : experts) expert = below(below(4) ? expert_count + 1 : 3); // some beyond the last, some crowded
    u32 tiles_max = slots / tile_rows + std::min(slots, expert_count);
    std::vector<u32> want_order, want_tiles;
    for (u32 e = 0; e < expert_count; e++) {
        u32 start = u32(want_order.size());
        for (u32 slot = 0; slot < slots; slot++) {
            if (experts[slot] == e) want_order.push_back(slot);
        }
        for (u32 at = start; at < want_order.size(); at += tile_rows) {
            want_tiles.insert(want_tiles.end(), {e, at, std::min(tile_rows, u32(want_order.size()) - at), 0});
        }
    }
    for (const Order& each : ORDERS) {
        order = each;
        std::vector<u32> sorted(slots), tiles(tiles_max * 4), tile_count(1);
        launch(group_slots, {1}, 256, (const u32*)experts.data(), sorted.data(), tiles.data(), tile_count.data(), slots,
               expert_count, tile_rows);
        sorted.resize(want_order.size());
        expect(tile_count[0] * 4 == want_tiles.size(), what + ": another number of tiles");
        tiles.resize(want_tiles.size());
        expect(sorted == want_order && tiles == want_tiles, what + ": another order");
    }
    order = ORDERS[0];
}

/// `kind`: 1 many equal values, 2 -infinity too, 3 a NaN, 4 a +infinity, 5 nothing but -infinity.
static void check_top_logits(u32 rows, u32 vocabulary, u32 k, u32 kind) {
    std::string what = "top_logits " + std::to_string(vocabulary) + " " + std::to_string(k);
    what += "/" + std::to_string(kind);
    Floats x = random_values(size_t(rows) * vocabulary), scales(rows);
    for (float& scale : scales) scale = below(3) ? 0.5f + unit() * 0.4f : 1e6f;
    for (float& value : x) {
        if (kind > 0) value = float(int(below(9)) - 4) * (below(2) ? 0.25f : -0.25f);
        if (kind == 2 && below(2)) value = -INFINITY;
        if (kind == 5) value = -INFINITY;
    }
    if (kind == 3) x[below(vocabulary)] = NAN;
    if (kind == 4) x[below(vocabulary)] = INFINITY;
    u32 parts_ = parts(vocabulary, LQ_PART), count = rows * parts_ * k;
    std::vector<u32> ids(rows * k);
    Floats got = in_all_orders(what, [&] {
        Rows from(rows, 1, vocabulary, x);
        std::vector<u32> part_ids(count);
        Floats part_values(count), totals(rows * parts_ * 2), values(rows * k), sums(rows);
        launch(top_logits_parts, {parts_, rows}, 256, from.view(), (const float*)scales.data(), part_ids.data(),
               part_values.data(), totals.data(), k);
        launch(top_logits, {rows}, 256, (const u32*)part_ids.data(), (const float*)part_values.data(),
               (const float*)totals.data(), (const float*)scales.data(), ids.data(), values.data(), sums.data(), parts_,
               k);
        values.insert(values.end(), sums.begin(), sums.end());
        return values;
    });
    for (u32 row = 0; row < rows; row++) {
        const float* logits = &x[size_t(row) * vocabulary];
        double sum = got[rows * k + row];
        bool all_least = *std::max_element(logits, logits + vocabulary) == -INFINITY;
        if (all_least || (kind >= 3 && (row == 0 || std::isnan(sum)))) {
            expect(std::isnan(sum), what + ": no such row has a sum");
            continue;
        }
        std::vector<u32> sorted(vocabulary);
        for (u32 i = 0; i < vocabulary; i++) sorted[i] = i;
        std::stable_sort(sorted.begin(), sorted.end(), [&](u32 a, u32 b) { return logits[a] > logits[b]; });
        double want = 0;
        for (u32 i = 0; i < vocabulary; i++) want += exp((double(logits[i]) - logits[sorted[0]]) * scales[row]);
        expect(fabs(sum - want) < 1e-4 * want, what + ": another sum");
        for (u32 i = 0; i < k; i++) {
            expect(ids[row * k + i] == sorted[i], what + ": another candidate");
            expect(!memcmp(&got[row * k + i], &logits[sorted[i]], 4), what + ": another value");
        }
    }
}
