"""Images, the views of them, and the loaders that training and evaluation iterate over."""
