"""Students: AlexNet, ResNet-18, ResNet-50 and MobileNetV2 as in CompRess (NeurIPS 2020).

Every file of this folder is imported, and registers students with
`students.registry.register_student`. Layouts are torchvision's. Any timm or torchvision model can
be a student, too, as `timm:NAME` or `torchvision:NAME`.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
