"""Refusals of filters, rings, factors, frequencies and what is added to embeddings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graph.descriptions import body
from graph.test_graph import refused

from ddsm_ext.graph import Graph, Node


def three_taps(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", h, "down", taps=3)


def filter_without_its_ring(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", h, "down", taps=4, ring=True)


def ring_without_a_filter(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("b", g.conv("a", h, 8, ring=True), 8)


def ring_enlarged(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", g.conv("a", h, 8, ring=True), "up", taps=4, ring=True)


def ring_at_stride_two(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", g.conv("a", h, 8, ring=True, stride=2), "down", taps=4, ring=True)


def zeros_at_the_end_of_stride_one(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, pad_end=True)


def zeros_at_the_end_of_one_tap(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", g.conv("a", h, 8, 1, stride=2, pad_end=True), "up")


def parts_beside_a_scale(g: Graph, h: Node, time: Node) -> Node:
    qkv = g.conv("a", h, 8, 1, parts=("q", "k", "v"), scale=0.5)
    return g.conv("out", g.attention("products", qkv), 8)


def resampled_beside_another_size(g: Graph, h: Node, time: Node) -> Node:
    return g.resample("r", h, "up", residual=h)


def swapped_in_turn(g: Graph, h: Node, time: Node) -> Node:
    row = g.sinusoid("row.table", g.inputs["t"], 8, swapped=True)
    return g.conv("a", h, 8, shift=g.linear("row.linear", row, 8))


def two_kinds_of_frequencies(g: Graph, h: Node, time: Node) -> Node:
    row = g.sinusoid("row.table", g.inputs["t"], 8, halves=True, fourier=16.0, freq_shift=1.0)
    return g.conv("a", h, 8, shift=g.linear("row.linear", row, 8))


def shift_of_all_frequencies(g: Graph, h: Node, time: Node) -> Node:
    row = g.sinusoid("row.table", g.inputs["t"], 8, halves=True, freq_shift=4.0)
    return g.conv("a", h, 8, shift=g.linear("row.linear", row, 8))


def labels_added_to_a_layer(g: Graph, h: Node, time: Node) -> Node:
    label = g.embed("label", g.input("y"), 5, 8, shift=time)
    return g.conv("a", h, 8, shift=g.linear("row", label, 8))


def augment_with_a_bias(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, shift=g.linear("row", g.input("augment", 9), 8, shift=time))


def augment_by_itself(g: Graph, h: Node, time: Node) -> Node:
    return g.conv("a", h, 8, shift=g.linear("row", g.input("augment", 9), 8, bias=False))


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (three_taps, "r: its filter has 3 taps; need 2 or 4"),
        (filter_without_its_ring, "r: reads head (conv), without a ring; need a convolution with"),
        (ring_without_a_filter, "b: reads a (conv), with a ring; need a convolution without one"),
        (ring_enlarged, "r: reads a ring around the image; need a filter of 4 taps that halves"),
        (ring_at_stride_two, "a: has a ring; need stride 1 and no resample beside it"),
        (zeros_at_the_end_of_stride_one, "a: pads its end with a 3x3 kernel at stride 1; need 3x3"),
        (zeros_at_the_end_of_one_tap, "a: pads its end with a 1x1 kernel at stride 2; need 3x3"),
        (parts_beside_a_scale, "a: its scale is 0.5; need a finite number, and one part"),
        (resampled_beside_another_size, "r: its residual is head (conv); need an image of 16 pix"),
        (swapped_in_turn, "row.table: has sines and cosines in turn; need halves"),
        (two_kinds_of_frequencies, "row.table: fourier is 16.0; need 0, or more and no"),
        (shift_of_all_frequencies, "row.table: freq_shift is 4.0; need less than 4, half of it"),
        (labels_added_to_a_layer, "label: its shift is time.linear (linear); need an embedding"),
        (augment_with_a_bias, "row: reads augment (input); need a linear layer without bias"),
        (augment_by_itself, "row: reads augment (input); need a linear layer without bias"),
    ],
)
def test_refused_in_one_sentence(word: Callable[..., Node], sentence: str) -> None:
    found = refused(body(word))
    assert found.startswith(sentence)
    assert "\n" not in found
    assert found.count(";") == 1
