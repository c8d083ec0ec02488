"""Approximate nearest-neighbor search through inverted lists (IVF), with its recall measured.

K-means divides the indexed embeddings into lists (Sivic and Zisserman, ICCV 2003); a query is
compared with the rows of the few lists whose centroids are nearest to it. Lists hold row numbers
and the rows are read where they lie, so that memory does not grow with the embeddings, nothing is
quantized, and similarities are exact: only neighbors in other lists are missed. What share of
them is found is measured on some queries by exact search.

Queries whose lists hold fewer than k rows are searched exactly.

Shapes: N indexed images, M queries, D width, L lists, P probes, k neighbors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from distill.embeddings.search import (
    BLOCK_BYTES,
    Rows,
    empty_index,
    exact_index,
    found_in,
    l2_normalized,
    merged,
    nearest_rows,
    normalized_blocks,
    num_shared,
    require_k,
    require_same_width,
    require_seed,
    rows_per_block,
)
from distill.errors import DistillError
from distill.evaluation.kmeans import kmeans, nearest_centroids

_TRAINING_ROWS = 64  # per list, of k-means
_ITERATIONS = 10  # of k-means: lists need not be settled


@dataclass(frozen=True)
class InvertedLists:
    """How to search approximately.

    Attributes:
        num_lists: From 1 to N; None: the square root of N.
        num_probes: Lists that a query is compared with, at least 1; as many as lists is exact.
        num_sampled: Queries that the recall is measured on, at least 1.
        seed: Of k-means and of the sample; from 0 to 2^31 - 1.
        block_bytes: Of a block of rows as float32, see `nearest_neighbors`.
    """

    num_lists: int | None = None
    num_probes: int = 16
    num_sampled: int = 256
    seed: int = 0
    block_bytes: int = BLOCK_BYTES

    def search(
        self, indexed: Rows, queries: Rows, *, k: int
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Find about the k nearest rows of `indexed` for every query, by cosine similarity.

        Args:
            indexed: (N, D), any scale; arrays or memory maps.
            queries: (M, D), any scale.
            k: From 1 to N.

        Returns:
            Row numbers (M, k) int64, nearest first, similarities (M, k) float32, and the recall:
            the share of the k true neighbors that is among them, over the sampled queries.

        Raises:
            DistillError: k outside 1..N, lists or probes that there cannot be, or embeddings that
                are not finite or of different widths.
        """
        require_k(k, most=len(indexed))
        require_same_width(indexed, queries)
        self._require(len(indexed))
        lists = self._build(indexed)
        neighbors = np.empty((len(queries), k), np.int64)
        similarities = np.empty((len(queries), k), np.float32)
        for start, block in normalized_blocks(queries, self.block_bytes):
            rows = slice(start, start + len(block))
            neighbors[rows], similarities[rows] = self._search_block(lists, indexed, block, k)
        return neighbors, similarities, self._recall(indexed, queries, neighbors)

    def _require(self, num_indexed: int) -> None:
        require_seed(self.seed)
        if self.num_lists is not None and not 1 <= self.num_lists <= num_indexed:
            raise DistillError(
                f"the number of lists is {self.num_lists}, it must be between 1 and the number of "
                f"indexed images, {num_indexed}"
            )
        for name, count in (("probes", self.num_probes), ("sampled queries", self.num_sampled)):
            if count < 1:
                raise DistillError(f"the number of {name} is {count}, it must be 1 or more")

    def _build(self, indexed: Rows) -> _Lists:
        num_lists = self.num_lists or round(len(indexed) ** 0.5)
        most = rows_per_block(indexed.shape[1], self.block_bytes)
        size = max(num_lists, min(len(indexed), num_lists * _TRAINING_ROWS, most))
        rng = np.random.default_rng(self.seed)
        sample = np.sort(rng.permutation(len(indexed))[:size])
        centroids = kmeans(
            indexed[sample], num_lists, seed=self.seed, num_iterations=_ITERATIONS, restarts=1
        )
        of_row = nearest_centroids(indexed, centroids, block_bytes=self.block_bytes)
        ends = np.cumsum(np.bincount(of_row, minlength=num_lists))
        return _Lists(centroids, np.argsort(of_row, kind="stable"), ends)

    def _search_block(
        self, lists: _Lists, indexed: Rows, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare a block of queries, list by list, so that every list is read once."""
        neighbors = np.full((len(queries), k), -1, np.int64)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        index = empty_index(queries.shape[1], metric="inner product", k=k)
        size = rows_per_block(queries.shape[1], self.block_bytes)
        for asking, rows in lists.probed(queries, self.num_probes):
            for part in np.split(rows, range(size, len(rows), size)):
                block = l2_normalized(indexed[part])
                found = found_in(index, block, part, queries[asking], k)
                best = neighbors[asking], similarities[asking]
                neighbors[asking], similarities[asking] = merged(best, found, k)
        short = np.flatnonzero(neighbors[:, -1] < 0)
        if len(short):
            neighbors[short], similarities[short] = nearest_rows(
                indexed, queries[short], k=k, block_bytes=self.block_bytes
            )
        return neighbors, similarities

    def _recall(self, indexed: Rows, queries: Rows, neighbors: np.ndarray) -> float:
        rng = np.random.default_rng(self.seed)
        sample = np.sort(rng.permutation(len(queries))[: self.num_sampled])
        true, _ = nearest_rows(
            indexed,
            l2_normalized(queries[sample]),
            k=neighbors.shape[1],
            block_bytes=self.block_bytes,
        )
        return num_shared(neighbors[sample], true) / true.size


@dataclass(frozen=True)
class _Lists:
    centroids: np.ndarray  # (L, D)
    rows: np.ndarray  # (N,) row numbers, list after list, ascending in each
    ends: np.ndarray  # (L,) where every list ends in `rows`

    def probed(self, queries: np.ndarray, num_probes: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield, for every list that someone asks, the queries that do and the list's rows."""
        index = exact_index(self.centroids, metric="euclidean")
        probes = index.search(queries, min(num_probes, len(self.ends)))[1]
        order = np.argsort(probes.ravel(), kind="stable")
        asked, starts = np.unique(probes.ravel()[order], return_index=True)
        for number, pairs in zip(asked, np.split(order, starts[1:]), strict=True):
            begin = self.ends[number - 1] if number else 0
            if begin < self.ends[number]:
                yield pairs // probes.shape[1], self.rows[begin : self.ends[number]]
