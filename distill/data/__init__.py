"""Images, the views of them, and the loaders that training and evaluation iterate over."""

import distill.torchvision_wheel  # noqa: F401  (before anything imports torchvision)
