"""A model's final user and item vectors for others: npz, parquet, or an ONNX model from users to scores."""

from pathlib import Path

import numpy as np

from c2f.errors import ArtifactError, ConfigError, did_you_mean
from c2f.record import write_atomically, write_npz
from c2f.serve import Reader


def export(run: Path, data: Path, output: Path, kind: str) -> None:
    """Write the vectors whose dot products are a run's scores; kind: one of FORMATS. An item bias is a coordinate.

    Raises ConfigError for another kind or a package that is missing, ArtifactError for a model without vectors.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind!r} is unknown; {did_you_mean(kind, FORMATS)}")
    reader = Reader.open(run, data)
    if reader.vectors is None:
        raise ArtifactError(f"{run} has no vectors: {reader.info['uses']} scores with a library of its own")
    with write_atomically(output) as temporary:
        FORMATS[kind](temporary, *reader.vectors, reader.data.names())


def _npz(path: Path, users: np.ndarray, items: np.ndarray, names: dict[str, list[str]]) -> None:
    arrays = {"users": users, "items": items, "user_names": names["user"], "item_names": names["item"]}
    with open(path, "wb") as stream:
        write_npz(stream, {name: np.asarray(array) for name, array in arrays.items()})


def _parquet(path: Path, users: np.ndarray, items: np.ndarray, names: dict[str, list[str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = np.concatenate([users, items])
    columns = {
        "kind": ["user"] * len(users) + ["item"] * len(items),
        "id": np.concatenate([np.arange(len(users)), np.arange(len(items))]),
        "name": names["user"] + names["item"],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    pq.write_table(pa.table(columns), path)


def _onnx(path: Path, users: np.ndarray, items: np.ndarray, names: dict[str, list[str]]) -> None:
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError:
        raise ConfigError(
            "--format onnx needs the package onnx; `pip install onnx`, or choose npz or parquet"
        ) from None

    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["vectors", "users"], ["chosen"]),
            helper.make_node("MatMul", ["chosen", "items"], ["scores"]),
        ],
        "recommender",
        [helper.make_tensor_value_info("users", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(items)])],
        [
            numpy_helper.from_array(np.ascontiguousarray(users), "vectors"),
            numpy_helper.from_array(np.ascontiguousarray(items.T), "items"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


FORMATS = {"npz": _npz, "parquet": _parquet, "onnx": _onnx}
