"""Which elements may change places, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sparse24.pruning.permute.channels import Channels, Ints
from sparse24.pruning.permute.flow import Flow
from sparse24.pruning.permute.views import Group, Value


def classes(channels: Channels, elements: Ints) -> list[int]:
    return channels.solve().class_of[elements.reshape(-1)].tolist()


def together(channels: Channels, elements: Ints) -> bool:
    """All of them in one class."""
    found = classes(channels, elements)
    return found[0] >= 0 and len(set(found)) == 1


def test_free_elements_of_one_tensor_change_places() -> None:
    channels = Channels()
    one, other = channels.fresh(6), channels.fresh(5)
    channels.present(one)
    channels.present(other)
    assert together(channels, one)
    assert together(channels, other)
    assert classes(channels, one)[0] != classes(channels, other)[0]
    solution = channels.solve()
    assert sorted(solution.rank_of[one].tolist()) == list(range(6))
    assert sorted(solution.size_of.tolist()) == [5, 6]


def test_fixed_elements_stay_and_say_why() -> None:
    channels = Channels()
    one = channels.fresh(6)
    channels.present(one)
    channels.fix(one[:2], "because")
    channels.fix(one[:1], "later")
    solution = channels.solve()
    assert solution.class_of[one].tolist() == [-1, -1, 0, 0, 0, 0]
    assert channels.reasons[solution.reason_of[one[0]]] == "because"
    assert solution.reason_of[one[3]] == -1


def test_what_is_the_same_moves_as_one() -> None:
    channels = Channels()
    one, other = channels.fresh(6), channels.fresh(6)
    channels.present(one)
    channels.present(other)
    channels.unify(one, other)
    channels.fix(other[:3], "because")
    solution = channels.solve()
    assert solution.class_of[one].tolist() == solution.class_of[other].tolist() == [-1] * 3 + [0] * 3
    assert solution.rank_of[one].tolist() == solution.rank_of[other].tolist()


def test_coordinates_are_kept() -> None:
    channels = Channels()
    heads = channels.fresh(2, 4)
    channels.present(heads)
    channels.constrain(heads, [0], "heads")
    assert together(channels, heads[0])
    assert together(channels, heads[1])
    assert classes(channels, heads)[0] != classes(channels, heads)[4]


def test_copies_move_as_their_source() -> None:
    channels = Channels()
    one = channels.fresh(4)
    channels.present(one)
    copies = channels.derive(one, 1, 3)
    channels.present(copies)
    assert together(channels, one)
    channels.fix(copies[0, 1:2], "one copy of the first")
    solution = channels.solve()
    assert solution.class_of[one].tolist() == [-1, 0, 0, 0]
    assert (solution.class_of[copies] == solution.class_of[one][:, None]).all()
    assert len(set(solution.colour[copies[1]].tolist())) == 3
    assert (solution.colour[copies[1]] == solution.colour[copies[2]]).all()


def test_an_element_twice_in_one_tensor_stays() -> None:
    channels = Channels()
    one = channels.fresh(4)
    channels.present(one)
    channels.unify(one, one[[1, 0, 2, 3]])
    solution = channels.solve()
    assert solution.class_of[one].tolist() == [-1, -1, 0, 0]
    assert "meets another" in channels.reasons[solution.reason_of[one[0]]]


def test_parallel_axes_are_taken_back() -> None:
    channels = Channels()
    one = channels.fresh(4)
    copies = channels.derive(one, 0, 3)
    assert channels.parallel(copies, 0) is not copies
    assert (channels.parallel(copies, 0) == one).all()
    free = channels.fresh(3, 4)
    whole = channels.parallel(free, 0)
    channels.present(whole)
    channels.present(free)
    assert whole.shape == (4,)
    assert together(channels, whole)
    solution = channels.solve()
    assert (solution.rank_of[free] == solution.rank_of[whole]).all()


def flow_of(*shape: int) -> tuple[Flow, Value, Ints]:
    """A tensor whose last dim carries channels."""
    flow = Flow(Channels())
    flow.op = "test"
    elements = flow.channels.fresh(shape[-1])
    flow.channels.present(elements)
    return flow, Value(shape, (Group((len(shape) - 1,), elements),)), elements


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3, 24), (2, 3, 4, 6), (6, 4, 6), (6, 24), (2, 3, 24)],
        [(2, 3, 24), (2, 72), (2, 3, 2, 12), (2, 3, 24)],
        [(1, 3, 24), (3, 1, 24), (3, 4, 1, 6), (1, 3, 24)],
    ],
)
def test_views_forth_and_back(shapes: list[tuple[int, ...]]) -> None:
    flow, value, elements = flow_of(*shapes[0])
    for shape in shapes[1:]:
        value = flow.reshape(value, shape)
        assert value.shape == shape
    assert [group.dims for group in value.groups] == [(len(shapes[-1]) - 1,)]
    assert (value.groups[0].elements == elements).all()


def test_a_view_without_common_factors_fixes() -> None:
    flow, value, elements = flow_of(4, 6)
    assert flow.reshape(value, (3, 8)).groups == ()
    assert classes(flow.channels, elements) == [-1] * 6


def test_many_copies_are_not_made() -> None:
    flow, value, elements = flow_of(70000, 4)
    assert flow.reshape(value, (280000,)).groups == ()
    assert classes(flow.channels, elements) == [-1] * 4


def test_sums_over_part_of_a_group_keep_the_rest() -> None:
    flow, value, elements = flow_of(2, 24)
    heads = flow.reshape(value, (2, 4, 6))
    assert flow.reduce(heads, [2], (2, 4)).groups == ()
    solution = flow.channels.solve()
    assert len(set(solution.class_of[elements].tolist())) == 4
    assert (
        solution.class_of[elements].reshape(4, 6) == solution.class_of[elements].reshape(4, 6)[:, :1]
    ).all()


def test_an_order_of_its_own_fixes_what_meets_it() -> None:
    flow, value, elements = flow_of(2, 8)
    flow.elementwise([value, Value((8,))], (2, 8))
    assert classes(flow.channels, elements) == [-1] * 8


def test_a_repeated_number_does_not() -> None:
    flow, value, elements = flow_of(2, 8)
    flow.elementwise([value, flow.expand(Value((2, 1)), (2, 8)), Value(()), Value((1,))], (2, 8))
    assert together(flow.channels, elements)


def test_concatenation_keeps_parts_apart() -> None:
    flow, value, elements = flow_of(2, 8)
    both = flow.cat([value, Value((2, 4)), value], 1, (2, 20))
    assert np.unique(both.groups[0].elements).size == 20
    flow.channels.present(both.groups[0].elements)
    assert together(flow.channels, elements)
    assert classes(flow.channels, both.groups[0].elements)[8:12] == [-1] * 4
    back = flow.take(both, 1, np.arange(8))
    flow.elementwise([back, Value((8,))], (2, 8))
    assert classes(flow.channels, elements) == [-1] * 8
