// Runs of pages, token by token.
#pragma once
#include "page.cuh"

constexpr uint32_t NONE = 0xffffffffu;

// A token of a run of pages.
struct Cursor {
    uint32_t page, index;

    // Goes on by `count` tokens; at the end, `page` is `end`.
    __device__ void advance(const Page* pages, uint32_t end, uint32_t count) {
        index += count;
        while (page < end && index >= pages[page].len) {
            index -= pages[page].len;
            page++;
        }
    }
};
