"""Derived randomness: the same everywhere, spread evenly."""

from sdlora.seeds import derive, order, uniform


def test_seeds_are_the_same_on_every_machine() -> None:
    # written down from the first version: a change would silently reorder every resumed run
    assert (derive(1, "items", 2), order(6, 1)) == (1623390910592956823, [5, 0, 2, 4, 1, 3])


def test_parts_do_not_run_together() -> None:
    assert len({derive(1, 23), derive(12, 3), derive("1", 23), derive(123), derive(23, 1)}) == 5


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    numbers = [uniform(7, i) for i in range(4000)]
    assert min(numbers) >= 0 and max(numbers) < 1
    shares = [sum(i / 4 <= x < (i + 1) / 4 for x in numbers) / 4000 for i in range(4)]
    assert all(abs(share - 0.25) < 0.03 for share in shares)  # 4 standard deviations of a quarter of 4000


def test_an_order_holds_every_index_once() -> None:
    assert sorted(order(50, 3, "x")) == list(range(50))
    assert order(50, 3, "x") != order(50, 4, "x")
