"""Is every leak caught, is its holder named, and is correct code left alone?"""

import pytest

from recon.gpt2 import InterruptionError, interrupted
from recon.profiling.leaks import watch
from recon.watch import Keeper
from tests import leak_patterns
from tests.leak_patterns import RIGHT, WRONG


@pytest.fixture
def watched(model, ids):
    """``watched(pattern)``: rounds of it, in each of which one pass also raises."""
    keeper = Keeper(model)

    def run(pattern, rounds=4):
        def one_round():
            returned = pattern(model, ids)
            try:
                with interrupted(model):
                    pattern(model, ids)
            except InterruptionError:
                pass
            del returned

        return watch(one_round, {"model": model}, rounds=rounds, warm_up=1)

    yield run
    keeper.put_back()
    leak_patterns.forget()


@pytest.mark.parametrize("name", WRONG)
def test_a_leak_is_caught_and_its_holder_named(name, watched):
    pattern, kind, words = WRONG[name]
    found = watched(pattern)
    assert found.verdict == "leaks"
    named = [(leak.holder.kind, str(leak.holder)) for leak in found.leaks]
    assert any(k == kind and words in path for k, path in named), named


@pytest.mark.parametrize("pattern", RIGHT)
def test_correct_code_leaks_nothing(pattern, watched):
    found = watched(pattern)
    assert found.findings == ()
    assert [one.nbytes for one in found.rounds] == [0] * 4


def test_there_are_twenty_correct_patterns():
    assert len({pattern.__name__ for pattern in RIGHT}) == 20
