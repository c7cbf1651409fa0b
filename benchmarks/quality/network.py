"""A trainable model, and the interface of a trained one."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.quality.datasets.dataset import Dataset, Part
from benchmarks.quality.methods import Method
from benchmarks.quality.models.builders import DROPOUT, Size
from benchmarks.quality.models.model import Model

EVALUATION_BATCH = 128


class Predictor(Protocol):
    """A trained model, which scores a part with some modalities switched off."""

    def __call__(self, part: Part, present: Tensor | None) -> NDArray:
        """Return the scores."""
        ...


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        predictor: The model of the best epoch.
        validation: Its validation metrics.
        history: The primary metric of every epoch.
        threshold: Chosen on validation, for binary outcomes.
        parameters: Number of parameters.
        seconds: Wall time.
    """

    predictor: Predictor
    validation: dict[str, float]
    history: list[float]
    threshold: float | None
    parameters: int
    seconds: float


class Network:
    """A model with its modalities and their order."""

    def __init__(self, model: Model, names: Sequence[str], declared: Sequence[str]) -> None:
        """Store the columns of the model's modalities."""
        self.model = model
        self.names = list(names)
        self.columns = [list(declared).index(name) for name in names]
        self.order: tuple[str, ...] | None = None

    @torch.inference_mode()
    def __call__(self, part: Part, present: Tensor | None) -> NDArray:
        """Return the scores of a part, computed in batches of similar length."""
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
    """Build a model, with encoders if the data set has them."""
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
