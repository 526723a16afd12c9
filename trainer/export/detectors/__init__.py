"""Exports of detectors: what torch.export needs to take torchvision's, and predictions compared as sets of boxes."""
