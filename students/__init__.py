"""The small networks: AlexNet, ResNet-18, ResNet-50, MobileNetV2 as published for CompRess.

A student is one file of this folder: it calls `students.registry.register_student` when it is
imported, as all files here are. Source of the layouts: torchvision's; of the embeddings: CompRess,
NeurIPS 2020. Any timm or torchvision model can stand in as `timm:NAME` or `torchvision:NAME`.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
