"""A cheap yardstick: logistic regression on sentence embeddings, fitted on the train split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunemill.errors import DataError
from tunemill.evaluate.metrics import Floats
from tunemill.evaluate.prompts import Row

__all__ = ["embedding_scores"]


def embedding_scores(test: Sequence[Row], train: Sequence[Row], labels: Sequence[str], model: str, *, seed: int) -> Floats:
    """Probabilities [n, L] of the test rows' questions; DataError when the train split lacks a label."""
    from sklearn.linear_model import LogisticRegression

    from tunemill.embed.config import EmbedConfig
    from tunemill.embed.embedder import Embedder

    known = [row for row in train if row.answer in labels]
    missing = set(labels) - {row.answer for row in known}
    if missing:
        raise DataError(
            f"evaluate: the embedding variant has no train rows with label {sorted(missing)[0]!r}; leave it out of variants"
        )
    embedder = Embedder(EmbedConfig(model=model))
    classifier = LogisticRegression(C=10.0, max_iter=1000, random_state=seed)
    classifier.fit(embedder.encode([row.question for row in known]), [labels.index(row.answer) for row in known])
    probabilities = classifier.predict_proba(embedder.encode([row.question for row in test]))
    return np.asarray(probabilities[:, np.argsort(classifier.classes_)], dtype=np.float64)
