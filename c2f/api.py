"""What a method author may use, and nothing else: `from c2f.api import ...`."""

from c2f.budget import Budget
from c2f.codebook import (
    anchored_assignment,
    assignment_matrix,
    closest_codes,
    coarse_codes,
    feasible_codes,
    feasible_nonzeros,
    id_array,
    pack_sparse,
    pseudo_inverse,
    unpack_sparse,
)
from c2f.errors import BudgetError, ConfigError, MethodError
from c2f.graph import Graph, expanded_adjacency, propagate
from c2f.method import EmbeddingMethod, Embeddings, LinearForm, TrainingGraph
from c2f.ops import SparseMatrix, activate, concatenate, soft_threshold
from c2f.settings import check

__all__ = [
    "Budget",
    "BudgetError",
    "ConfigError",
    "EmbeddingMethod",
    "Embeddings",
    "Graph",
    "LinearForm",
    "MethodError",
    "SparseMatrix",
    "TrainingGraph",
    "activate",
    "anchored_assignment",
    "assignment_matrix",
    "check",
    "closest_codes",
    "coarse_codes",
    "concatenate",
    "expanded_adjacency",
    "feasible_codes",
    "feasible_nonzeros",
    "id_array",
    "pack_sparse",
    "propagate",
    "pseudo_inverse",
    "soft_threshold",
    "unpack_sparse",
]
