"""The rooms of the toolkit."""
