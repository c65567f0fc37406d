"""A tiny recursive net that names a class: vectors or tokens in, one answer per row.

The mean of y over the positions decides. Keys and recursion are those of model.py.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from layers import Linear
from model import TRM, Shape


@dataclass(frozen=True)
class ClassShape(Shape):
    features: int = 0  # length F of the vector to be classified; 0: the question is tokens
    classes: int = 0


class Classifier(TRM):
    def make_question(self) -> None:
        if self.shape.features:
            self.features = Linear(self.shape.features, self.shape.seq_len * self.cfg.dim)
        else:
            super().make_question()

    @property
    def outputs(self) -> int:
        return self.shape.classes

    def question(self, inputs: Tensor) -> Tensor:
        if not self.shape.features:
            return super().question(inputs)
        D = self.cfg.dim  # (B, F) of variance 1 -> (B, L, D) of variance 1 / D, as tokens have
        return (self.features(inputs) / math.sqrt(D)).unflatten(1, (-1, D))

    def answer(self, cells: Tensor) -> Tensor:
        return self.head(cells.mean(1, keepdim=True)).float()  # (B, 1, classes)

    def length(self, L: int) -> int:
        return self.cfg.prefix + self.shape.seq_len
