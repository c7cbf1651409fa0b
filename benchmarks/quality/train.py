"""Training, the same for every method."""

import copy
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality import metrics
from benchmarks.quality.datasets.dataset import Batch, Dataset, Task, drop_steps
from benchmarks.quality.evaluate import validate
from benchmarks.quality.methods import Method, orders
from benchmarks.quality.models.model import LateScores, Model
from benchmarks.quality.network import Network, Predictor, Trained, build
from grf_fusion import ModalityDropout, modulate_gradients

WARM_UP = 0.1
LARGEST_GRADIENT = 1.0


def train(
    method: Method,
    dataset: Dataset,
    settings: tuple[float, int],
    *,
    trial: int,
    seed: int,
    device: str = "cpu",
) -> Trained:
    """Train a method; the epoch with the best validation score counts."""
    start = time.perf_counter()
    if method.build is None:
        fitted = _classical(method, dataset, trial=trial, seed=seed)
        validation, threshold = validate(fitted, method, dataset)
        history = [validation[dataset.task.primary]]
        return Trained(fitted, validation, history, threshold, 0, time.perf_counter() - start)
    learner = Learner.of(method, dataset, settings, seed, device)
    network, model = learner.network, learner.network.model
    best, best_state, since, history = None, copy.deepcopy(model.state_dict()), 0, []
    for _ in range(dataset.budget.epochs):
        sound = learner.epoch()
        validation, threshold = validate(network, method, dataset)
        history.append(validation[dataset.task.primary])
        found = metrics.better(dataset.task, validation)
        since += 1
        if sound and (best is None or found > best[0]):
            best, since = (found, validation, threshold), 0
            best_state = copy.deepcopy(model.state_dict())
        if not sound or since >= dataset.budget.patience:
            break
    model.load_state_dict(best_state)
    if best is None:
        # The loss was never finite: keep the initial model; such a trial is never chosen.
        best = (None, *validate(network, method, dataset))
    _, validation, threshold = best
    seconds = time.perf_counter() - start
    return Trained(network, validation, history, threshold, learner.parameters, seconds)


def refit(
    method: Method,
    dataset: Dataset,
    settings: tuple[float, int],
    *,
    trial: int,
    seed: int,
    epochs: int,
    threshold: float | None,
    device: str = "cpu",
) -> Trained:
    """Train on train and validation for the chosen number of epochs; the last epoch counts."""
    start, whole = time.perf_counter(), dataset.whole()
    if method.build is None:
        fitted = _classical(method, whole, trial=trial, seed=seed)
        return Trained(fitted, {}, [], threshold, 0, time.perf_counter() - start)
    learner = Learner.of(method, whole, settings, seed, device)
    # A loss that is not finite ends the training.
    all(learner.epoch() for _ in range(epochs))
    seconds = time.perf_counter() - start
    return Trained(learner.network, {}, [], threshold, learner.parameters, seconds)


def _classical(method: Method, dataset: Dataset, *, trial: int, seed: int) -> Predictor:
    # Training networks does not need scikit-learn.
    from benchmarks.quality.models.classical import Classical  # noqa: PLC0415

    return Classical(dataset, dict(method.options), trial=trial, seed=seed)


class Learner:
    """Optimiser, schedule and batches of a training."""

    def __init__(
        self, network: Network, method: Method, dataset: Dataset, rate: float, seed: int
    ) -> None:
        """Set up; all randomness except initialisation and dropout comes from `seed`."""
        self.network, self.method, self.dataset = network, method, dataset
        self.part, budget = dataset.parts["train"], dataset.budget
        self.chance = torch.Generator().manual_seed(seed)
        self.drop = ModalityDropout(method.training.modality_dropout)
        model = network.model
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": budget.weight_decay}, {"params": vectors}]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
        self.steps = budget.steps(len(self.part))
        total = self.steps * budget.epochs
        warm = max(1, round(WARM_UP * total))

        def factor(step: int) -> float:
            late = max(0.0, (step - warm) / max(1, total - warm))
            return min(1.0, (step + 1) / warm) * (1 + math.cos(math.pi * late)) / 2

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        number = method.training.order
        known = orders(list(dataset.modalities))
        network.order = known[number] if isinstance(number, int) else None

    @classmethod
    def of(
        cls,
        method: Method,
        dataset: Dataset,
        settings: tuple[float, int],
        seed: int,
        device: str = "cpu",
    ) -> "Learner":
        """Build a model with a learning rate and a width."""
        torch.manual_seed(seed)
        rate, width = settings
        model = build(method, dataset, width, device)
        network = Network(model, list(method.modalities(dataset)), list(dataset.modalities))
        return cls(network, method, dataset, rate, seed)

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.network.model.parameters())

    def epoch(self) -> bool:
        """Train for an epoch; return whether every loss was finite."""
        self.network.model.train()
        return all(self.step(index) for index in self.batches())

    def batches(self) -> list[Tensor]:
        """Return the indices of each batch, at random or sorted by length in chunks."""
        budget = self.dataset.budget
        shuffled = torch.randperm(len(self.part), generator=self.chance)
        if budget.sorted_chunks > 1:
            steps = self.part.steps.cpu()
            chunks = shuffled.split(budget.sorted_chunks * budget.batch)
            shuffled = torch.cat([chunk[steps[chunk].argsort()] for chunk in chunks])
        found = list(shuffled.split(budget.batch))[: self.steps]
        device = self.part.labels.device
        return [found[k].to(device) for k in torch.randperm(len(found), generator=self.chance)]

    def step(self, index: Tensor) -> bool:
        """Take a step; return whether the loss was finite."""
        training, network = self.method.training, self.network
        batch = self.part.batch(index, network.names)
        share = self.dataset.budget.drop_steps
        if share:
            batch = drop_steps(batch, share, self.chance)
        order = network.order
        if training.order == "random":
            shuffled = torch.randperm(len(network.names), generator=self.chance)
            order = tuple(network.names[k] for k in shuffled)
        present = self.drop(batch.present)
        loss = objective(network.model, self.method, batch, present, order)
        if not bool(loss.isfinite()):
            return False
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if training.modulation:
            self._modulate(batch)
        nn.utils.clip_grad_norm_(network.model.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()
        self.schedule.step()
        return True

    def _modulate(self, batch: Batch) -> None:
        model = self.network.model.eval()
        alone = model.alone(batch, self.network.names)
        model.train()
        modulate_gradients(
            model.fusion.projections,
            alone,
            batch.labels.long(),
            alpha=self.method.training.modulation,
            present=batch.present,
        )


def objective(
    model: Model, method: Method, batch: Batch, present: Tensor, order: Sequence[str] | None
) -> Tensor:
    """Return the loss of a batch."""
    training = method.training
    if isinstance(model.fusion, LateScores):
        scores, here = model.fusion.single(
            model.encode(batch.features), masks=batch.masks, present=present
        )
        labels = batch.labels.unsqueeze(1).expand(here.shape)[here]
        scores = scores[here] if model.task.kind == "classes" else scores[here].squeeze(-1)
        return loss_of(model.task, scores, labels).mean()
    scores, later = model(batch, present, order=order, intermediate=training.intermediate > 0)
    loss = loss_of(model.task, scores, batch.labels).mean()
    if later is not None:
        steps = later.shape[1]
        labels = batch.labels.unsqueeze(1).expand(-1, steps).flatten()
        loss = (
            loss + training.intermediate * loss_of(model.task, later.flatten(0, 1), labels).mean()
        )
    return loss


def loss_of(task: Task, scores: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of each sample; for numbers the absolute error, as in MulT."""
    if task.kind == "classes":
        return F.cross_entropy(scores, labels, reduction="none")
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return (scores - labels).abs()
