"""Tries an export on a network that is not trained yet, so that its owner hears of a problem before training."""

from __future__ import annotations

import warnings

from torch import nn

from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.diagnostics.undisturbed import undisturbed
from syncnorm.trainer.export import samples
from syncnorm.trainer.export.exported_part import find_part, inference_network
from syncnorm.trainer.export.formats import capture
from syncnorm.trainer.export.forward_inputs import ForwardInputs


def try_export(network: nn.Module, inputs: ForwardInputs, export: ExportSpec) -> str | None:
    """Why the network can't be exported as `export` says, in a sentence; None: torch.export takes it.

    Nothing is written or compared. Parameters, buffers, training flags and random generators are as before.
    """
    device = next((parameter.device for parameter in network.parameters()), None)
    try:
        with undisturbed(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            part = find_part(network, [inputs if device is None else inputs.to(device)], export.module)
            capture(inference_network(part.network, export.fold)[0], samples.example(part.inputs[0]))
    except Exception as error:  # also whatever the network's own code raises
        return str(error) or type(error).__name__
    return None
