import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ilf.analysis.refinements import edit_distance, returns_expected_literal
from ilf.analysis.results import delta, metrics
from ilf.analysis.statistics import (
    bootstrap_ci95,
    holm,
    mean_pass_at_k,
    over_seeds,
    paired,
    pass_at_k,
    rate_ci95,
    sign_flip_p_value,
    task_means,
)
from ilf.types import Program, Verdict


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_fraction_of_k_subsets_with_a_pass(outcomes, data):
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(itertools.combinations(outcomes, k))
    assert pass_at_k(len(outcomes), sum(outcomes), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "k"), [(4, 5), (4, 0), (0, 1)])
def test_pass_at_k_without_enough_samples_is_an_error(n, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, n, k)


def test_mean_pass_at_k_averages_over_all_tasks():
    assert mean_pass_at_k([[True, True], [False, False], [False, False], [False, False]], 1) == 0.25


def test_the_bootstrap_interval_has_about_its_nominal_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        low, high = bootstrap_ci95(rng.normal(0.3, 1.0, 60), seed=i, draws=500)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


BY_SEED = st.lists(st.dictionaries(st.integers(0, 9), st.floats(0, 1), min_size=1), min_size=1, max_size=4)


@given(BY_SEED)
def test_mean_over_seeds_lies_between_the_means_of_the_seeds_and_its_interval_within_the_values(seeds):
    values, weights = task_means(over_seeds(seeds))
    means = [np.mean(list(tasks.values())) for tasks in seeds]
    assert min(means) - 1e-9 <= np.average(values, weights=weights) <= max(means) + 1e-9
    low, high = rate_ci95(values, weights)
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9 or values.min() == values.max()


@given(BY_SEED, st.floats(-0.5, 0.5))
def test_a_constant_difference_is_found_whatever_tasks_each_seed_has(seeds, change):
    after = [{task: value + change for task, value in tasks.items()} | {99: 0.0} for tasks in seeds]
    found = paired(zip(seeds, after, strict=True))
    assert [found["mean"], *found["ci95"]] == pytest.approx([change] * 3, abs=1e-9)


def test_tasks_with_more_seeds_count_as_often_as_they_have_seeds():
    """The interval covers the mean of all values, also if the tasks that only one seed has differ from the others."""
    rng, covered = np.random.default_rng(3), 0
    for i in range(200):
        counts = rng.integers(1, 4, 60)
        tasks = {t: rng.normal(counts[t], 1.0) + rng.normal(0, 0.3, counts[t]) for t in range(60)}
        low, high = bootstrap_ci95(*task_means(tasks), seed=i, draws=500)
        covered += low <= 14 / 6 <= high  # the mean of the counts 1, 2 and 3, weighted by themselves
    assert 0.88 <= covered / 200 <= 0.99


def test_sign_flip_p_values_are_uniform_or_small_if_there_is_an_effect():
    rng = np.random.default_rng(1)
    null = np.array([sign_flip_p_value(rng.normal(0, 1, 30), draws=1000) for _ in range(500)])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert np.mean(null < level) == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 500))
    assert max(sign_flip_p_value(rng.normal(effect, 1, 30)) for effect in (-1, 1)) < 0.01
    assert sign_flip_p_value(np.zeros(30)) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_on_the_worst_subset_with_the_hypothesis(p_values):
    """It is the closed test: a hypothesis is rejected if every set of hypotheses that contains it is."""
    every = range(len(p_values))
    subsets = [s for size in every for s in itertools.combinations(every, size + 1)]
    bonferroni = {s: min(1, len(s) * min(p_values[i] for i in s)) for s in subsets}
    assert holm(p_values) == [max(p for s, p in bonferroni.items() if i in s) for i in every]


def test_the_smallest_detectable_effect_is_found_with_80_percent_power():
    rng = np.random.default_rng(2)
    before = rng.normal(0, 1, 100)
    size = paired([(dict(enumerate(before)), dict(enumerate(before + rng.normal(0, 1, 100))))])["smallest_detectable"]
    found = [sign_flip_p_value(rng.normal(size, 1, 100), draws=500) < 0.05 for _ in range(150)]
    assert 0.65 < np.mean(found) < 0.95


def program(task_id: int, sample: int, passed: bool) -> Program:
    return Program(task_id, "test", sample, 0, "", "", "", Verdict("passed" if passed else "failed"))


def test_delta_pairs_programs_by_task_in_any_order():
    before = [program(t, s, t == 1) for t in (1, 2, 3) for s in (0, 1)]
    after = [program(t, s, t != 3) for s in (1, 0) for t in (3, 1, 2)]
    found = delta(before, after, [1])["pass@1"]
    assert found["mean"] == pytest.approx(1 / 3)
    assert metrics(after, [1, 2])["one_correct"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="different tasks"):
        delta(before, after[:2], [1])


def test_programs_that_hard_code_a_tested_input_are_flagged():
    tests = ["assert f([1, 2]) == 42"]
    assert returns_expected_literal("def f(x):\n    if x == [1, 2]:\n        return 42\n    return 0", tests)
    assert not returns_expected_literal("def f(x):\n    if x == []:\n        return 0\n    return sum(x)", tests)
    assert not returns_expected_literal("def f(x):\n    return 42", tests)


@given(st.text("ab(", max_size=9), st.text("ab(", max_size=9), st.text("ab(", max_size=5))
def test_edit_distance_is_the_normalized_minimum_number_of_edits(a, b, shared):
    def edits(x, y):
        if not x or not y:
            return len(x) + len(y)
        return min(edits(x[1:], y) + 1, edits(x, y[1:]) + 1, edits(x[1:], y[1:]) + (x[0] != y[0]))

    a, b = a[:4], b[:4]
    assert edit_distance(a, b) == edit_distance(b, a) == edits(a, b) / max(len(a), len(b), 1)
    whole = max(len(a), len(b)) + 2 * len(shared)
    assert edit_distance(shared + a + shared, shared + b + shared) * max(whole, 1) == pytest.approx(edits(a, b))
