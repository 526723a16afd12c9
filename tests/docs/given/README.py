import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
batches = [torch.randn(8, 1, 8, 8) for _ in range(4)]
