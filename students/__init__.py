"""The small networks: AlexNet, ResNet-18, ResNet-50, MobileNetV2 as published for CompRess.

Source of the layouts: torchvision's; of the embeddings: CompRess, NeurIPS 2020. Any timm or
torchvision model can stand in as `timm:NAME` or `torchvision:NAME`.
"""

from students.registry import STUDENTS, build_student

__all__ = ["STUDENTS", "build_student"]
