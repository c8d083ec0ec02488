"""TensorFlow checkpoints (TF1 `model.ckpt-*`, TF2 object checkpoints), read without TensorFlow."""
