"""Writes trained networks for other programs: ONNX, torch.export, safetensors, with a model card.

Every file is compared with the network that it was made from before it is kept. Deliberate limits:
the side of the images is fixed, the batch is not; float32; torch.jit, which is deprecated, is not
written.
"""
