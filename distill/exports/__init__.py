"""Writes trained networks for other programs: ONNX, torch.export, safetensors, with a model card."""
