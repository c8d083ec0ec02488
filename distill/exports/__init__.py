"""Exports trained networks: ONNX, torch.export, safetensors, each with a model card."""
