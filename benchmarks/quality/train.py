"""Training and evaluation, the same for every method."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.quality import metrics, predictions
from benchmarks.quality.datasets.dataset import Batch, Dataset, Part, Task, drop_steps
from benchmarks.quality.methods import DROPOUT, Method, Size, orders
from benchmarks.quality.model import LateScores, Model
from grf_fusion import ModalityDropout, modulate_gradients

WARM_UP = 0.1
LARGEST_GRADIENT = 1.0
EVALUATION_BATCH = 128
# How often the curve of missing modalities draws who is missing; once where there are many samples.
DRAWS, MANY_SAMPLES = 3, 1000


class Predictor(Protocol):
    """A trained model: scores of a part, of which only some modalities are present."""

    def __call__(self, part: Part, present: Tensor | None) -> NDArray:
        """Return the scores."""
        ...


class Trained(NamedTuple):
    """What training has come to.

    Attributes:
        predictor: The model of the best epoch.
        validation: Its metrics.
        history: The primary metric of every epoch.
        threshold: Chosen on validation, for binary outcomes.
        parameters: How many.
        seconds: Wall time.
    """

    predictor: Predictor
    validation: dict[str, float]
    history: list[float]
    threshold: float | None
    parameters: int
    seconds: float


class Network:
    """A model with the modalities and the order that it reads."""

    def __init__(self, model: Model, names: Sequence[str], declared: Sequence[str]) -> None:
        """Remember the columns of what the model sees."""
        self.model = model
        self.names = list(names)
        self.columns = [list(declared).index(name) for name in names]
        self.order: tuple[str, ...] | None = None

    @torch.inference_mode()
    def __call__(self, part: Part, present: Tensor | None) -> NDArray:
        """Return the scores of a part, batches of similar length at a time."""
        self.model.eval()
        rows = part.steps.argsort()
        scores = None
        for index in rows.split(EVALUATION_BATCH):
            batch = part.batch(index, self.names)
            here = batch.present
            if present is not None:
                here = here & present.to(here.device)[index][:, self.columns]
            found, _ = self.model(batch, here, order=self.order)
            if scores is None:
                scores = found.new_zeros(len(part), *found.shape[1:])
            scores[index] = found
        return scores.cpu().numpy()


def build(method: Method, dataset: Dataset, width: int, device: str = "cpu") -> Model:
    """Build a model, with encoders where the data set asks for them."""
    modalities, encoders = method.modalities(dataset), None
    if dataset.encoded:
        encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, width))
                for name, size in modalities.items()
            }
        )
        modalities = dict.fromkeys(modalities, width)
    fusion = method.build(Size(modalities, width, DROPOUT, dataset.task))
    return Model(fusion, width=width, task=dataset.task, encoders=encoders).to(device)


def train(
    method: Method,
    dataset: Dataset,
    settings: tuple[float, int],
    *,
    trial: int,
    seed: int,
    device: str = "cpu",
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train a method; the epoch that validation likes best counts."""
    start = time.perf_counter()
    if method.build is None:
        fitted = _classical(method, dataset, trial=trial, seed=seed)
        validation, threshold = validate(fitted, dataset)
        history = [validation[dataset.task.primary]]
        return Trained(fitted, validation, history, threshold, 0, time.perf_counter() - start)
    torch.manual_seed(seed)
    rate, width = settings
    model = build(method, dataset, width, device)
    network = Network(model, list(method.modalities(dataset)), list(dataset.modalities))
    learner = Learner(network, method, dataset, rate, seed)
    best, best_state, since, history = None, copy.deepcopy(model.state_dict()), 0, []
    for epoch in range(dataset.budget.epochs):
        sound = learner.epoch()
        validation, threshold = validate(network, dataset)
        history.append(validation[dataset.task.primary])
        found = metrics.better(dataset.task, validation)
        since += 1
        if sound and (best is None or found > best[0]):
            best, since = (found, validation, threshold), 0
            best_state = copy.deepcopy(model.state_dict())
        say(f"epoch {epoch + 1}, {dataset.task.primary} {history[-1]:.3f}")
        if not sound or since >= dataset.budget.patience:
            break
    model.load_state_dict(best_state)
    if best is None:
        # It never had a finite loss: what it was before counts, and no trial like it is chosen.
        best = (None, *validate(network, dataset))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(network, *best[1:2], history, best[2], parameters, time.perf_counter() - start)


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
    say: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train a method on train and validation for as long as was chosen; the last epoch counts."""
    start, whole = time.perf_counter(), dataset.whole()
    if method.build is None:
        fitted = _classical(method, whole, trial=trial, seed=seed)
        return Trained(fitted, {}, [], threshold, 0, time.perf_counter() - start)
    torch.manual_seed(seed)
    rate, width = settings
    model = build(method, whole, width, device)
    network = Network(model, list(method.modalities(whole)), list(whole.modalities))
    learner = Learner(network, method, whole, rate, seed)
    for epoch in range(epochs):
        if not learner.epoch():
            break
        say(f"epoch {epoch + 1} of {epochs}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Trained(network, {}, [], threshold, parameters, time.perf_counter() - start)


def _classical(method: Method, dataset: Dataset, *, trial: int, seed: int) -> Predictor:
    # Networks train without scikit-learn too.
    from benchmarks.quality.classical import Classical  # noqa: PLC0415

    return Classical(dataset, dict(method.options), trial=trial, seed=seed)


class Learner:
    """Optimiser, schedule and batches of a training."""

    def __init__(
        self, network: Network, method: Method, dataset: Dataset, rate: float, seed: int
    ) -> None:
        """Set up; all chance but that of initialisation and dropout comes from the seed."""
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

    def epoch(self) -> bool:
        """Train for an epoch; return whether every loss was finite."""
        self.network.model.train()
        return all(self.step(index) for index in self.batches())

    def batches(self) -> list[Tensor]:
        """Return the samples of each batch, at random or sorted by length in chunks."""
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
    """Return the loss of each sample; of a number the absolute error, as MulT has it."""
    if task.kind == "classes":
        return F.cross_entropy(scores, labels, reduction="none")
    if task.kind == "binary":
        return F.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return (scores - labels).abs()


def validate(predictor: Predictor, dataset: Dataset) -> tuple[dict[str, float], float | None]:
    """Return the metrics on validation and the threshold that it chooses."""
    part = dataset.parts["validation"]
    scores, labels = predictor(part, None), part.labels.cpu().numpy()
    threshold = None
    if dataset.task.kind == "binary":
        threshold = metrics.best_threshold(scores.astype(np.float64), labels)
    return metrics.measure(dataset.task, scores, labels, threshold), threshold


def evaluate(
    trained: Trained, method: Method, dataset: Dataset, *, test_orders: bool = False
) -> dict[str, Any]:
    """Return the metrics on test, as modalities go missing and, if asked, in other orders."""
    part, task = dataset.parts["test"], dataset.task
    labels = part.labels.cpu().numpy()
    kept: dict[str, list[str]] = {}

    def measured(present: Tensor | None, gone: int | None = None) -> dict[str, float]:
        scores = trained.predictor(part, present)
        if gone in (0, dataset.half):
            kept.setdefault(str(gone), []).append(predictions.pack(task, scores, labels))
        return metrics.measure(task, scores, labels, trained.threshold)

    complete = measured(None, 0)
    result: dict[str, Any] = {"test": complete, "predictions": kept}
    if method.only is None and method.group != "order":
        result["missing"] = {"0": complete[task.primary]}
        draws = DRAWS if len(part) < MANY_SAMPLES else 1
        for gone in dataset.missing[1:]:
            found = [
                measured(keep(part.present.cpu(), gone, draw), gone)[task.primary]
                for draw in range(draws)
            ]
            result["missing"][str(gone)] = float(np.mean(found))
    if test_orders and isinstance(trained.predictor, Network):
        network, own = trained.predictor, trained.predictor.order
        result["orders"] = []
        for order in orders(list(dataset.modalities)):
            network.order = order
            result["orders"].append(measured(None)[task.primary])
        network.order = own
    return result


def keep(present: Tensor, gone: int, draw: int) -> Tensor:
    """Let each sample keep at most ``n - gone`` random ones of the modalities that it has.

    The same for every method: the draw is the seed. A sample that has no more than that keeps all.
    """
    luck = torch.rand(present.shape, generator=torch.Generator().manual_seed(draw))
    places = luck.masked_fill(~present, 2.0).argsort(dim=1).argsort(dim=1)
    return present & (places < present.shape[1] - gone)
