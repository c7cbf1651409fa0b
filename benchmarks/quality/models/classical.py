"""Logistic regression and gradient boosting on summaries, called like the networks."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from benchmarks.quality.datasets.dataset import Dataset, Part, Task
from grf_fusion import ModalityDropout

DROPOUT = 0.1
# As many settings as a network has trials: C, and learning rate and leaves.
STRENGTHS = (0.01, 0.001, 0.1, 1.0)
BOOSTINGS = ((0.04, 12), (0.02, 12), (0.04, 31), (0.1, 12))
TREES, SHARE_OF_FEATURES = 200, 0.3


class Classical:
    """A fitted model of summaries."""

    def __init__(self, dataset: Dataset, options: dict[str, Any], *, trial: int, seed: int) -> None:
        """Fit to the training part, and to copies of it with random modalities missing."""
        self.task = dataset.task
        part = dataset.parts["train"]
        rows = [part.summaries.values]
        torch.manual_seed(seed)
        has = part.present.cpu()
        rows += [
            part.summaries.without(ModalityDropout(DROPOUT)(has)) for _ in range(options["copies"])
        ]
        labels = np.tile(part.labels.cpu().numpy(), len(rows))
        make = linear if options["model"] == "linear" else boosting
        self.model = make(self.task, trial=trial, seed=seed)
        # In a trial run a column may be empty; it cannot be imputed.
        self.observed = ~np.isnan(rows[0]).all(axis=0)
        with warnings.catch_warnings(), threadpool_limits(torch.get_num_threads()):
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(np.concatenate(rows)[:, self.observed], labels)

    def __call__(self, part: Part, present: Tensor | None) -> NDArray:
        """Return scores as the networks do: log-probabilities, log-odds or numbers."""
        values = part.summaries.without(present)[:, self.observed]
        with threadpool_limits(torch.get_num_threads()):
            if self.task.kind == "regression":
                return self.model.predict(values)
            likelihood = np.log(self.model.predict_proba(values).clip(1e-12))
        if self.task.kind == "binary":
            return likelihood[:, 1] - likelihood[:, 0]
        # A class without a training sample, in a trial run, has no column.
        scores = np.full((len(values), self.task.outputs), np.log(1e-12))
        scores[:, self.model.classes_.astype(int)] = likelihood
        return scores


def linear(task: Task, *, trial: int, seed: int) -> Pipeline:
    """Return a linear model on standardised columns, missing values at their mean."""
    strength = STRENGTHS[trial % len(STRENGTHS)]
    model = (
        Ridge(alpha=1 / strength, random_state=seed)
        if task.kind == "regression"
        else LogisticRegression(C=strength, max_iter=2000, random_state=seed)
    )
    return make_pipeline(StandardScaler(), SimpleImputer(), model)


def boosting(
    task: Task, *, trial: int, seed: int
) -> HistGradientBoostingClassifier | HistGradientBoostingRegressor:
    """Return gradient boosting; the first trial is that of icu2012's README."""
    rate, leaves = BOOSTINGS[trial % len(BOOSTINGS)]
    kind = (
        HistGradientBoostingRegressor
        if task.kind == "regression"
        else HistGradientBoostingClassifier
    )
    return kind(
        max_iter=TREES,
        learning_rate=rate,
        max_leaf_nodes=leaves,
        max_features=SHARE_OF_FEATURES,
        early_stopping=False,
        random_state=seed,
    )
