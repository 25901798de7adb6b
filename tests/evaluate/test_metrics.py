"""Metrics and intervals against scikit-learn and against resampling done the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from tunemill.evaluate import metrics
from tunemill.evaluate.bootstrap import intervals, mean_intervals, resampled


def toy(n: int, n_labels: int, seed: int = 0) -> tuple[metrics.Ints, metrics.Floats]:
    """Right labels and probabilities that lean towards them; rounded, so that there are ties."""
    random = np.random.default_rng(seed)
    gold = random.integers(0, n_labels, n)
    scores = np.round(random.random((n, n_labels)) + np.eye(n_labels)[gold] * 0.4, 1) + 0.01
    return gold, scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("n_labels", [2, 4])
def test_every_metric_equals_scikit_learn(n_labels: int) -> None:
    """Accuracy, both F1s, ROC-AUC with ties, log-loss and the confusion matrix are the usual ones."""
    gold, scores = toy(300, n_labels)
    names = [f"label {i}" for i in range(n_labels)]
    found = metrics.summarise(gold, scores, names, positive=0)
    predicted = scores.argmax(axis=1)
    expected_auc = (
        reference.roc_auc_score(gold == 0, scores[:, 0])
        if n_labels == 2
        else reference.roc_auc_score(gold, scores, multi_class="ovr", average="macro")
    )
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(gold, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(gold, predicted, average="macro"))
    assert found["positive_f1"] == pytest.approx(reference.f1_score(gold == 0, predicted == 0))
    assert found["roc_auc"] == pytest.approx(expected_auc)
    assert found["log_loss"] == pytest.approx(reference.log_loss(gold, scores, labels=list(range(n_labels))))
    assert found["confusion"] == reference.confusion_matrix(gold, predicted).tolist()
    assert found["per_class"]["label 1"]["recall"] == pytest.approx(reference.recall_score(gold == 1, predicted == 1))
    assert found["per_class"]["label 1"]["precision"] == pytest.approx(reference.precision_score(gold == 1, predicted == 1))


def test_a_class_that_is_never_predicted_has_f1_zero() -> None:
    """A label that is neither right nor told anywhere counts as 0, not as an error."""
    found = metrics.summarise(np.array([0, 0]), np.array([[0.9, 0.1], [0.8, 0.2]]), ["a", "b"], positive=1)
    assert found["per_class"]["b"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "n": 0}
    assert found["roc_auc"] is None


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_scores() -> None:
    """Scores of 0.75 that are right three times in four are calibrated; scores of 1 right half the time are off by half."""
    honest = metrics.calibration_error(np.array([0, 0, 0, 1]), np.tile([0.75, 0.25], (4, 1)))
    boastful = metrics.calibration_error(np.array([0, 1]), np.tile([1.0, 0.0], (2, 1)))
    assert honest == pytest.approx(0.0)
    assert boastful == pytest.approx(0.5)


@pytest.mark.parametrize("n_labels", [2, 3])
def test_resampled_metrics_equal_those_of_the_repeated_rows(n_labels: int) -> None:
    """Weighting a row by k is the same as having it k times."""
    gold, scores = toy(40, n_labels, seed=3)
    weights = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), size=5).astype(np.float64)
    found = resampled(weights, gold, scores, positive=1)
    for draw in range(5):
        rows = np.repeat(np.arange(40), weights[draw].astype(int))
        expected = metrics.summarise(gold[rows], scores[rows], [str(i) for i in range(n_labels)], positive=1)
        for name, values in found.items():
            assert values[draw] == pytest.approx(expected[name]), name


def test_pairing_makes_the_interval_of_a_constant_difference_narrow() -> None:
    """Two variants that are right on the same rows differ by exactly 0, whatever is drawn."""
    gold, scores = toy(60, 2)
    singles, pairs = intervals(gold, {"base": scores, "tuned": scores**1.0}, 0, resamples=200, seed=0)
    low, high = singles["base"]["accuracy"]
    assert low < high
    assert pairs["tuned", "base"]["accuracy"] == [0.0, 0.0]


def test_intervals_depend_on_the_seed_only() -> None:
    """The same seed gives the same interval, and the value lies inside it."""
    gold, scores = toy(80, 2)
    better = np.eye(2)[gold] * 0.5 + scores * 0.5
    first, pairs = intervals(gold, {"base": scores, "tuned": better}, 0, resamples=300, seed=7)
    again, _ = intervals(gold, {"base": scores, "tuned": better}, 0, resamples=300, seed=7)
    assert first == again
    value = (
        metrics.summarise(gold, better, ["a", "b"], 0)["accuracy"] - metrics.summarise(gold, scores, ["a", "b"], 0)["accuracy"]
    )
    low, high = pairs["tuned", "base"]["accuracy"]
    assert 0 < low <= value <= high


def test_without_resamples_there_are_no_intervals() -> None:
    """bootstrap: 0 leaves every range out."""
    gold, scores = toy(20, 2)
    singles, _ = intervals(gold, {"base": scores}, 0, resamples=0, seed=0)
    assert singles["base"]["accuracy"] is None


def test_mean_interval_weighs_long_answers_more() -> None:
    """The loss of answers is a mean over tokens, not over rows."""
    found, pairs = mean_intervals(
        {"base": np.array([10.0, 10.0]), "tuned": np.array([5.0, 5.0])}, np.array([10.0, 10.0]), resamples=50, seed=0
    )
    assert found["base"] == pytest.approx([1.0, 1.0])
    assert pairs["tuned", "base"] == pytest.approx([-0.5, -0.5])
