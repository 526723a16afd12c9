"""Tries an export on a network that is not trained yet, so that its owner hears of a problem before training."""

from __future__ import annotations

import warnings

from torch import nn

from syncnorm.trainer.contract.plan import Guarantee
from syncnorm.trainer.contract.spec import ExportSpec
from syncnorm.trainer.diagnostics.undisturbed import undisturbed
from syncnorm.trainer.errors import NoExportError
from syncnorm.trainer.export import samples
from syncnorm.trainer.export.exported_part import find_part, inference_network
from syncnorm.trainer.export.formats import capture, require_traced
from syncnorm.trainer.export.forward_inputs import ForwardInputs


def try_export(network: nn.Module, inputs: ForwardInputs, export: ExportSpec) -> Guarantee:
    """Whether the network can be exported as `export` says.

    Nothing is written or compared. Parameters, buffers, training flags and random generators are as before.
    """
    device = next((parameter.device for parameter in network.parameters()), None)
    try:
        with undisturbed(network), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
            part = find_part(network, [inputs if device is None else inputs.to(device)], export.module)
            return _captured(inference_network(part.network, export.fold)[0], samples.example(part.inputs[0]), export)
    except Exception as error:  # also whatever the network's own code raises
        return Guarantee(holds="no", why=str(error) or type(error).__name__)


def _captured(network: nn.Module, example: ForwardInputs, export: ExportSpec) -> Guarantee:
    try:
        capture(network, example)
    except NoExportError as error:
        require_traced(error, example, export.formats)
        why = f"as ONNX alone, for images of one size, by tracing, which is tried after training: {error}"
        return Guarantee(holds="partly", why=why)
    why = "torch.export takes the network; the exported model is compared with it after training"
    return Guarantee(holds="yes", why=why)
