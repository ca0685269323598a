"""How much a network computes for one input, counted while it runs."""

import logging

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)


@torch.no_grad()
def count_multiply_adds(model: nn.Module, inputs: Tensor) -> int | None:
    """Multiply-adds of a model in eval mode for one of its inputs (1, ...): those of convolutions, matrix products and
    attention, which sums and activations are small beside. None where torch sees none, as in an ONNX program, and for
    a network that raises when it is watched.

    Recurrent layers, attention (as of torch 2.9) and transformers' layers are counted by their matrix products, which
    their fused kernels hide.
    """
    counter = FlopCounterMode(display=False)
    fused = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.set_flags(False)[0]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            model(inputs)
    except Exception as error:  # whatever a user's network does: a count is no reason to lose it
        log.info("multiply-adds are not known: %s", error)
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused[0])
        torch.backends.mkldnn.set_flags(fused[1])
    return counter.get_total_flops() // 2 or None  # which counts a multiply-add as two
