"""Sizes and points: the policy's resized image against the screen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ui_tars import action_parser

from arpo_replica.actions.coordinates import Frame, smart_resize
from arpo_replica.config.models import PolicyConfig

ARPO = (3136, 2_116_800)
UI_TARS = (100 * 28 * 28, 16384 * 28 * 28)


@pytest.mark.parametrize(
    ("size", "limits", "resized"),
    [
        ((1920, 1080), ARPO, (1932, 1092)),
        ((1920, 1080), UI_TARS, (1932, 1092)),
        ((1280, 720), UI_TARS, (1288, 728)),
        ((168, 224), (3136, 100352), (168, 224)),
        ((2560, 1440), ARPO, (1932, 1064)),
        ((100, 100), UI_TARS, (280, 280)),
    ],
)
def test_known_sizes(size, limits, resized):
    assert smart_resize(*size, *limits) == resized


@settings(max_examples=300, deadline=None)
@given(st.integers(28, 4000), st.integers(28, 4000), st.sampled_from([ARPO, UI_TARS, (3136, 100352)]))
def test_sizes_agree_with_the_package_ui_tars(width, height, limits):
    low, high = limits
    theirs = action_parser.smart_resize(height, width, min_pixels=low, max_pixels=high)
    ours = smart_resize(width, height, low, high)
    if min(theirs) >= 28:  # theirs may give a side of 0 for extreme shapes; transformers does not
        assert ours == theirs[::-1]
    assert ours[0] % 28 == ours[1] % 28 == 0


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (3000, 10)])
def test_impossible_sizes_are_refused(size):
    with pytest.raises(ValueError, match="no image"):
        smart_resize(*size, *ARPO)


def test_full_hd_points():
    frame = Frame("absolute", (1920, 1080), (1932, 1092))
    assert frame.to_screen(966, 546) == (960, 540)
    assert frame.to_screen(0, 0) == (0, 0)
    assert frame.to_screen(1931, 1091) == (1919, 1079)
    assert Frame("relative_1000", (1920, 1080), (1932, 1092)).to_screen(500, 500) == (960, 540)


@given(st.integers(0, 1919), st.integers(0, 1079))
def test_an_enlarged_image_loses_no_pixel(x, y):
    frame = Frame("absolute", (1920, 1080), (1932, 1092))
    assert frame.to_screen(*frame.to_policy(x, y)) == (x, y)


@given(
    st.tuples(st.integers(28, 3000), st.integers(28, 3000)),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, 1e6),
    st.sampled_from(["absolute", "relative_1000"]),
)
def test_every_point_lands_on_the_screen(screen, x, y, coordinates):
    policy = PolicyConfig(coordinates=coordinates, min_pixels=3136, max_pixels=100352)
    px, py = Frame.of(policy, screen).to_screen(x, y)
    assert 0 <= px < screen[0]
    assert 0 <= py < screen[1]
