"""What a method author may use, and nothing else: `from c2f.api import ...`."""

from c2f.budget import Budget
from c2f.codebook import (
    anchored_assignment,
    as_stored,
    assignment_bytes,
    assignment_matrix,
    closest_codes,
    coarse_codes,
    feasible_nonzeros,
    hash_constants,
    pseudo_inverse,
)
from c2f.decoding import (
    HASH_PRIME,
    activate,
    expanded_adjacency,
    id_array,
    pack,
    pack_sparse,
    propagate,
    quantise,
    row_bytes,
    unpack,
    unpack_sparse,
)
from c2f.diagnostics import Codes
from c2f.errors import BudgetError, ConfigError, MethodError, did_you_mean
from c2f.graph import Graph
from c2f.method import EmbeddingMethod, Embeddings, LinearForm, TableParams, TrainingGraph, load_start
from c2f.ops import SparseMatrix, basis_of, soft_threshold
from c2f.pruning import MaskedTable, Survival, kept_sizes, search_by_thresholds, survivors, tensor_sha256
from c2f.settings import check
from c2f.tuning import Choice, Float, Int

__all__ = [
    "HASH_PRIME",
    "Budget",
    "BudgetError",
    "Choice",
    "Codes",
    "ConfigError",
    "EmbeddingMethod",
    "Embeddings",
    "Float",
    "Graph",
    "Int",
    "LinearForm",
    "MaskedTable",
    "MethodError",
    "SparseMatrix",
    "Survival",
    "TableParams",
    "TrainingGraph",
    "activate",
    "anchored_assignment",
    "as_stored",
    "assignment_bytes",
    "assignment_matrix",
    "basis_of",
    "check",
    "closest_codes",
    "coarse_codes",
    "did_you_mean",
    "expanded_adjacency",
    "feasible_nonzeros",
    "hash_constants",
    "id_array",
    "kept_sizes",
    "load_start",
    "pack",
    "pack_sparse",
    "propagate",
    "pseudo_inverse",
    "quantise",
    "row_bytes",
    "search_by_thresholds",
    "soft_threshold",
    "survivors",
    "tensor_sha256",
    "unpack",
    "unpack_sparse",
]
