"""LSTM with normalization inside the cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.trainer.contract.catalog.model_args import LstmArgs
from syncnorm.trainer.models.building_blocks import Layers


class NormLSTMCell(nn.Module):
    """One step of a normalized LSTM.

    (f, i, o, g) = norm_h(W_h h) + norm_x(W_x x) + b;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(norm_c(c'))

    With layer normalization this is Ba et al. 2016, arXiv:1607.06450, supplement eq. 20-22. Batch statistics are taken
    at each step, running ones over all steps together (Cooijmans et al. 2016, arXiv:1603.09025, keep them per step).
    The gates' σ and tanh are functions, not modules: no conversion may take them for activations. b of the forget gate
    starts at 1 (Jozefowicz et al. 2015, sec. 3).

    Shape: x (N, C), (h, c) each (N, hidden) -> the new (h, c).
    """

    def __init__(self, layers: Layers, features: int, hidden: int) -> None:
        super().__init__()
        self.weight_x = nn.Linear(features, 4 * hidden, bias=False)
        self.norm_x = layers.batch_norm(4 * hidden)
        self.weight_h = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norm_h = layers.batch_norm(4 * hidden)
        self.bias = nn.Parameter(torch.cat([torch.ones(hidden), torch.zeros(3 * hidden)]))
        self.norm_c = layers.batch_norm(hidden)

    def forward(self, x_NC: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        gates = self.norm_h(self.weight_h(h)) + self.norm_x(self.weight_x(x_NC)) + self.bias
        forget, write, show, new = gates.chunk(4, dim=1)
        c = forget.sigmoid() * c + write.sigmoid() * new.tanh()
        return show.sigmoid() * self.norm_c(c).tanh(), c


class LSTMClassifier(nn.Module):
    """Reads an image row by row and classifies it by the last state.

    Shape: (N, C, H, W) -> (N, num_classes), a row being C * W features.
    """

    def __init__(self, args: LstmArgs, layers: Layers, row_features: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = args.hidden
        sizes = [row_features] + [args.hidden] * (args.layers - 1)
        self.cells = nn.ModuleList(NormLSTMCell(layers, size, args.hidden) for size in sizes)
        self.fc = nn.Linear(args.hidden, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        steps = list(x_NCHW.movedim(2, 0).flatten(2).unbind(0))  # H times (N, C * W)
        for cell in self.cells:
            h = c = x_NCHW.new_zeros(x_NCHW.shape[0], self.hidden)
            for step, x_NC in enumerate(steps):
                h, c = cell(x_NC, (h, c))
                steps[step] = h
        out: Tensor = self.fc(steps[-1])
        return out
