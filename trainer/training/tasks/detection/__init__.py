"""Detectors as torchvision writes them, whose forward gives losses in training and predictions in eval mode: their
losses over workers, their precision, and pictures of what they find. May import trainer.data, trainer.ranks and
norm."""
