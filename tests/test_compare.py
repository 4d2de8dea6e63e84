"""Two tensors side by side: strict shape and dtype, finite, and exact ulps."""

import math

import numpy as np
import pytest
import torch

from recon.compare import Check, compare, odd_share, ulps

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NUMPY = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
}
VALUES = [1.0, -1.0, 1.5, 0.1, -3e-5, 1024.0, 65000.0, 2.0**-14, 6e-8, 0.0]


def judge(expected, found, **more):
    return compare(expected, found, site="h.1.mlp.out", identity="i", level="l", **more)


def values(*numbers, dtype=torch.float32):
    return torch.tensor(numbers, dtype=dtype)


# -- units in the last place ---------------------------------------------------


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("towards", [-np.inf, np.inf])
def test_ulps_count_numpys_steps_to_the_next_number(dtype, value, steps, towards):
    kind = NUMPY[dtype]
    start = other = kind(value)
    for _ in range(steps):
        other = np.nextafter(other, kind(towards))
    pair = [torch.from_numpy(np.array([one])) for one in (start, other)]
    assert ulps(*pair).tolist() == ulps(*pair[::-1]).tolist() == [steps]


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("value", [1.0, 1.5, 1024.0, 0.1])
def test_an_ulp_is_numpys_spacing(dtype, value):
    kind = NUMPY[dtype]
    above = kind(value) + 3 * np.spacing(kind(value))
    pair = [torch.from_numpy(np.array([one], kind)) for one in (value, above)]
    assert ulps(*pair).tolist() == [3]


@pytest.mark.parametrize("dtype", FLOATS)
def test_an_ulp_of_one_is_the_dtypes_epsilon(dtype):
    one = values(1.0, dtype=dtype)
    assert ulps(one, one + torch.finfo(dtype).eps).tolist() == [1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_two_zeros_are_no_ulp_apart(dtype):
    assert ulps(values(-0.0, dtype=dtype), values(0.0, dtype=dtype)).tolist() == [0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_smallest_numbers_of_both_signs_are_two_ulps_apart(dtype):
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    pair = values(-tiny, dtype=dtype), values(tiny, dtype=dtype)
    assert ulps(*pair).tolist() == [2]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_numbers_of_both_signs_are_very_far_apart(dtype):
    large = torch.finfo(dtype).max
    pair = values(-large, dtype=dtype), values(large, dtype=dtype)
    bits = 8 * pair[0].element_size()
    (apart,) = ulps(*pair).tolist()
    assert apart > 2 ** (bits - 1) - 2 ** (bits - 4)


def test_ulps_of_views_are_those_of_their_values():
    table = torch.arange(12.0).view(3, 4)
    assert ulps(table.T, table.T.contiguous()).sum() == 0


# -- exact, apart, and where ---------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_equal_tensors_are_exact(dtype):
    table = torch.randn(2, 3, 4).to(dtype)
    found = judge(table, table.clone())
    assert (found.verdict, found.max_abs, found.max_ulp) == ("exact", 0.0, 0)
    assert found.passed


def test_minus_zero_equals_zero():
    assert judge(values(0.0, 1.0), values(-0.0, 1.0)).verdict == "exact"


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("index", [(0, 0, 0), (1, 2, 3), (0, 2, 1)])
def test_one_difference_is_found_where_it_is(dtype, index):
    expected = torch.ones(2, 3, 4, dtype=dtype)
    found = expected.clone()
    found[index] += 3 * torch.finfo(dtype).eps
    check = judge(expected, found)
    assert (check.verdict, check.index, check.max_ulp) == ("diverged", index, 3)
    assert check.max_abs == 3 * torch.finfo(dtype).eps
    assert not check.passed


def test_the_index_is_that_of_the_largest_error():
    expected = torch.zeros(3, 4)
    found = expected.clone()
    found[0, 1], found[2, 3], found[1, 0] = 1.0, -5.0, 4.0
    check = judge(expected, found)
    assert (check.index, check.max_abs) == ((2, 3), 5.0)


def test_a_transposed_tensor_has_the_index_of_what_it_shows():
    expected = torch.zeros(4, 3).T
    found = expected.clone(memory_format=torch.preserve_format)
    found[2, 1] = 1.0
    assert judge(expected, found).index == (2, 1)


def test_a_scalar_has_an_empty_index():
    assert judge(torch.tensor(1.0), torch.tensor(2.0)).index == ()


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ((3, 4), (1, 3, 4)),
        ((1, 3, 4), (3, 4)),
        ((2, 3, 4), (1, 3, 4)),
        ((4,), (4, 1)),
        ((1,), ()),
    ],
)
def test_a_shape_is_never_broadcast(expected, found):
    check = judge(torch.zeros(expected), torch.zeros(found))
    assert check.verdict == "diverged"
    assert check.reason == f"wrong shape {found}, expected {expected}"
    assert (check.max_abs, check.max_ulp, check.index) == (None, None, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_a_dtype_is_never_converted(dtype):
    check = judge(torch.zeros(3), torch.zeros(3, dtype=dtype))
    assert check.verdict == "diverged"
    assert check.reason == f"wrong dtype {dtype}, expected torch.float32"


def test_nothing_to_compare_is_no_pass():
    check = judge(torch.zeros(2, 0), torch.zeros(2, 0))
    assert (check.verdict, check.passed) == ("missing", False)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("expected_too", [False, True])
def test_what_is_not_finite_never_passes(broken, expected_too):
    expected, found = torch.zeros(2, 3), torch.zeros(2, 3)
    found[1, 2] = broken
    if expected_too:
        expected[1, 2] = broken
    check = judge(expected, found)
    assert (check.verdict, check.index) == ("diverged", (1, 2))
    assert check.reason == f"not finite: 1 elements, the first {broken}"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_finite_value_in_place_of_a_broken_one_never_passes(broken):
    check = judge(values(0.0, broken), values(0.0, 0.0))
    assert (check.verdict, check.index, check.max_abs) == ("diverged", (1,), math.inf)


# -- dropout -------------------------------------------------------------------


def dropped(table, p, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return torch.nn.functional.dropout(table, p, training=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_by_torch_is_exact(dtype, p):
    table = torch.randn(40, 50).to(dtype)
    assert judge(table, dropped(table, p), dropout=p).verdict == "exact"


def test_dropping_all_is_exact_only_if_all_is_dropped():
    table = torch.randn(4, 5)
    assert judge(table, torch.zeros(4, 5), dropout=1.0).verdict == "exact"
    assert judge(table, table, dropout=1.0).verdict == "diverged"


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_an_element_that_is_neither_dropped_nor_scaled_is_found(p):
    table = torch.randn(40, 50)
    found = dropped(table, p)
    row, column = torch.nonzero(found)[10].tolist()
    found[row, column] = table[row, column]
    assert judge(table, found, dropout=p).index == (row, column)


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.0, "dropout p=0.25 kept 2000 of 2000"), (1.0, "dropout p=0.25 kept 0 of 2000")],
)
def test_a_share_that_fair_dropout_cannot_leave_is_told(share, words):
    table = torch.rand(40, 50) + 1
    found = torch.where(torch.rand(40, 50) < share, 0, table / 0.75)
    check = judge(table, found, dropout=0.25)
    assert check.verdict == "diverged"
    assert check.reason.startswith(words)


@pytest.mark.parametrize(
    ("count", "survived", "odd"),
    [
        (1000, 750, False),
        (1000, 700, False),
        (1000, 869, False),
        (1000, 870, True),
        (1000, 600, True),
        (10, 0, False),
        (10, 10, False),
        (0, 0, False),
    ],
)
def test_a_share_is_odd_beyond_hoeffdings_bound(count, survived, odd):
    slack = math.sqrt(count / 2 * math.log(2 / 1e-12))
    assert (abs(survived - 0.75 * count) > slack) == odd
    assert bool(odd_share(count, survived, 0.25)) == odd


# -- rows left out -------------------------------------------------------------


def test_idle_rows_are_left_out_and_counted():
    expected, found = torch.zeros(2, 4, 3, 5), torch.zeros(2, 4, 3, 5)
    found[1, :, 2] = math.nan
    idle = torch.zeros(2, 1, 3, dtype=torch.bool)
    idle[1, 0, 2] = True
    check = judge(expected, found, idle=idle)
    assert (check.verdict, check.excluded) == ("exact", 1)
    found[0, 3, 1, 2] = 1
    assert judge(expected, found, idle=idle).index == (0, 3, 1, 2)


def test_if_every_row_is_idle_nothing_is_verified():
    table = torch.zeros(1, 4, 3, 5)
    check = judge(table, table, idle=torch.ones(1, 1, 3, dtype=torch.bool))
    assert (check.verdict, check.excluded, check.passed) == ("unverified", 3, False)


# -- in words ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check("h.3.mlp.out", "mlp_out", "replay", "exact"), "h.3.mlp.out: exact"),
        (
            Check(
                "h.3.mlp.out",
                "mlp_out",
                "replay",
                "diverged",
                max_abs=0.001,
                max_ulp=12,
                index=(0, 4, 17),
                allowed=1.1e-06,
            ),
            "h.3.mlp.out: off by 0.001 at [0, 4, 17], 12 ulp, allowed 1.1e-06",
        ),
        (
            Check("h.3.ln_1", "ln_1", "replay", "diverged", 0.5, 1, (2,)),
            "h.3.ln_1: off by 0.5 at [2], 1 ulp, allowed 0",
        ),
        (
            Check("ln_f", "ln_f", "replay", "missing", reason="it is gone"),
            "ln_f: it is gone",
        ),
    ],
)
def test_a_check_describes_itself_in_one_line(check, words):
    assert check.describe() == f"{words} ({check.identity}, {check.level})"


def test_severity_sorts_from_a_proof_to_the_worst():
    kinds = ("exact", "rounding", "unverified", "missing", "diverged")
    checks = [Check("s", "i", "l", kind, max_abs=0.0) for kind in kinds]
    checks.append(Check("s", "i", "l", "diverged", max_abs=1.0))
    checks.append(Check("s", "i", "l", "diverged", reason="no measure"))
    backwards = checks[::-1]
    assert sorted(backwards, key=lambda check: check.severity) == checks
