"""A map of embeddings: two dimensions in which neighbours stay neighbours.

L2-normalized embeddings go through PCA to 50 dimensions and then t-SNE (van der Maaten and Hinton,
JMLR 2008), both scikit-learn's, seeded and started from the first two principal components. What
t-SNE keeps is who is near whom; distances between far groups and their sizes say nothing.

Shapes: N images, D width.
"""

from __future__ import annotations

import numpy as np

from distill.errors import DistillError
from distill.evaluation.nearest_neighbour import l2_normalized

MIN_IMAGES = 8
MAX_IMAGES = 2_000
PCA_WIDTH = 50
_PERPLEXITY = 30.0  # scikit-learn's own; about as many neighbours as are kept near


def embedding_map(features: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Lay embeddings out in a plane.

    Args:
        features: (N, D), any scale; N from `MIN_IMAGES` to `MAX_IMAGES`.
        seed: Of the approximations; from 0 to 2^32 - 1.

    Returns:
        Places (N, 2) float32, centred on 0.

    Raises:
        DistillError: Too few or too many images, or embeddings that are not finite.
    """
    num_images = len(features)
    if not MIN_IMAGES <= num_images <= MAX_IMAGES:
        raise DistillError(
            f"a map is of {MIN_IMAGES} to {MAX_IMAGES:,} images and {num_images:,} were given; "
            "draw some of them"
        )
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = l2_normalized(features)
    if np.ptp(features, axis=0).max() < 1e-6:  # t-SNE divides by the spread
        return np.zeros((num_images, 2), np.float32)
    width = min(PCA_WIDTH, num_images, features.shape[1])
    reduced = PCA(width, random_state=seed).fit_transform(features)
    start = "pca" if width >= 2 else "random"
    perplexity = min(_PERPLEXITY, (num_images - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init=start, random_state=seed)
    places = tsne.fit_transform(reduced)
    return (places - places.mean(axis=0)).astype(np.float32)
