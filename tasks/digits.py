"""A net for Sudoku with a state for every cell and digit, so that digits become interchangeable.

It sees of each digit whether the cell is blank, given as this digit, or given as another one,
and answers with one number per cell and digit. Key: model.per_digit.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers import trunc_normal
from model import TRM, ModelConfig

BLANK, THIS, OTHER = range(3)  # what the net sees of a digit in a cell


@dataclass(frozen=True)
class SudokuModel(ModelConfig):
    """ModelConfig with a key more."""

    # mixer = "pool" or "groups": a state for every cell and digit rather than every cell
    per_digit: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        fits = self.mixer in ("pool", "groups") and self.q_from == "mean"
        if self.per_digit and not fits:
            yield "per_digit", "false, or mixer = 'pool' or 'groups' and q_from = 'mean'"


class DigitNet(TRM):
    """Positions are cell by cell the digits 1, 2, ...: L * digits of them."""

    @property
    def planes(self) -> int:
        return self.shape.vocab_size - 2  # padding and blank are no digits

    def make_question(self) -> None:
        D = self.cfg.dim
        self.tokens = nn.Parameter(trunc_normal(3, D, std=D**-0.5))

    @property
    def outputs(self) -> int:
        return 1

    def question(self, inputs: Tensor) -> Tensor:
        digit = torch.arange(2, self.shape.vocab_size, device=inputs.device)
        given = inputs[..., None] > 1
        seen = torch.where(inputs[..., None] == digit, THIS, OTHER * given)  # (B, L, digits)
        return F.embedding(seen.flatten(1), self.tokens)

    def answer(self, cells: Tensor) -> Tensor:
        logits = self.head(cells).float().view(len(cells), -1, self.planes)
        return F.pad(logits, (2, 0), value=-1e4)  # padding and blank are no answers
