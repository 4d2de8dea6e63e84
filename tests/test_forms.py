"""What may be made of a site: other shapes, means, extremes, spreads."""

import torch

from recon.auditing import forms


def test_a_shape_leaves_out_reductions_of_other_shapes_and_no_others(recorded):
    trace, fewer = recorded.trace, 0
    text = torch.ones(3, 7)
    for place in trace.sites:
        every = list(forms.reductions(trace, text, [place]))
        for shape in {one.tensor.squeeze().shape for one in every}:
            asked = list(forms.reductions(trace, text, [place], shape))
            fewer += len(asked) < len(every)
            assert of_shape(shape, every) == of_shape(shape, asked) != []
    assert fewer


def of_shape(shape, made):
    return [one.form for one in made if one.tensor.squeeze().shape == shape]
