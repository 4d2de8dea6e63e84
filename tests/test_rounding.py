"""Bounds on tiny cases whose exact answer is known by hand."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from transformers.activations import ACT2FN

from recon.activations import activation
from recon.rounding import (
    LAMBDA,
    UNIT,
    Arithmetic,
    Bounded,
    _sizes_in,
    compounded,
    layer_norm,
    product,
)
from recon.softmax import attention_weights, mixed

HALVES = [torch.bfloat16, torch.float16]
ALL = [torch.float64, torch.float32, *HALVES]
FLOAT32 = Arithmetic(torch.float32)
REFERENCE = 2.0**-53


def exactly(*values, arithmetic=FLOAT32):
    return arithmetic.exact(torch.tensor(values, dtype=torch.float64))


# -- units and sums ------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL)
def test_the_unit_is_half_the_gap_after_one_and_no_smaller(dtype):
    one = torch.ones([], dtype=dtype)
    gap = float(torch.nextafter(one, 2 * one).double() - 1)
    assert UNIT[dtype] == gap / 2 == torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("dtype", ALL)
def test_half_types_are_summed_in_float32_and_the_reference_counts(dtype):
    arithmetic = Arithmetic(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert arithmetic.accumulator == wide
    assert arithmetic.a == UNIT[wide] + REFERENCE
    assert arithmetic.u == UNIT[dtype] + REFERENCE
    assert arithmetic.inside == Arithmetic(wide)


def test_in_float64_the_reference_doubles_the_unit():
    assert Arithmetic(torch.float64).u == 2 * UNIT[torch.float64]


def test_gamma_of_one_product_is_barely_above_one_unit():
    a = FLOAT32.a
    assert a < FLOAT32.gamma(1) < a * (1 + 2 * a)
    assert FLOAT32.gamma(0) == 0


@pytest.mark.parametrize("n", [1, 2, 64, 768, 50_257])
def test_gamma_is_no_less_than_the_worst_growth_of_n_roundings(n):
    a = Fraction(FLOAT32.a)
    exact = (1 + a) ** n - 1
    assert Fraction(FLOAT32.gamma(n)) >= exact
    # The twin: a hundredth fewer roundings do not cover it.
    assert Fraction(FLOAT32.gamma(n - max(1, n // 100))) < exact


def test_gamma_is_infinite_once_n_roundings_may_lose_everything():
    enough = math.ceil(1 / FLOAT32.a)
    assert FLOAT32.gamma(enough) == math.inf
    assert math.isfinite(FLOAT32.gamma(enough // 2))


def test_the_probabilistic_gamma_grows_with_the_root_and_is_sharper_from_64_terms():
    likely = Arithmetic(torch.float32, "probabilistic")
    assert likely.gamma(4096) < FLOAT32.gamma(4096)
    assert likely.gamma(16) > FLOAT32.gamma(16)
    assert likely.gamma(4 * 1024) / likely.gamma(1024) == pytest.approx(2, rel=1e-4)
    a = likely.a
    by_hand = math.exp(LAMBDA * 10 * a + 100 * a**2 / (1 - a)) - 1
    assert likely.gamma(100) == pytest.approx(by_hand, rel=1e-9)


def summed_in_order(term, n):
    total = torch.zeros_like(term)
    for _ in range(n):
        total = total + term
    return total


@pytest.mark.parametrize(
    ("n", "least", "most"), [(1024, 0.9, 1.0), (2048, 1.3, 1.5), (4096, 1.7, 2.0)]
)
def test_a_correct_sum_of_equal_terms_breaks_the_probabilistic_bound_only(
    n, least, most
):
    # Errors of one sign: not independent, and of no zero mean.
    term = torch.tensor([1.0320740, 1.9971926, 1.9138188])
    found = summed_in_order(term, n).double()
    ones = torch.ones(n, 1)
    x = term[:, None].expand(-1, n)

    def ratio(form):
        bounded = product(x, ones, None, Arithmetic(torch.float32, form))
        return float(((found - bounded.value[:, 0]).abs() / bounded.error[:, 0]).max())

    assert least < ratio("probabilistic") < most
    assert ratio("deterministic") < 0.26


# -- storing -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL)
def test_storing_covers_the_nearest_number_and_not_much_more(dtype):
    wide = Arithmetic(torch.float64)
    x = torch.linspace(-3, 5, 1001, dtype=torch.float64)
    stored = wide.exact(x).to(Arithmetic(dtype))
    gap = (x.to(dtype).double() - x).abs()
    assert bool((gap <= stored.error).all())
    if dtype != torch.float64:
        assert float((gap / stored.error).max()) > 0.9


def test_storing_in_what_is_no_coarser_is_free():
    x = exactly(1.0, 3.0, arithmetic=Arithmetic(torch.bfloat16))
    assert not x.to(FLOAT32).error.any()
    assert x.to(Arithmetic(torch.float16)).error.any() == 0
    assert exactly(1.0).to(Arithmetic(torch.float16)).error.any()


@pytest.mark.parametrize("dtype", ALL)
def test_what_may_overflow_has_no_bound_and_what_may_not_has_one(dtype):
    largest = torch.finfo(dtype).max
    x = exactly(largest, largest / 2, arithmetic=Arithmetic(dtype)).rounded()
    assert x.error[0] == math.inf
    assert math.isfinite(x.error[1])
    near = replace(x, value=x.value / 2, error=x.value / 2).rounded()
    assert near.error[0] == math.inf


def test_what_is_not_a_number_has_no_bound():
    x = exactly(math.nan, math.inf, 1.0, arithmetic=Arithmetic(torch.float64))
    unsure = replace(x, error=torch.tensor([0.0, 0.0, math.nan], dtype=torch.float64))
    assert bool(unsure.rounded().error.isposinf().all())
    zero = exactly(0.0, 0.0, 0.0, arithmetic=Arithmetic(torch.float64))
    assert bool((zero * unsure.rounded()).error.isposinf().all())


@pytest.mark.parametrize(
    ("dtype", "lost"),
    [
        (torch.float64, 2.0**-1021),
        (torch.float32, 2.0**-126),
        (torch.bfloat16, 2.0**-126),
        (torch.float16, 2.0**-24),
    ],
)
def test_near_zero_a_whole_subnormal_may_be_lost(dtype, lost):
    x = exactly(0.0, arithmetic=Arithmetic(dtype)).rounded()
    assert float(x.error) == lost
    tiny = torch.finfo(dtype).smallest_normal
    assert lost >= min(tiny, 2.0**-24)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_subnormal_operand_may_be_taken_for_zero(dtype):
    largest = torch.finfo(dtype).smallest_normal * (1 - torch.finfo(dtype).eps)
    x = torch.tensor([largest], dtype=dtype)
    assert 0 < float(x.double()) <= float(Arithmetic(dtype).operand(x).error)
    assert not Arithmetic(dtype).exact(x).error.any()


def test_a_subnormal_operand_of_float16_is_widened_first():
    x = torch.tensor([2.0**-24], dtype=torch.float16)
    assert not Arithmetic(torch.float16).operand(x).error.any()


# -- operators -----------------------------------------------------------------


def test_a_sum_rounds_once_and_carries_what_came_before():
    a, b = exactly(1.0), exactly(2.0)
    total = a + b
    assert float(total.value) == 3.0
    assert float(total.error) == pytest.approx(3 * FLOAT32.u)
    again = total + total
    assert float(again.error) == pytest.approx(2 * 3 * FLOAT32.u + 6 * FLOAT32.u)


def test_a_difference_that_cancels_keeps_the_error_of_its_terms():
    a = replace(exactly(1.0), error=torch.tensor([1e-3], dtype=torch.float64))
    gone = a - a
    assert float(gone.value) == 0.0
    assert float(gone.error) == pytest.approx(2e-3)


def test_a_product_of_uncertain_values_spans_the_product_of_their_ends():
    a = replace(exactly(2.0), error=torch.tensor([0.5], dtype=torch.float64))
    b = replace(exactly(-3.0), error=torch.tensor([0.25], dtype=torch.float64))
    made = a * b
    assert float(made.value) == -6.0
    assert float(made.error) >= 2.5 * 3.25 - 6.0
    assert float(made.error) == pytest.approx(2.125, rel=1e-5)


def test_a_constant_is_rounded_where_it_is_used():
    exact_power, third = exactly(1.0) * 0.5, exactly(1.0) * (1 / 3)
    stored = float(torch.tensor(1 / 3, dtype=torch.float32).double())
    assert abs(stored - 1 / 3) <= float(third.error)
    assert float(third.error) == pytest.approx(2 * FLOAT32.u / 3)
    assert float(exact_power.error) == pytest.approx(2 * FLOAT32.u / 2)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("n", [2, 3])
def test_a_power_is_covered_by_pow_and_by_products(dtype, n):
    x = torch.linspace(0.1, 3, 301, dtype=torch.float64).to(dtype)
    made = Arithmetic(dtype).exact(x).power(n)
    product_of = x.clone()
    for _ in range(n - 1):
        product_of = product_of * x
    for found in (x**n, product_of):
        assert bool(((found.double() - made.value).abs() <= made.error).all())


@pytest.mark.parametrize("function", [torch.tanh, torch.exp, torch.erf, torch.sigmoid])
@pytest.mark.parametrize("dtype", ALL)
def test_a_monotone_function_of_an_uncertain_value_is_covered(function, dtype):
    value = torch.linspace(-4, 4, 201, dtype=torch.float64)
    error = torch.full_like(value, 0.01)
    made = Bounded(value, error, Arithmetic(dtype)).monotone(function)
    for shift in (-0.01, 0.0, 0.01):
        gap = (function((value + shift).to(dtype)).double() - made.value).abs()
        # Storing the shifted argument may move it a little past the end.
        slack = UNIT[dtype] * (value.abs() + 0.01) * 60 if shift else 0.0
        assert bool((gap <= made.error + slack).all())


def test_clipping_costs_nothing_where_it_cuts():
    x = replace(exactly(9.0, 3.0), error=torch.full((2,), 0.5, dtype=torch.float64))
    cut = x.clipped(0.0, 6.0)
    assert cut.value.tolist() == [6.0, 3.0]
    assert cut.error[0] < 1e-30
    assert cut.error[1] == 0.5


# -- matrix product ------------------------------------------------------------


def exact_dot(x, w):
    return sum(Fraction(a) * Fraction(b) for a, b in zip(x, w, strict=True))


def test_a_product_bounds_a_hand_case():
    x = torch.tensor([[1.0, -2.0]])
    weight, bias = torch.tensor([[3.0], [5.0]]), torch.tensor([0.5])
    made = product(x, weight, bias, FLOAT32)
    size = 1 * 3 + 2 * 5 + 0.5
    assert made.value.tolist() == [[-6.5]]
    accumulated = FLOAT32.gamma(3) * size
    stored = FLOAT32.u * (6.5 + accumulated)
    assert float(made.error) == pytest.approx(accumulated + stored, rel=1e-12)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("order", ["forward", "backward", "pairs"])
def test_a_product_covers_each_order_of_summation(dtype, order):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, generator=generator).to(dtype)
    w = torch.randn(64, generator=generator).to(dtype)
    arithmetic = Arithmetic(dtype)
    terms = x.to(arithmetic.accumulator) * w.to(arithmetic.accumulator)
    if order == "pairs":
        while len(terms) > 1:
            terms = terms[0::2] + terms[1::2]
        found = terms[0]
    else:
        found = torch.zeros([], dtype=arithmetic.accumulator)
        for term in terms if order == "forward" else terms.flip(0):
            found = found + term
    made = product(x[None], w[:, None], None, arithmetic)
    off = abs(Fraction(float(found.to(dtype))) - exact_dot(x.tolist(), w.tolist()))
    assert off <= Fraction(float(made.error))


def test_a_product_does_not_cover_a_missing_term():
    x, w = torch.ones(1, 64), torch.full((64, 1), 0.01)
    made = product(x, w, None, FLOAT32)
    assert abs(float(made.value) - 0.63) > 1e3 * float(made.error)


def test_cancelling_terms_are_judged_by_their_size_not_by_their_sum():
    x, w = torch.tensor([[1e4, -1e4]]), torch.ones(2, 1)
    made = product(x, w, None, FLOAT32)
    assert float(made.value) == 0.0
    assert float(made.error) == pytest.approx(FLOAT32.gamma(3) * 2e4)


def test_tf32_operands_widen_the_bound_by_their_rounding():
    x, w = torch.ones(1, 4), torch.ones(4, 1)
    cheap = Arithmetic(torch.float32, inputs=2.0**-10)
    made, plain = product(x, w, None, cheap), product(x, w, None, FLOAT32)
    more = float(made.error - plain.error)
    assert more == pytest.approx(4 * (2 * 2.0**-10 + 2.0**-20), rel=1e-5)


def test_a_rounded_operand_is_rounded_again_with_the_products():
    # 2026-11: the bound had t^2 + 2 t + gamma, without their product.
    cheap = Arithmetic(torch.float32, inputs=2.0**-8)
    n = 4096
    made = product(torch.ones(1, n), torch.ones(n, 1), None, cheap)
    worst = n * (1 + cheap.inputs) ** 2 * (1 + cheap.gamma(n + 1))
    assert n + float(made.error) >= worst


def test_tiny_errors_compound_without_the_rounding_of_one():
    assert compounded(2.0**-60, 2.0**-60) == 2.0**-59 + 2.0**-120
    assert compounded(0.5, 0.5) == 1.25


def test_sizes_are_not_computed_where_float32_products_are_made_cheaper():
    here = torch.device("cpu")
    assert _sizes_in(FLOAT32, 8, here)[0] == torch.float32
    torch.set_float32_matmul_precision("medium")
    try:
        assert _sizes_in(FLOAT32, 8, here) == (torch.float64, 0.0)
    finally:
        torch.set_float32_matmul_precision("highest")


# -- LayerNorm -----------------------------------------------------------------


def norm_of(x, arithmetic=FLOAT32, eps=1e-5, gain=1.0, offset=0.0):
    width = x.shape[-1]
    weight, bias = torch.full((width,), gain), torch.full((width,), offset)
    return layer_norm(x, weight, bias, eps, arithmetic)


def test_the_layer_norm_of_a_hand_case():
    made = norm_of(torch.tensor([[1.0, 3.0]]), eps=0.0, gain=2.0, offset=0.5)
    assert made.value.tolist() == [[-1.5, 2.5]]
    assert 0 < float(made.error.max()) < 200 * FLOAT32.u


def test_a_constant_row_normalises_to_its_offset_within_the_error_of_its_mean():
    made = norm_of(torch.full((1, 8), 3.0), offset=0.25)
    assert bool((made.value == 0.25).all())
    # The mean may be off by gamma 3, and 1/sqrt(eps) enlarges that.
    assert float(made.error.min()) >= 3 * FLOAT32.a * 1e-5**-0.5


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shift", [0.0, 3.0, 100.0])
def test_torchs_layer_norm_and_the_two_pass_formula_are_covered(dtype, shift):
    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(32, 48, generator=generator) + shift).to(dtype)
    weight = torch.randn(48, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    arithmetic = Arithmetic(dtype)
    made = layer_norm(x, weight, bias, 1e-5, arithmetic)
    wide = x.to(arithmetic.accumulator)
    centred = wide - wide.mean(-1, keepdim=True)
    by_hand = centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    by_hand = (by_hand * weight.to(wide.dtype) + bias.to(wide.dtype)).to(dtype)
    for found in (torch.layer_norm(x, (48,), weight, bias), by_hand):
        assert bool(((found.double() - made.value).abs() <= made.error).all())


def test_a_variance_over_n_less_one_is_not_covered():
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(3))
    made = norm_of(x)
    wrong = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
    assert float(((wrong - made.value).abs() / made.error).max()) > 100


# -- activations ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
@pytest.mark.parametrize("x", [41.0, -41.0, 300.0, -3000.0])
def test_a_cube_that_overflows_float16_hides_nothing_of_its_gelu(name, x):
    # 2026-11: the bound was as wide as x itself.
    inputs = torch.tensor([x], dtype=torch.float16)
    made = activation(ACT2FN[name], inputs, Arithmetic(torch.float16))
    found = ACT2FN[name](inputs).double()
    assert float((found - made.value).abs()) <= float(made.error) < 0.005 * abs(x)


# -- attention -----------------------------------------------------------------


def weights_of(scores, allowed=None, bias=None, arithmetic=FLOAT32):
    allowed = torch.ones_like(scores, dtype=torch.bool) if allowed is None else allowed
    unit = torch.eye(scores.shape[-1])
    return attention_weights(scores, unit, 1.0, allowed, bias, arithmetic)


def test_equal_scores_share_evenly():
    soft = weights_of(torch.full((1, 4), 7.0, dtype=torch.float64))
    assert soft.weights.tolist() == [[0.25] * 4]
    assert 0 < float(soft.error.max()) < 1e-4


def test_a_hidden_key_gets_nothing_and_a_row_without_keys_gives_zeros():
    scores = torch.zeros(2, 3, dtype=torch.float64)
    allowed = torch.tensor([[True, False, True], [False, False, False]])
    soft = weights_of(scores, allowed)
    assert soft.weights.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    assert float(soft.error[0, 1]) < 1e-30


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_torchs_softmax_is_covered_and_that_of_doubled_scores_is_not(dtype):
    generator = torch.Generator().manual_seed(4)
    scores = 3 * torch.randn(16, 33, generator=generator).to(dtype)
    soft = weights_of(scores.double(), arithmetic=Arithmetic(dtype))
    gap = (scores.softmax(-1).double() - soft.weights).abs()
    assert bool((gap <= soft.error).all())
    wrong = ((2 * scores).softmax(-1).double() - soft.weights).abs()
    assert float((wrong / soft.error).max()) > 1e3


def test_a_single_key_gets_all_the_weight():
    soft = weights_of(torch.tensor([[10.0]], dtype=torch.float64))
    assert float(soft.weights) == 1.0
    assert float(soft.error) <= 1e-4


def test_half_precision_kernels_may_round_the_weights_before_the_sum():
    soft = weights_of(torch.zeros(1, 2, dtype=torch.float64))
    v = torch.tensor([[1.0], [-1.0]])
    coarse = mixed(soft, v.bfloat16(), Arithmetic(torch.bfloat16))
    fine = mixed(soft, v, FLOAT32)
    assert float(coarse.value) == float(fine.value) == 0.0
    assert float(coarse.error) >= UNIT[torch.bfloat16]
    assert float(fine.error) < 1e-5
